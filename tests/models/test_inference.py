import math

import numpy as np
import torch
from scipy.special import softmax
from scipy.stats import norm

from scvae_ext.models import inference
from scvae_ext.models.cells import Cells


def test_evidence_is_the_logarithm_of_a_mean_of_weights(model, cells, monkeypatch):
    weights = torch.randn(50, 120)
    monkeypatch.setattr(
        type(model.module), "log_importance_weights", lambda self, minibatch, n_samples, generator: weights[:n_samples]
    )
    found = inference.marginal_log_likelihood(model.module, cells(), 50, 0)
    np.testing.assert_allclose(found, np.log(np.exp(weights.double().numpy()).mean(0)), rtol=1e-6)
    shifted = weights - 5000
    monkeypatch.setattr(
        type(model.module), "log_importance_weights", lambda self, minibatch, n_samples, generator: shifted[:n_samples]
    )
    np.testing.assert_allclose(inference.marginal_log_likelihood(model.module, cells(), 50, 0), found - 5000, rtol=1e-6)


@torch.no_grad()
def test_terms_of_the_elbo_are_means_over_samples(model, cells):
    few = inference.elbo_terms(model.module, cells(), 400, 0)
    other = inference.elbo_terms(model.module, cells(), 400, 1)
    np.testing.assert_allclose(few["elbo"], few["reconstruction"] - few["kl"], rtol=1e-4)
    np.testing.assert_allclose(few["kl"], other["kl"], rtol=1e-5)
    assert float(np.abs(few["elbo"].mean() - other["elbo"].mean())) < 0.5
    assert not math.isclose(few["elbo"][0], other["elbo"][0])


@torch.no_grad()
def test_the_mean_of_points_on_the_simplex_is_not_the_point_of_the_mean(load):
    model = load("simplex")
    module = model.module.eval()
    cells = Cells(model._own_source(), np.arange(3), torch.device("cpu"))
    qz = module.encode(model._own_source().minibatch(np.arange(3))).qz
    # Normal quantiles in the middle of equally probable parts, in all of three dimensions.
    nodes = norm.ppf((np.arange(40) + 0.5) / 40)
    grid = np.stack(np.meshgrid(nodes, nodes, nodes, indexing="ij"), -1).reshape(-1, 1, 3)
    expected = softmax(qz.loc.double().numpy() + qz.scale.double().numpy() * grid, axis=-1).mean(0)
    at_mean = softmax(qz.loc.double().numpy(), axis=-1)
    found = inference.latent_mean(module, cells, 4000, 0)
    np.testing.assert_allclose(found, expected, atol=0.005)
    assert np.abs(at_mean - expected).max() > 0.02


@torch.no_grad()
def test_terms_of_the_elbo_are_the_same_however_many_samples_fit_into_memory(model, cells, monkeypatch):
    at_once = inference.elbo_terms(model.module, cells(), 200, 0)
    monkeypatch.setattr("scvae_ext.models.cells.MAX_ENTRIES", 120 * 30 * 7)
    in_parts = inference.elbo_terms(model.module, cells(batch_size=120), 200, 0)
    np.testing.assert_allclose(in_parts["kl"], at_once["kl"], rtol=1e-5)
    np.testing.assert_allclose(in_parts["elbo"].mean(), at_once["elbo"].mean(), atol=0.5)
