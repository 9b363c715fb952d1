import numpy as np
import pytest
import torch
from scipy import stats

from scvae_ext.diagnostics._posterior_states import draw_states
from scvae_ext.models.cells import Cells

LOADINGS = np.array([[1.0, 0.5], [-0.5, 1.5]])
NOISE = 0.6


@pytest.fixture
def linear(linear_model):
    """Probabilistic PCA with as many genes as dimensions, so that a draw can be read off its mean; a bad encoder."""
    x = 5 + np.random.default_rng(0).normal(size=(6, 2))
    model = linear_model(x, np.zeros((2, 2)), [0.5, -0.5], [1.5, 0.3], loadings=LOADINGS, offset=5.0, noise=NOISE)
    return model, np.asarray(model.adata.X, dtype=float)


def drawn(model, positions, batch_size=None, **options):
    cells = Cells(model._cells(None, None, None, False)[1].source, positions, model.device, batch_size)
    options = {"n_samples": 200, "n_optimisation_steps": 100, "seed": 0} | options
    parts = [states for _, states in draw_states(model.module, cells, **options)]
    mean = torch.cat([states.px.loc for states in parts]).numpy()
    return np.linalg.solve(LOADINGS, (mean - 5.0).T).T, np.concatenate([part.effective_sample_size for part in parts])


def test_draws_have_mean_and_covariance_of_the_exact_posterior(linear):
    model, x = linear
    n_draws = 800
    z, effective = drawn(model, np.full(n_draws, 2))
    # The posterior is correlated, which no diagonal Gaussian is.
    covariance = np.linalg.inv(np.eye(2) + LOADINGS.T @ LOADINGS / NOISE**2)
    assert abs(covariance[0, 1]) > 0.1 * np.sqrt(covariance[0, 0] * covariance[1, 1])
    mean = covariance @ LOADINGS.T @ (x[2] - 5.0) / NOISE**2
    whitened = np.linalg.solve(np.linalg.cholesky(covariance), (z - mean).T)
    assert stats.kstest(whitened[0], "norm").pvalue > 1e-3
    assert stats.kstest(whitened[1], "norm").pvalue > 1e-3
    np.testing.assert_allclose(np.cov(whitened), np.eye(2), atol=4 / np.sqrt(n_draws) * 1.5)
    assert (effective > 50).all()


def test_draws_do_not_depend_on_the_minibatch(linear):
    model, _ = linear
    at_once, effective = drawn(model, np.arange(6), n_samples=20, n_optimisation_steps=5)
    in_parts, others = drawn(model, np.arange(6), 4, n_samples=20, n_optimisation_steps=5)
    np.testing.assert_allclose(at_once, in_parts, atol=1e-6)
    np.testing.assert_allclose(effective, others, rtol=1e-6)


def test_another_seed_draws_others(linear):
    model, _ = linear
    first, _ = drawn(model, np.arange(6), n_samples=20, n_optimisation_steps=5)
    second, _ = drawn(model, np.arange(6), n_samples=20, n_optimisation_steps=5, seed=1)
    assert (np.abs(first - second) > 1e-6).all()


def test_a_latent_library_size_is_drawn_as_well(trained):
    model = trained(max_steps=20, use_observed_lib_size=False)
    cells = model._cells(None, np.arange(30), None, False)[1]
    (_, states), *_ = draw_states(model.module, cells, n_samples=50, n_optimisation_steps=5, seed=0)
    total = states.px.mean.sum(1)
    assert not torch.allclose(total, states.minibatch.library_size, rtol=0.01)
    torch.testing.assert_close(total.log(), states.minibatch.library_size.log(), rtol=0, atol=1.0)
