import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

KINDS = ["nb", "zinb", "poisson", "normal", "simplex", "latent library", "size factor"]
every_kind = pytest.mark.parametrize("kind", KINDS)
QUIET = {"key_added": None}
CLOSE = {"rtol": 1e-3, "atol": 1e-5}


@every_kind
@pytest.mark.parametrize("library_size", [1.0, 10_000, np.float32(50)])
@pytest.mark.usefixtures("unchecked")
def test_expression_sums_to_the_library_size(load, adata, kind, library_size):
    expression = load(kind).get_normalized_expression(library_size=library_size)
    assert list(expression.index) == list(adata.obs_names)
    assert list(expression.columns) == list(adata.var_names)
    assert (expression.to_numpy() >= 0).all()
    np.testing.assert_array_equal(adata.layers["scvae_normalized"], expression)
    assert expression.dtypes.eq(np.float32).all()
    if kind != "size factor":
        np.testing.assert_allclose(expression.sum(1), library_size, rtol=1e-4)


@pytest.mark.parametrize("kind", ["nb", "poisson", "latent library"])
def test_expression_at_the_latent_library_size_sums_to_it(load, kind):
    model = load(kind)
    expression = model.get_normalized_expression(library_size="latent", return_numpy=True)
    np.testing.assert_allclose(expression.sum(1), model.get_latent_library_size(), rtol=1e-4)


def test_expression_at_the_depth_of_a_size_factor_is_on_the_scale_of_the_counts(load, adata):
    model = load("size factor")
    expression = model.get_normalized_expression(library_size="latent", n_samples=1, return_numpy=True)
    np.testing.assert_allclose(expression, model.get_likelihood_parameters()["mean"], **CLOSE)


def test_expression_is_the_posterior_mean(model):
    """Average over samples of the latent space that the model returns itself."""
    deterministic = model.get_normalized_expression(n_samples=2000, return_numpy=True, seed=1)
    samples = model.get_normalized_expression(n_samples=2000, return_mean=False, return_numpy=True)
    assert samples.shape == (2000, 120, 30)
    error = samples.std(0) / np.sqrt(2000)
    assert np.abs((samples.mean(0) - deterministic) / error).max() < 10
    np.testing.assert_allclose(samples.mean(0), deterministic, rtol=0.2)


def test_expression_is_deterministic(model):
    one, two = (model.get_normalized_expression(return_numpy=True) for _ in range(2))
    np.testing.assert_array_equal(one, two)
    other = model.get_normalized_expression(return_numpy=True, seed=1)
    assert not np.array_equal(one, other)


def test_samples_are_not_written(model, adata):
    model.get_normalized_expression(n_samples=3, return_mean=False)
    assert "scvae_normalized" not in adata.layers


def test_genes_come_in_the_order_asked_for_with_the_values_among_all(model, adata):
    everything = model.get_normalized_expression(library_size=100)
    some = model.get_normalized_expression(gene_list=["gene_20", "gene_3"], library_size=100, key_added="some")
    pd.testing.assert_frame_equal(some, everything[["gene_20", "gene_3"]], rtol=1e-4)
    pd.testing.assert_frame_equal(adata.obsm["some"], some)


@pytest.mark.parametrize("kind", ["nb", "zinb", "normal"])
def test_several_batches_are_averaged(load, kind):
    model = load(kind)
    one, two, both = (
        model.get_normalized_expression(transform_batch=batch, return_numpy=True, **QUIET)
        for batch in ("batch_0", "batch_1", ["batch_0", "batch_1"])
    )
    assert not np.allclose(one, two, rtol=0.05)
    np.testing.assert_allclose(both, (one + two) / 2, **CLOSE)


def test_a_transformed_batch_is_that_of_the_cells_that_have_it(model, adata):
    observed = model.get_normalized_expression(return_numpy=True, **QUIET)
    moved = model.get_normalized_expression(transform_batch="batch_1", return_numpy=True, **QUIET)
    same = (adata.obs["batch"] == "batch_1").to_numpy()
    np.testing.assert_allclose(moved[same], observed[same], **CLOSE)
    assert not np.allclose(moved[~same], observed[~same], rtol=0.05)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"transform_batch": "batch_9"}, "'batch_9'.*'batch_0', 'batch_1'"),
        ({"gene_list": ["GENE_1"]}, "GENE_1"),
        ({"library_size": 0}, "library_size=0"),
        ({"library_size": -1.0}, "library_size=-1.0"),
        ({"library_size": float("inf")}, "library_size=inf"),
        ({"library_size": True}, "library_size=True"),
        ({"library_size": "latnet"}, "library_size='latnet'"),
        ({"n_samples": 0}, "n_samples=0"),
        ({"key_added": 3}, "key_added=3"),
        ({"indices": []}, "selects no cell"),
    ],
)
def test_impossible_requests_are_refused(model, options, message):
    with pytest.raises(ValueError, match=message):
        model.get_normalized_expression(**options)


def test_transforming_needs_batches(load):
    with pytest.raises(ValueError, match="batch_key"):
        load("size factor").get_normalized_expression(transform_batch="batch_0")


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("nb", {"mean", "dispersions"}),
        ("zinb", {"mean", "dispersions", "dropout"}),
        ("poisson", {"mean"}),
        ("normal", {"mean", "scale"}),
    ],
)
def test_parameters_of_the_likelihood(load, kind, names):
    parameters = load(kind).get_likelihood_parameters()
    assert set(parameters) == names
    for name, value in parameters.items():
        assert value.shape == (120, 30)
        assert np.isfinite(value).all()
        assert (value > 0).all() or (kind, name) == ("normal", "mean")
    if "dropout" in names:
        assert (parameters["dropout"] < 1).all()


@pytest.mark.parametrize("kind", ["nb", "zinb", "poisson"])
def test_means_are_expression_times_the_library_size(load, adata, kind):
    model = load(kind)
    expression = model.get_normalized_expression(n_samples=1, return_numpy=True)
    expected = expression * np.asarray(adata.X.sum(1))
    np.testing.assert_allclose(model.get_likelihood_parameters()["mean"], expected, **CLOSE)


def test_means_at_a_latent_library_size_are_expression_times_its_posterior_mean(load):
    model = load("latent library")
    mean = model.get_likelihood_parameters(n_samples=20)["mean"]
    expected = model.get_normalized_expression(library_size="latent", n_samples=20, return_numpy=True)
    np.testing.assert_allclose(mean, expected, **CLOSE)
    np.testing.assert_allclose(mean.sum(1), model.get_latent_library_size(), rtol=1e-4)
    with torch.no_grad():
        library = model.module.encode(model._own_source().minibatch(np.arange(120))).log_library
    drawn = np.exp(stats.norm(library.loc.numpy(), library.scale.numpy()).rvs((4000, 120), random_state=0))
    error = drawn.std(0) / np.sqrt(4000)
    assert (np.abs(drawn.mean(0) - mean.sum(1)) / error).max() < 4.5
    assert (library.scale > 0.05).all()


def test_parameters_explain_the_reconstruction_error(model, adata):
    """At the posterior mean the error is close to that averaged over the posterior, by the formula of scipy."""
    parameters = model.get_likelihood_parameters()
    theta, mean = parameters["dispersions"].astype(float), parameters["mean"].astype(float)
    at_mean = -stats.nbinom.logpmf(adata.X.toarray(), theta, theta / (theta + mean)).sum(1).mean()
    assert model.get_reconstruction_error(n_samples=200) == pytest.approx(at_mean, rel=0.05)
