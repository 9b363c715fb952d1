import math

import numpy as np
import torch

from scvae_ext.models import inference


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
