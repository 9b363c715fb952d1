import pytest

from scvae_ext import SCVAE

KINDS = ["nb", "zinb", "poisson", "normal", "simplex", "latent library", "size factor"]
every_kind = pytest.mark.parametrize("kind", KINDS)


@every_kind
def test_bound_and_evidence_are_ordered(load, kind):
    model = load(kind)
    bound = model.get_elbo(n_samples=200)
    evidence = model.get_marginal_ll(n_mc_samples=500)
    assert bound < evidence + 0.05
    assert -model.get_reconstruction_error(n_samples=200) > bound


def test_bound_is_that_of_the_history(model):
    held_out = model.get_elbo(indices=model.validation_indices, n_samples=500)
    assert held_out == pytest.approx(model.history["elbo_validation"].max(), abs=3)


def test_bound_per_cell_and_its_mean(model):
    each = model.get_elbo(return_mean=False)
    assert each.shape == (120,)
    assert model.get_elbo() == pytest.approx(each.mean())
    assert model.get_elbo(seed=1) != model.get_elbo()


@pytest.mark.parametrize("batch_size", [7, 50])
def test_bound_and_evidence_do_not_depend_on_the_minibatch_but_for_noise(model, batch_size):
    assert model.get_elbo(n_samples=300, batch_size=batch_size) == pytest.approx(model.get_elbo(n_samples=300), abs=0.2)
    one, two = (model.get_marginal_ll(n_mc_samples=1000, batch_size=size) for size in (batch_size, None))
    assert one == pytest.approx(two, abs=0.1)


@pytest.mark.slow
def test_a_bound_from_a_better_fit_is_higher(adata):
    model = SCVAE(adata, n_hidden=16, n_latent=3)
    model.train(max_steps=1, enable_progress_bar=False)
    before = model.get_elbo()
    model.train(max_steps=300, enable_progress_bar=False)
    assert model.get_elbo() > before + 1
