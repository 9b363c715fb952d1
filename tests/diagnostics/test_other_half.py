import numpy as np
import pytest
import torch
from anndata import AnnData
from judged_model import JudgedModel
from sklearn.metrics import mean_poisson_deviance

from scvae_ext import SCVAE
from scvae_ext.diagnostics._judged_models import both_halves
from scvae_ext.diagnostics._other_half import LEVELS, correlations, deviances, predict_other_half
from scvae_ext.distributions import NegativeBinomial

N_CELLS = 300
MEAN = np.linspace(1, 30, 8)
THETA = 2.0


@pytest.fixture(scope="module")
def model():
    """Make a model of cells that are all alike, and negative binomial."""
    rng = np.random.default_rng(0)
    counts = rng.poisson(MEAN * rng.gamma(THETA, 1 / THETA, (N_CELLS, len(MEAN)))) + 1
    adata = AnnData(counts.astype(np.float32))
    SCVAE.setup_anndata(adata)
    return SCVAE(adata)


def test_halves_add_up_and_are_fair(model):
    minibatch = model._own_source().minibatch(np.arange(N_CELLS))
    first, second = both_halves(minibatch, np.random.default_rng(0))
    whole = minibatch.counts.dense()
    torch.testing.assert_close(first.counts.dense() + second.counts.dense(), whole)
    torch.testing.assert_close(first.library_size, first.counts.dense().sum(1))
    torch.testing.assert_close(first.library_size + second.library_size, minibatch.library_size)
    assert (first.counts.values > 0).all()
    share = float(first.library_size.sum() / minibatch.library_size.sum())
    assert abs(share - 0.5) < 4 * 0.5 / np.sqrt(float(minibatch.library_size.sum()))
    variance = (first.counts.dense() - whole / 2).square().sum() / (whole / 4).sum()
    assert float(variance) == pytest.approx(1.0, abs=0.1)


def test_halves_of_poisson_counts_are_independent():
    counts = np.random.default_rng(1).poisson(6.0, (4000, 3)).astype(np.float32) + 0
    counts[:, 0] += counts.sum(1) == 0
    adata = AnnData(counts)
    adata.obs["size"] = 2.0
    SCVAE.setup_anndata(adata, size_factor_key="size")
    minibatch = SCVAE(adata)._own_source().minibatch(np.arange(4000))
    first, second = both_halves(minibatch, np.random.default_rng(2))
    assert (first.size_factor == 1.0).all()
    found = np.corrcoef(first.counts.dense()[:, 1], second.counts.dense()[:, 1])[0, 1]
    assert abs(found) < 4 / np.sqrt(4000)
    # Counts themselves are anything but independent of their halves.
    assert np.corrcoef(first.counts.dense()[:, 1], counts[:, 1])[0, 1] > 0.6


def test_deviances_are_those_of_poisson_counts():
    rng = np.random.default_rng(3)
    counts, share = rng.poisson(3.0, (5, 20)).astype(float), rng.dirichlet(np.ones(20), 5)
    expected = [20 * mean_poisson_deviance(x, x.sum() * p) for x, p in zip(counts, share, strict=True)]
    np.testing.assert_allclose(deviances(counts, share), expected)
    perfect = counts / counts.sum(1, keepdims=True)
    np.testing.assert_allclose(deviances(counts, perfect + 1e-300), 0, atol=1e-9)


def test_correlations_are_of_deviations_from_the_mean_over_cells():
    rng = np.random.default_rng(4)
    predicted, observed = rng.normal(size=(2, 6, 30))
    # What all cells share does not count.
    found = correlations(predicted + 50 * np.arange(30), observed)
    for n in range(6):
        deviations = predicted[n] - predicted.mean(0), observed[n] - observed.mean(0)
        assert found[n] == pytest.approx(np.corrcoef(*deviations)[0, 1])
    assert (correlations(np.ones((6, 30)), observed) == 0).all()


class Known(JudgedModel):
    """Knows the distribution of the counts, or believes in another dispersion."""

    def __init__(self, theta):
        self.theta = theta

    def draw(self, minibatch):
        return torch.zeros(minibatch.n_cells, 1)

    def expected(self, state, minibatch):
        mean = torch.tensor(MEAN + 1).float()
        return (mean / mean.sum()).expand(minibatch.n_cells, -1)

    def counts(self, state, minibatch):
        mean = torch.tensor(MEAN).float().expand(minibatch.n_cells, -1) / 2
        px = NegativeBinomial(mean, torch.full((len(MEAN),), self.theta))
        # The one count that every gene has besides goes to either half.
        return px.sample() + torch.bernoulli(torch.full_like(mean, 0.5))


def test_intervals_of_the_right_distribution_hold_what_they_say(model):
    torch.manual_seed(0)
    arguments = (model, np.arange(N_CELLS), (MEAN + 1) / (MEAN + 1).sum(), 60, 0)
    found = predict_other_half(Known(THETA), *arguments)
    assert found.is_predicted.all()
    n_counts = N_CELLS * len(MEAN)
    error = np.sqrt(LEVELS * (1 - LEVELS) / n_counts)
    assert (np.abs(found.inside.mean(0) - LEVELS) < 4 * error + 0.02).all()
    # Without overdispersion intervals are too narrow.
    at = list(LEVELS).index(0.9)
    assert predict_other_half(Known(1e4), *arguments).inside.mean(0)[at] < 0.75
    # The mean cell is what was predicted.
    np.testing.assert_allclose(found.deviance, found.of_mean, rtol=1e-5)
    assert (found.correlation == 0).all()


def test_a_cell_with_a_single_molecule_is_left_out():
    counts = np.array([[1, 0, 0], [40, 30, 20], [10, 30, 20]], dtype=np.float32)
    adata = AnnData(counts)
    SCVAE.setup_anndata(adata)

    class Flat(Known):
        def expected(self, state, minibatch):
            return torch.full((minibatch.n_cells, 3), 1 / 3)

        def counts(self, state, minibatch):
            return torch.ones(minibatch.n_cells, 3)

    found = predict_other_half(Flat(1.0), SCVAE(adata), np.arange(3), np.full(3, 1 / 3), 5, 0)
    assert found.is_predicted.tolist() == [False, True, True]
    assert len(found.deviance) == len(found.inside) == len(found.correlation) == 2


def test_one_half_is_predicted_from_the_other_alone(model):
    class Watched(Known):
        def draw(self, minibatch):
            seen.append(minibatch.counts.dense())
            return super().draw(minibatch)

        def counts(self, state, minibatch):
            predicted.append(minibatch.counts.dense())
            return super().counts(state, minibatch)

    seen, predicted = [], []
    predict_other_half(Watched(THETA), model, np.arange(20), np.full(8, 1 / 8), 3, 0)
    whole = model._own_source().minibatch(np.arange(20)).counts.dense()
    assert len(seen) == len(predicted) == 3
    for first, second in zip(seen, predicted, strict=True):
        assert torch.equal(first, seen[0])
        assert not torch.equal(first, second)
        torch.testing.assert_close(first + second, whole)


def test_counts_that_all_draws_have_lie_anywhere_among_them(model):
    class Sure(Known):
        def counts(self, state, minibatch):
            return minibatch.counts.dense()

    found = predict_other_half(Sure(THETA), model, np.arange(N_CELLS), np.full(8, 1 / 8), 3, 0)
    error = np.sqrt(LEVELS * (1 - LEVELS) / found.inside.shape[0] / 8)
    assert (np.abs(found.inside.mean(0) - LEVELS) < 4 * error).all()
