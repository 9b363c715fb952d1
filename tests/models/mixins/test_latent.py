import numpy as np
import pytest

KINDS = ["nb", "zinb", "poisson", "normal", "simplex", "latent library", "size factor"]
every_kind = pytest.mark.parametrize("kind", KINDS)
QUIET = {"key_added": None}


@every_kind
def test_latent_representation_is_returned_and_written(load, adata, kind):
    latent = load(kind).get_latent_representation()
    assert latent.shape == (120, 3)
    assert latent.dtype == np.float32
    assert np.isfinite(latent).all()
    np.testing.assert_array_equal(adata.obsm["X_scvae"], latent)


def test_latent_points_of_the_simplex_sum_to_one(load):
    model = load("simplex")
    np.testing.assert_allclose(model.get_latent_representation(**QUIET).sum(1), 1, rtol=1e-5)
    samples = model.get_latent_representation(give_mean=False, n_samples=2, **QUIET)
    np.testing.assert_allclose(samples.sum(-1), 1, rtol=1e-5)


def test_samples_have_the_moments_of_the_posterior(model):
    mean, variance = model.get_latent_representation(return_dist=True)
    np.testing.assert_allclose(mean, model.get_latent_representation(**QUIET))
    samples = model.get_latent_representation(give_mean=False, n_samples=4000, **QUIET)
    assert samples.shape == (4000, 120, 3)
    error = (samples.mean(0) - mean) / np.sqrt(variance / 4000)
    assert np.abs(error).max() < 5
    np.testing.assert_allclose(samples.var(0), variance, rtol=0.2)


def test_one_sample_is_drawn_and_written_with_its_seed(model, adata):
    sample = model.get_latent_representation(give_mean=False, seed=3)
    assert sample.shape == (120, 3)
    np.testing.assert_array_equal(adata.obsm["X_scvae"], sample)
    np.testing.assert_array_equal(model.get_latent_representation(give_mean=False, seed=3), sample)
    assert not np.array_equal(model.get_latent_representation(give_mean=False, seed=4), sample)


@pytest.mark.parametrize("options", [{"give_mean": False, "n_samples": 0}, {"n_samples": 3}, {"batch_size": 0}])
def test_impossible_numbers_of_samples_are_refused(model, options):
    with pytest.raises(ValueError, match=f"{list(options)[-1]}="):
        model.get_latent_representation(**options)


def test_an_observed_library_size_is_the_total(model, adata):
    np.testing.assert_allclose(model.get_latent_library_size(), np.asarray(adata.X.sum(1)).ravel())


def test_a_latent_library_size_is_near_the_total(load, adata):
    model = load("latent library")
    totals = np.asarray(adata.X.sum(1)).ravel()
    sizes = model.get_latent_library_size()
    assert np.corrcoef(np.log(sizes), np.log(totals))[0, 1] > 0.9
    np.testing.assert_allclose(np.median(sizes / totals), 1, atol=0.3)
    assert {"kl_library_train", "kl_library_validation"} <= set(model.history.columns)
