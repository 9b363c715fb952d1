import mpmath
import numpy as np
import pytest
import torch
from known_model import KnownModel
from scipy import special, stats
from torch.distributions import Normal

from scvae_ext.diagnostics import evidence
from scvae_ext.diagnostics.rounded_normal import RoundedNormalLikelihood, on_scale_of_counts
from scvae_ext.likelihoods import make_likelihood
from scvae_ext.minibatch import Minibatch, SparseCounts


def _minibatch(counts, library_size):
    n_cells = len(counts)
    none = torch.zeros(n_cells, 0)
    zeros = torch.zeros(n_cells, dtype=torch.int64)
    size = torch.full((n_cells,), float(library_size))
    counts = SparseCounts.from_dense(torch.as_tensor(counts, dtype=torch.float32))
    return Minibatch(counts, size, zeros, zeros, none.long(), none)


def _log_prob(counts, loc, scale, library_size):
    """Return the log-probability of each count, a cell each, in double precision."""
    likelihood = RoundedNormalLikelihood(make_likelihood("normal", 1, 1))
    counts = np.reshape(counts, (-1, 1))
    px = Normal(torch.full(counts.shape, loc, dtype=torch.double), torch.full((1,), scale, dtype=torch.double))
    return likelihood.reconstruction(px, _minibatch(counts, library_size)).numpy()


def _exact(count, loc, scale, library_size):
    """Return the log-probability by mpmath."""
    edges = [mpmath.log(1 + mpmath.mpf(10**4) * (count + half) / library_size) for half in (-0.5, 0.5)]
    low, high = ((edge - mpmath.mpf(loc)) / mpmath.mpf(scale) for edge in edges)
    if count == 0:
        low = -mpmath.inf
    if low > 0:
        low, high = -high, -low
    return float(mpmath.log(mpmath.ncdf(high) - mpmath.ncdf(low)))


@pytest.mark.parametrize("library_size", [300, 4000])
@pytest.mark.parametrize(("loc", "scale"), [(0.2, 0.5), (1.5, 0.05), (3.0, 1.0), (-4.0, 2.0)])
def test_log_probabilities_are_those_of_intervals_far_into_the_tails(loc, scale, library_size):
    counts = [0, 1, 2, 3, 10, 100, 10_000, 1_000_000]
    with mpmath.workdps(60):
        # A mean of 3.0 stands for 0.6 counts and more: the tails reach far beyond 100 standard deviations.
        truth = [_exact(count, loc, scale, library_size) for count in counts]
    np.testing.assert_allclose(_log_prob(counts, loc, scale, library_size), truth, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize(("loc", "scale"), [(0.0, 0.3), (2.0, 0.5), (4.0, 0.2)])
def test_probabilities_sum_to_one(loc, scale):
    # Counts up to six standard deviations.
    last = int(np.expm1(loc + 6 * scale) * 1000 / 1e4) + 2
    total = np.exp(_log_prob(np.arange(last + 1), loc, scale, 1000)).sum()
    assert total == pytest.approx(1.0, abs=1e-6)


def test_the_gradient_is_that_of_the_log_probability():
    counts, scale, library_size = np.array([[0.0, 1.0, 50.0, 1e6]]), 0.4, 1000
    loc = torch.tensor([[0.5, 1.0, 6.0, 3.0]], dtype=torch.double, requires_grad=True)
    likelihood = RoundedNormalLikelihood(make_likelihood("normal", 1, 4))
    px = Normal(loc, torch.full((4,), scale, dtype=torch.double))
    likelihood.reconstruction(px, _minibatch(counts, library_size)).sum().backward()
    low, high = (
        (np.log1p(1e4 * (counts + half).clip(0) / library_size) - loc.detach().numpy()) / scale for half in (-0.5, 0.5)
    )
    low[counts == 0] = -np.inf
    # The last interval is so narrow, and so far off, that the derivative of the density serves.
    truth = 0.5 * (low + high) / scale
    near = slice(0, 3)
    difference = stats.norm.cdf(high) - stats.norm.cdf(low)
    truth[:, near] = ((stats.norm.pdf(low) - stats.norm.pdf(high))[:, near] / difference[:, near]) / scale
    np.testing.assert_allclose(loc.grad.numpy(), truth, rtol=1e-5)


def test_single_precision_is_enough():
    rng = np.random.default_rng(0)
    counts = rng.poisson(rng.gamma(0.3, 3, (20, 50)))
    loc, scale = rng.normal(1, 1, (3, 20, 50)), rng.uniform(0.2, 1, 50)
    likelihood = RoundedNormalLikelihood(make_likelihood("normal", 1, 50))
    single, double = (
        likelihood.reconstruction(
            Normal(torch.as_tensor(loc, dtype=dtype), torch.as_tensor(scale, dtype=dtype)), _minibatch(counts, 800)
        )
        for dtype in (torch.float32, torch.float64)
    )
    np.testing.assert_allclose(single, double, atol=1e-3, rtol=1e-5)


def test_draws_of_the_model_follow_the_probabilities():
    known = KnownModel([0.5, 2.0], noise=0.6)
    model = known.model(known.simulate("normal", 4000, size_sd=0.0), "normal")
    draws = model.posterior_predictive_sample().toarray()
    # Size factors of one stand for a library size of 10,000 in the formula.
    for gene, loc in enumerate(known.bias):
        probabilities = np.exp(_log_prob(np.arange(200), loc, 0.6, 10_000))
        observed = np.bincount(draws[:, gene].astype(int), minlength=200)
        common = 4000 * probabilities > 10
        expected = np.append(4000 * probabilities[common], 4000 * probabilities[~common].sum())
        observed = np.append(observed[common], observed[~common].sum())
        assert stats.chisquare(observed, expected * observed.sum() / expected.sum()).pvalue > 0.001


def test_other_models_are_left_as_they_are_and_the_normal_one_is_copied():
    known = KnownModel([0.5, 2.0], [[0.6], [0.4]], noise=0.6)
    adata = known.simulate("normal", 30, size_sd=0.0)
    model = known.model(adata, "nb")
    assert on_scale_of_counts(model) is model
    model = known.model(adata, "normal")
    before = model.module.likelihood
    scorer = on_scale_of_counts(model)
    assert model.module.likelihood is before
    assert isinstance(scorer.module.likelihood, RoundedNormalLikelihood)
    assert scorer.registry is model.registry


@pytest.mark.filterwarnings("ignore:The effective sample size")
def test_evidence_on_the_scale_of_counts_is_the_integral_over_the_latent_space():
    known = KnownModel([0.5, 2.0, 3.0], [[0.6], [0.4], [-0.5]], noise=0.6)
    adata = known.simulate("normal", 6, size_sd=0.5)
    scorer = on_scale_of_counts(known.model(adata, "normal"))
    found = evidence(scorer, indices=slice(None), n_samples=4000, n_optimisation_steps=50)
    z = np.linspace(-6, 6, 801)
    low, high = (
        (
            np.log1p((adata.X + half) / adata.obs["size"].to_numpy()[:, None])[None]
            - (z[:, None, None] * known.loadings.T + known.bias)
        )
        / 0.6
        for half in (-0.5, 0.5)
    )
    low[:, adata.X == 0] = -np.inf
    at_points = np.log(stats.norm.cdf(high) - stats.norm.cdf(low)).sum(-1)
    truth = special.logsumexp(at_points + stats.norm.logpdf(z)[:, None], axis=0) + np.log(z[1] - z[0])
    assert np.abs((found.log_evidence - truth) / found.standard_error).max() < 4
    assert found.standard_error.max() < 0.05
