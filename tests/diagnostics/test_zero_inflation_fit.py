"""The fits against scipy's negative binomial, numerical integration and general-purpose optimisers."""

import mpmath
import numpy as np
import pytest
import torch
from scipy import integrate, optimize, stats

from scvae_ext.diagnostics._zero_inflation_fit import GeneCounts, maximise

RNG = np.random.default_rng(0)
N_CELLS, N_GENES = 60, 8
LOG_MEAN = RNG.normal(0.3, 0.8, (N_CELLS, N_GENES))
DEVIATION = RNG.uniform(0.05, 0.4, (N_CELLS, N_GENES))
LOG_THETA = RNG.normal(0.5, 0.3, (2, N_GENES))
CATEGORY = np.arange(N_CELLS) % 2
COUNTS = RNG.poisson(RNG.gamma(2, np.exp(LOG_MEAN) / 2)) * (RNG.random((N_CELLS, N_GENES)) > 0.25)
POINT = np.column_stack([RNG.normal(0, 0.3, N_GENES), RNG.normal(0, 0.4, N_GENES), RNG.uniform(0, 0.6, N_GENES)])


def _data(deviation=DEVIATION, counts=COUNTS):
    matrices = (torch.from_numpy(np.asarray(matrix, dtype=np.float64)) for matrix in (counts, LOG_MEAN, deviation))
    return GeneCounts(*matrices, torch.from_numpy(LOG_THETA), torch.from_numpy(CATEGORY))


def _known_mean(gene, a, b, pi, cells=slice(None)):
    """Log-likelihood of a gene whose means are known but for the offset."""
    x = COUNTS[cells, gene]
    theta = np.exp(b + LOG_THETA[CATEGORY[cells], gene])
    base = stats.nbinom.pmf(x, theta, theta / (theta + np.exp(LOG_MEAN[cells, gene] + a)))
    return np.log(pi * (x == 0) + (1 - pi) * base).sum()


def test_probabilities_are_those_of_the_mixture_where_means_are_known():
    found = _data(np.zeros_like(DEVIATION)).log_prob(torch.from_numpy(POINT)).sum(0)
    np.testing.assert_allclose(found, [_known_mean(gene, *POINT[gene]) for gene in range(N_GENES)], rtol=1e-10)


def test_uncertain_means_are_integrated_over():
    found = _data().log_prob(torch.from_numpy(POINT)).exp().numpy()
    for cell, gene in [(0, 0), (1, 1), (2, 2), (7, 3), (31, 4)]:
        a, b, pi = POINT[gene]
        theta = np.exp(b + LOG_THETA[CATEGORY[cell], gene])
        log_mean = stats.norm(LOG_MEAN[cell, gene] + a, DEVIATION[cell, gene])

        def density(eta, x=COUNTS[cell, gene], theta=theta, log_mean=log_mean):
            return stats.nbinom.pmf(x, theta, theta / (theta + np.exp(eta))) * log_mean.pdf(eta)

        base, _ = integrate.quad(density, *log_mean.interval(1 - 1e-12))
        expected = pi * (COUNTS[cell, gene] == 0) + (1 - pi) * base
        assert found[cell, gene] == pytest.approx(expected, rel=2e-3)


def test_derivatives_are_those_of_mpmath():
    fit = _data(np.zeros_like(DEVIATION)).evaluate(torch.from_numpy(POINT))
    gene, n_cells = 2, N_CELLS

    def log_likelihood(a, b, pi):
        total = mpmath.mpf(0)
        for cell in range(n_cells):
            x, m = int(COUNTS[cell, gene]), mpmath.exp(LOG_MEAN[cell, gene] + a)
            theta = mpmath.exp(b + LOG_THETA[CATEGORY[cell], gene])
            base = mpmath.gamma(x + theta) / mpmath.gamma(theta) / mpmath.factorial(x)
            base *= (theta / (theta + m)) ** theta * (m / (theta + m)) ** x
            total += mpmath.log((pi if x == 0 else 0) + (1 - pi) * base)
        return total

    point = tuple(mpmath.mpf(value) for value in POINT[gene])
    assert fit.value[gene].item() == pytest.approx(float(log_likelihood(*point)), rel=1e-12)
    for i in range(3):
        order = tuple(int(i == k) for k in range(3))
        assert fit.gradient[gene, i].item() == pytest.approx(float(mpmath.diff(log_likelihood, point, order)), rel=1e-8)
        for j in range(3):
            order = tuple(int(i == k) + int(j == k) for k in range(3))
            expected = float(mpmath.diff(log_likelihood, point, order))
            assert fit.hessian[gene, i, j].item() == pytest.approx(expected, rel=1e-7, abs=1e-7)


def test_derivatives_where_means_are_uncertain_are_those_of_finite_differences():
    data, point = _data(), torch.from_numpy(POINT)
    fit = data.evaluate(point)
    torch.testing.assert_close(fit.value, data.log_prob(point).sum(0))
    for i in range(3):
        step = torch.zeros(3, dtype=torch.float64)
        step[i] = 1e-5
        above, below = data.evaluate(point + step), data.evaluate(point - step)
        torch.testing.assert_close((above.value - below.value) / 2e-5, fit.gradient[:, i], rtol=1e-6, atol=1e-6)
        slope = (above.gradient - below.gradient) / 2e-5
        torch.testing.assert_close(slope, fit.hessian[:, i], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("pi", [None, 0.0, 0.2])
def test_the_maximum_is_that_of_scipy(pi):
    start = torch.zeros(N_GENES, 3, dtype=torch.float64)
    start[:, 2] = 0.1 if pi is None else pi
    fit = maximise(_data(np.zeros_like(DEVIATION)), start, held=() if pi is None else (2,))
    for gene in range(N_GENES):
        bounds = [(-5, 5), (-7, 9), (0, 0.99) if pi is None else (pi, pi)]
        runs = [
            optimize.minimize(
                lambda p, gene=gene: -_known_mean(gene, *p), [0.0, b, start[gene, 2].item()], bounds=bounds
            )
            for b in (-1.0, 0.5)
        ]
        assert fit.value[gene].item() == pytest.approx(-min(run.fun for run in runs), abs=2e-4)
    if pi is not None:
        assert bool((fit.parameters[:, 2] == pi).all())


def test_a_weight_of_zero_leaves_a_cell_out():
    weight = torch.from_numpy((np.arange(N_CELLS) < 40).astype(float))
    fit = _data(np.zeros_like(DEVIATION)).evaluate(torch.from_numpy(POINT), weight)
    expected = [_known_mean(gene, *POINT[gene], slice(40)) for gene in range(N_GENES)]
    np.testing.assert_allclose(fit.value, expected, rtol=1e-10)


def test_genes_without_counts_or_with_enormous_ones_stay_finite():
    counts = COUNTS.copy()
    counts[:, 0] = 0
    counts[:, 1] *= 100_000
    counts[:, 2] = 1
    start = torch.zeros(N_GENES, 3, dtype=torch.float64)
    start[:, 2] = 0.1
    fit = maximise(_data(counts=counts), start)
    for values in (fit.value, fit.parameters, fit.gradient, fit.hessian):
        assert bool(values.isfinite().all())
    assert fit.value[0].item() == pytest.approx(0, abs=1e-3)
    assert fit.parameters[2, 2].item() == pytest.approx(0, abs=1e-3)
