import numpy as np
import pytest
import torch

from scvae_ext import SCVAE
from scvae_ext.models.cells import evaluating, shared_noise
from scvae_ext.models.posterior_draws import posterior_draws


def _draws(model, batches=(), n_samples=2, batch_size=50, **options):
    _, cells = model._cells(None, None, batch_size, False)
    with evaluating(model.module):
        return list(posterior_draws(model.module, cells, list(batches), n_samples, 0, **options))


@pytest.mark.parametrize("kind", ["nb", "zinb", "poisson", "normal", "simplex", "latent library", "size factor"])
def test_their_mean_is_normalized_expression(load, kind):
    model = load(kind)
    chunks = _draws(model, n_samples=4)
    expected = model.get_normalized_expression(n_samples=4, return_numpy=True, key_added=None)
    drawn = torch.cat([chunk.expression.mean(0) for chunk in chunks]).numpy()
    np.testing.assert_allclose(drawn, expected, rtol=1e-4, atol=1e-7)
    assert [chunk.rows.start for chunk in chunks] == [0, 50, 100]


def test_mean_of_counts_is_depth_times_what_was_fitted(load):
    model = load("nb")
    parameters = model.get_likelihood_parameters()
    chunks = _draws(model, n_samples=1)
    mean = torch.cat([chunk.depth * chunk.fitted[0] for chunk in chunks]).numpy()
    np.testing.assert_allclose(mean, parameters["mean"], rtol=1e-4)
    np.testing.assert_allclose(chunks[0].inverse_dispersion, parameters["dispersions"][:1], rtol=1e-5)


def test_other_batches_are_averaged_over_and_the_observed_one_is_kept(model):
    names = model.registry.batch_categories
    chunks = _draws(model, batches=range(len(names)), n_samples=1)
    drawn = torch.cat([chunk.expression[0] for chunk in chunks]).numpy()
    expected = model.get_normalized_expression(
        transform_batch=list(names), n_samples=1, return_numpy=True, key_added=None
    )
    np.testing.assert_allclose(drawn, expected, rtol=1e-4, atol=1e-7)
    fitted = torch.cat([chunk.fitted[0] for chunk in chunks]).numpy()
    observed = model.get_normalized_expression(n_samples=1, return_numpy=True, key_added=None)
    np.testing.assert_allclose(fitted, observed, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(("kind", "shape"), [("zinb", (50, 30)), ("poisson", None), ("normal", None)])
def test_inverse_dispersion_is_that_of_the_likelihood(load, kind, shape):
    theta = _draws(load(kind))[0].inverse_dispersion
    assert (None if theta is None else tuple(theta.shape)) == shape


def test_independent_draws_differ_between_cells_and_come_from_the_posterior(model):
    shared, own = (_draws(model, n_samples=200, independent=flag) for flag in (False, True))
    means = [torch.cat([chunk.expression.mean(0) for chunk in chunks]) for chunks in (shared, own)]
    np.testing.assert_allclose(means[0], means[1], rtol=0.2, atol=2e-3)
    assert not torch.allclose(means[0], means[1], rtol=1e-4)


def test_many_samples_are_drawn_for_fewer_cells_at_once(model, monkeypatch):
    monkeypatch.setattr("scvae_ext.models.cells.MAX_ENTRIES", 30 * 10 * 4)
    chunks = _draws(model, n_samples=10, batch_size=None)
    assert {len(chunk.depth) for chunk in chunks} == {4}


def test_depth_is_the_posterior_mean_of_a_latent_library_size(load):
    model = load("latent library")
    depth = torch.cat([chunk.depth for chunk in _draws(model)]).squeeze(-1).numpy()
    with torch.no_grad():
        library = model.module.encode(model._own_source().minibatch(np.arange(120))).log_library
    expected = np.exp(library.loc.double().numpy() + 0.5 * library.scale.double().numpy() ** 2)
    np.testing.assert_allclose(depth, expected.ravel(), rtol=1e-4)
    assert float(library.scale.min()) > 0.05


def test_inverse_dispersion_is_that_of_the_batch_of_each_cell_and_of_its_mean_state(load, simulated):
    by_batch = SCVAE(simulated.copy(), n_hidden=8, n_latent=2, dispersion="gene-batch")
    by_batch.train(max_steps=5, enable_progress_bar=False)
    with torch.no_grad():
        for values in by_batch.module.likelihood.dispersion.parameters():
            values.normal_()
    found = torch.cat([chunk.inverse_dispersion for chunk in _draws(by_batch)]).numpy()
    np.testing.assert_allclose(found, by_batch.get_likelihood_parameters()["dispersions"], rtol=1e-4)

    by_cell = load("zinb")
    found = torch.cat([chunk.inverse_dispersion for chunk in _draws(by_cell, n_samples=6)])
    module, minibatch = by_cell.module, by_cell._own_source().minibatch(np.arange(120))
    with evaluating(module):
        qz = module.encode(minibatch).qz
        samples = qz.loc + qz.scale * shared_noise(6, 3, 0, qz.loc.device)
        each = torch.stack([module.decode(sample, minibatch).base.inverse_dispersion for sample in samples])
    # Its logarithm is linear in the hidden layer, of which the mean is taken.
    torch.testing.assert_close(found, each.log().mean(0).exp(), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found, each[0], rtol=0.01)
