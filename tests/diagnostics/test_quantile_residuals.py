from dataclasses import dataclass

import mpmath
import numpy as np
import pytest
import torch
from minibatches import make_minibatch
from scipy import stats
from torch.distributions import Normal

from scvae_ext.diagnostics._quantile_residuals import LARGEST_RESIDUAL, quantile_residuals
from scvae_ext.distributions import NegativeBinomial, Poisson, ZeroInflated
from scvae_ext.minibatch import Minibatch, SparseCounts
from scvae_ext.modules import VAE

MEAN = torch.tensor([0.05, 0.5, 3.0, 40.0])
THETA = torch.tensor([0.3, 1.0, 5.0, 100.0])
PI = torch.tensor([0.1, 0.5, 0.2, 0.01])
DISTRIBUTIONS = {
    "poisson": (Poisson(MEAN), stats.poisson(MEAN.double())),
    "nb": (NegativeBinomial(MEAN, THETA), stats.nbinom(THETA.double(), THETA.double() / (THETA + MEAN).double())),
}


@dataclass
class Inflated:
    base: object
    pi: np.ndarray

    def cdf(self, x):
        return np.where(x < 0, 0.0, self.pi + (1 - self.pi) * self.base.cdf(x))


DISTRIBUTIONS["zinb"] = (
    ZeroInflated(DISTRIBUTIONS["nb"][0], PI.logit()),
    Inflated(DISTRIBUTIONS["nb"][1], PI.double().numpy()),
)


def cells_of(counts):
    counts = torch.as_tensor(counts, dtype=torch.float32)
    blank = torch.zeros(len(counts), dtype=torch.int64)
    return Minibatch(
        SparseCounts.from_dense(counts), counts.sum(1), blank, blank, torch.zeros(len(counts), 0).long(), counts[:, :0]
    )


def residuals_of(px, counts, uniform):
    return quantile_residuals(VAE(np.shape(counts)[1], n_hidden=4), px, cells_of(counts), np.asarray(uniform, float))


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_residuals_are_normal_quantiles_between_two_values_of_the_cdf(name):
    px, reference = DISTRIBUTIONS[name]
    rng = np.random.default_rng(0)
    x, uniform = rng.integers(0, 12, (50, 4)), rng.random((50, 4))
    below, at = reference.cdf(x - 1), reference.cdf(x)
    expected = stats.norm.ppf(below + uniform * (at - below))
    inside = np.abs(expected) < 6
    np.testing.assert_allclose(residuals_of(px, x, uniform)[inside], expected[inside], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_counts_that_are_drawn_from_it_have_standard_normal_residuals(name):
    px, _ = DISTRIBUTIONS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        counts = px.sample((20_000,))
    residuals = residuals_of(px, counts, np.random.default_rng(0).random(counts.shape))
    for of_gene in residuals.T:
        assert stats.kstest(of_gene, "norm").pvalue > 1e-3


def test_the_tail_of_a_large_count_keeps_its_digits():
    # P(X >= 25) of a Poisson of rate four is 1e-12.
    mpmath.mp.dps = 50
    tails = [mpmath.gammainc(k, 0, 4, regularized=True) for k in (25, 26)]
    middle = (tails[0] + tails[1]) / 2
    found = residuals_of(Poisson(torch.tensor([4.0])), [[25.0]], [[0.5]])[0, 0]
    assert float(mpmath.ncdf(-found) / middle) == pytest.approx(1, rel=1e-5)


@pytest.mark.parametrize(
    ("px", "count", "expected"),
    [
        (Poisson(torch.tensor([1e-3])), 10_000.0, LARGEST_RESIDUAL),
        (Poisson(torch.tensor([1e6])), 0.0, -LARGEST_RESIDUAL),
        (NegativeBinomial(torch.tensor([1e-30]), torch.tensor([1e10])), 3.0, LARGEST_RESIDUAL),
        (NegativeBinomial(torch.tensor([1e6]), torch.tensor([1e10])), 1.0, -LARGEST_RESIDUAL),
    ],
)
@pytest.mark.parametrize("uniform", [0.0, 0.5, 1.0])
def test_impossible_counts_have_the_largest_residual(px, count, expected, uniform):
    assert residuals_of(px, [[count]], [[uniform]]) == expected


def test_a_negative_binomial_of_huge_inverse_dispersion_is_a_poisson():
    x, uniform = np.arange(12.0)[:, None], np.full((12, 1), 0.3)
    nb = residuals_of(NegativeBinomial(torch.tensor([4.0]), torch.tensor([1e9])), x, uniform)
    np.testing.assert_allclose(nb, residuals_of(Poisson(torch.tensor([4.0])), x, uniform), rtol=1e-6)


def test_log_normalised_values_are_standardised():
    minibatch = make_minibatch()
    vae = VAE(7, n_hidden=4, gene_likelihood="normal")
    px = Normal(torch.full((12, 7), 5.0), torch.linspace(0.5, 2, 7).expand(12, 7))
    counts = minibatch.counts.dense().double().numpy()
    values = np.log1p(1e4 * counts / counts.sum(1, keepdims=True))
    found = quantile_residuals(vae, px, minibatch, np.zeros((12, 7)))
    np.testing.assert_allclose(found, ((values - 5) / np.linspace(0.5, 2, 7)).clip(-8, 8), atol=1e-4)


@pytest.mark.usefixtures("unchecked")
def test_other_distributions_are_refused():
    px = torch.distributions.Poisson(torch.ones(7))
    with pytest.raises(TypeError, match=r"torch|Poisson"):
        quantile_residuals(VAE(7, n_hidden=4), px, make_minibatch(), np.zeros((12, 7)))
