"""Profiles, intervals and likelihood ratios on counts that are drawn with the means that the fits are told."""

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from scipy import optimize, stats

from scvae_ext.diagnostics._gene_predictions import GenePredictions
from scvae_ext.diagnostics._zero_inflation_fit import DISPERSION, OFFSET
from scvae_ext.diagnostics._zero_inflation_fit import PI as SHARE
from scvae_ext.diagnostics._zero_inflation_profile import PI_GRID, GeneProfiles, _at, likelihood_ratio, profile_genes

N_CELLS, N_GENES = 200, 240
PI = np.where(np.arange(N_GENES) % 2, 0.3, 0.0)
THETA = 1.5


def _simulate(seed=0, n_cells=N_CELLS, shift=0.0):
    """Draw counts whose log means are told with an error of known size, and a factor that is not told."""
    rng = np.random.default_rng(seed)
    log_mean = rng.normal(np.linspace(0.0, 2.5, N_GENES) + shift, 0.6, (n_cells, N_GENES))
    deviation = np.full(log_mean.shape, 0.25)
    mean = np.exp(0.4 + log_mean + deviation * rng.standard_normal(log_mean.shape))
    counts = rng.poisson(rng.gamma(THETA, mean / THETA))
    counts[rng.random(counts.shape) < PI] = 0
    return GenePredictions(
        sp.csr_matrix(counts.astype(np.float32)),
        log_mean.astype(np.float32),
        deviation.astype(np.float32),
        np.zeros((1, N_GENES)),
        np.zeros(n_cells, dtype=np.int64),
    )


@pytest.fixture(scope="module")
def predictions():
    return _simulate()


@pytest.fixture(scope="module")
def profiles(predictions):
    return profile_genes(predictions, 0.95, 0)


def _select(predictions, genes):
    return GenePredictions(
        predictions.counts[:, genes],
        predictions.log_mean[:, genes],
        predictions.deviation[:, genes],
        predictions.log_theta[:, genes],
        predictions.category,
    )


def test_without_inflation_the_likelihood_ratio_follows_its_null_distribution(profiles):
    ratio = profiles.likelihood_ratio[PI == 0]
    n = len(ratio)
    # A half has none at all, and of the rest the ratio is chi squared with one degree of freedom.
    assert np.mean(ratio < 1e-6) == pytest.approx(0.5, abs=4 * np.sqrt(0.25 / n))
    p_value = 0.5 * stats.chi2.sf(ratio, 1)
    for size in (0.05, 0.2):
        assert np.mean(p_value < size) == pytest.approx(size, abs=4 * np.sqrt(size * (1 - size) / n))


def test_intervals_hold_the_truth_at_their_level(profiles):
    is_held = (profiles.lower <= PI) & (profiles.upper >= PI)
    n = np.count_nonzero(PI > 0)
    assert np.mean(is_held[PI > 0]) == pytest.approx(0.95, abs=4 * np.sqrt(0.95 * 0.05 / n))
    # On the boundary an interval of two sides holds too often.
    assert np.mean(is_held[PI == 0]) == pytest.approx(0.975, abs=4 * np.sqrt(0.975 * 0.025 / n))


def test_estimates_centre_on_the_truth(profiles):
    found = profiles.pi[PI > 0]
    assert np.mean(found) == pytest.approx(0.3, abs=4 * np.std(found) / np.sqrt(len(found)))
    assert np.all((profiles.lower <= profiles.pi) & (profiles.pi <= profiles.upper))


def test_a_lower_level_gives_shorter_intervals_of_its_own_coverage(predictions):
    genes = np.flatnonzero(PI)[30:90]
    found = profile_genes(_select(predictions, genes), 0.5, 0)
    is_held = (found.lower <= 0.3) & (found.upper >= 0.3)
    assert np.mean(is_held) == pytest.approx(0.5, abs=4 * np.sqrt(0.25 / len(genes)))


