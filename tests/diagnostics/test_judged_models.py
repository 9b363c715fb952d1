from dataclasses import replace

import numpy as np
import pytest
import torch
from known_model import KnownModel

from scvae_ext import Autoencoder
from scvae_ext.diagnostics._judged_models import (
    Deterministic,
    Probabilistic,
    both_halves,
    log_normalised_counts,
    shares,
)

KNOWN = KnownModel(np.linspace(1, 5, 12), theta=2.0)


@pytest.fixture(scope="module")
def adata():
    return KNOWN.simulate("nb", 400)


@pytest.fixture(scope="module")
def minibatch(adata):
    return KNOWN.model(adata, "nb")._own_source().minibatch(np.arange(400))


def test_the_error_of_the_true_model_is_the_variance_of_the_values(adata, minibatch):
    # With y = log(1 + x / s), the expectation of y has the error Var(y), whatever the number of draws.
    torch.manual_seed(0)
    judged = Probabilistic(KNOWN.model(adata, "nb").module)
    rng = np.random.default_rng(1)
    mean = np.log1p(np.exp(KNOWN.bias))
    size = adata.obs["size"].to_numpy()[:, None]
    draws = rng.poisson(size * mean * rng.gamma(2.0, 0.5, (200, 400, 12)))
    variance = np.log1p(draws / size).var(0).mean()
    for n_samples in (3, 50):
        errors = judged.squared_error(minibatch, n_samples).numpy()
        assert abs(errors.mean() - variance) < 4 * errors.std() / np.sqrt(400)


def test_counts_of_an_autoencoder_have_the_noise_of_poisson(adata, minibatch):
    autoencoder = Autoencoder(adata, n_latent=2, n_hidden=8)
    judged = Deterministic(autoencoder.module.eval())
    with torch.no_grad():
        state = judged.centre(minibatch)
        torch.testing.assert_close(judged.draw(minibatch), state)
        expected = judged.expected(state, minibatch)
        torch.testing.assert_close(expected.sum(1), torch.ones(400))
        torch.manual_seed(0)
        counts = torch.stack([judged.counts(state, minibatch) for _ in range(100)])
        ratio = counts.var(0).sum() / counts.mean(0).sum()
        errors = judged.squared_error(minibatch, 5)
        torch.testing.assert_close(errors, autoencoder.module.objective(minibatch).mse)
    assert float(ratio) == pytest.approx(1.0, abs=0.03)
    totals = counts.mean(0).sum(1) / minibatch.library_size
    assert float(totals.mean()) == pytest.approx(1.0, abs=0.01)


def test_values_are_those_of_scanpy():
    counts = torch.tensor([[1.0, 3.0, 0.0], [0.0, 0.0, 0.0]])
    np.testing.assert_allclose(log_normalised_counts(counts)[0], np.log1p([2500, 7500, 0]), rtol=1e-6)
    assert (log_normalised_counts(counts)[1] == 0).all()
    np.testing.assert_allclose(shares(counts), [[0.25, 0.75, 0], [1 / 3] * 3])


def test_halves_of_a_cell_have_half_its_size_factor_and_all_its_counts(minibatch):
    whole = replace(minibatch, size_factor=torch.linspace(0.5, 2, 400))
    first, second = both_halves(whole, np.random.default_rng(0))
    torch.testing.assert_close(first.counts.dense() + second.counts.dense(), whole.counts.dense())
    for half in (first, second):
        torch.testing.assert_close(half.size_factor, whole.size_factor / 2)
        torch.testing.assert_close(half.library_size, half.counts.dense().sum(1))
    share = first.library_size.sum() / whole.library_size.sum()
    assert float(share) == pytest.approx(0.5, abs=3 / float(whole.library_size.sum()) ** 0.5)