def test_profile_limits_and_curvature_are_those_of_brute_force(predictions, profiles):
    # Means are known here, so that scipy's negative binomial is the truth.
    genes = [131, 200]
    data = _select(predictions, genes)
    exact = GenePredictions(data.counts, data.log_mean, np.zeros_like(data.deviation), data.log_theta, data.category)
    found = profile_genes(exact, 0.95, 0)
    for gene in range(2):
        x, eta = data.counts[:, gene].toarray().ravel(), data.log_mean[:, gene].astype(float)

        def best(pi, x=x, eta=eta):
            def loss(point):
                theta = np.exp(point[1])
                base = stats.nbinom.pmf(x, theta, theta / (theta + np.exp(eta + point[0])))
                return -np.log(pi * (x == 0) + (1 - pi) * base).sum()

            run = optimize.minimize(loss, [0.4, 0.3], method="BFGS", options={"gtol": 1e-7})
            return -run.fun, run.x[0]

        top = optimize.minimize_scalar(
            lambda pi: -best(pi)[0], bounds=(0, 0.9), method="bounded", options={"xatol": 1e-6}
        )
        highest = max(-top.fun, best(0.0)[0])
        np.testing.assert_allclose(
            found.profile[gene, :8], [best(pi)[0] - highest for pi in PI_GRID[:8]], atol=2e-3, rtol=1e-4
        )

        def excess(pi, highest=highest, best=best):
            return 2 * (highest - best(pi)[0]) - stats.chi2.ppf(0.95, 1)

        assert found.upper[gene] == pytest.approx(optimize.brentq(excess, top.x, 0.95, xtol=1e-6), abs=1e-3)
        if excess(0.0) > 0:
            assert found.lower[gene] == pytest.approx(optimize.brentq(excess, 0.0, top.x, xtol=1e-6), abs=1e-3)
        else:
            assert found.lower[gene] == 0
        if top.x > 0.05:
            h = 0.01
            (below, a_below), (middle, _), (above, a_above) = (best(found.pi[gene] + step) for step in (-h, 0, h))
            assert found.curvature[gene] == pytest.approx(-(above - 2 * middle + below) / h**2, rel=0.02)
            assert found.slope[gene] == pytest.approx((a_above - a_below) / (2 * h), rel=0.02)
    assert found.lower[0] > 0


def test_cross_validated_gain_is_positive_where_there_is_inflation_and_not_elsewhere(profiles):
    is_clear = (PI > 0) & (np.arange(N_GENES) > N_GENES // 2)
    assert np.mean(profiles.gain[is_clear] > 0) > 0.9
    null = profiles.gain[PI == 0]
    assert null.mean() < 0
    assert abs(null.mean()) < 3 / N_CELLS
    np.testing.assert_allclose(profiles.gain_of_cells.mean(), profiles.gain.sum(), rtol=1e-9)


def test_rare_genes_have_wide_intervals():
    found = profile_genes(_select(_simulate(shift=-4.5), slice(0, 40)), 0.95, 0)
    assert np.median(found.upper - found.lower) > 0.5
    assert np.isfinite(found.profile).all()


def test_the_ratio_alone_is_that_of_the_profile(predictions, profiles):
    ratio, pi = likelihood_ratio(predictions)
    np.testing.assert_allclose(ratio, profiles.likelihood_ratio, atol=0.01)
    is_clear = profiles.likelihood_ratio > 1
    np.testing.assert_allclose(pi[is_clear], profiles.pi[is_clear], atol=0.01)


def test_parts_are_joined_gene_by_gene(predictions, profiles):
    first, second = (profile_genes(_select(predictions, genes), 0.95, 0) for genes in (slice(0, 20), slice(20, 40)))
    joined = GeneProfiles.join([first, second])
    np.testing.assert_allclose(joined.pi, profiles.pi[:40], atol=1e-6)
    assert joined.profile.shape == (40, len(PI_GRID))
    np.testing.assert_allclose(joined.gain_of_cells, first.gain_of_cells + second.gain_of_cells)


def test_the_error_of_a_gain_is_that_of_a_mean_over_cells(predictions):
    found = profile_genes(_select(predictions, [201]), 0.95, 0)
    gain = found.gain_of_cells
    assert found.gain[0] == pytest.approx(gain.mean())
    assert found.gain_error[0] == pytest.approx(np.sqrt(gain.var(ddof=1) / len(gain)))


def test_another_share_of_zeros_starts_from_the_same_expected_counts():
    parameters = torch.tensor([[0.3, 1.0, 0.2], [-1.0, 0.0, 0.0]], dtype=torch.float64)
    moved = _at(parameters, 0.6)
    expected = [(values[:, OFFSET].exp() * (1 - values[:, SHARE])).tolist() for values in (parameters, moved)]
    np.testing.assert_allclose(*expected)
    assert moved[:, SHARE].tolist() == [0.6, 0.6]
    assert torch.equal(moved[:, DISPERSION], parameters[:, DISPERSION])
