import numpy as np
import pandas as pd
import pytest
from scipy.special import kolmogi
from scipy.stats import binom, chisquare, kstest, norm
from scipy.stats import t as student

from scvae_ext.analysis import Novelty, rank_among, replicate_test

N, R = 1000, 40


def jittered(p, n_replicates, seed=0):
    """Spread a discrete p over the interval that it stands for, after which it should be uniform."""
    return p - np.random.default_rng(seed).random(len(p)) / (n_replicates + 1)


def test_p_is_uniform_for_cells_drawn_as_their_replicates_are():
    rng = np.random.default_rng(0)
    replicates, score = rng.gamma(2.0, size=(R, N)), rng.gamma(2.0, size=N)
    _, _, p = replicate_test(score, np.zeros(N), replicates, np.zeros((R, N)))
    assert kstest(jittered(p, R), "uniform").pvalue > 0.01


def test_compares_at_the_same_total():
    """Replicates scatter about a total that the cell has exactly, and the score falls with the total."""
    rng = np.random.default_rng(1)
    log_total = rng.normal(7, 0.5, N)
    log_totals = log_total + rng.normal(0, 0.1, (R, N))
    replicates = -300 * log_totals + rng.normal(size=(R, N))
    score = -300 * log_total + rng.normal(size=N)
    expected, z, p = replicate_test(score, log_total, replicates, log_totals)
    # A line through R normal values at known places: its error at another place, and Student's distribution of a new
    # value's distance from it, of which the standard deviation is made one.
    centre = log_totals.mean(0)
    error = np.sqrt(1 / R + (log_total - centre) ** 2 / np.square(log_totals - centre).sum(0))
    assert kstest((expected + 300 * log_total) / error, "norm").pvalue > 1e-4
    assert kstest(z, student(R - 2, scale=np.sqrt((R - 4) / (R - 2))).cdf).pvalue > 1e-4
    assert kstest(jittered(p, R), "uniform").pvalue > 0.01
    # Without the regression the spread of totals would hide any difference below 30 nats. Five standard deviations
    # below, a fourth of 40 replicates is as low (p > 0.1) in less than one of 1,000 cells.
    at = np.linspace(-15, 5, 4001)
    beyond = binom.sf(3, R, norm.cdf(at)) @ norm.pdf(at, loc=-5, scale=np.sqrt(1 + np.mean(error**2))) * (at[1] - at[0])
    assert beyond < 1e-3
    n_beyond = (replicate_test(score - 5, log_total, replicates, log_totals)[2] > 0.1).sum()
    assert n_beyond <= binom.isf(1e-4, N, beyond)


@pytest.mark.parametrize("n_replicates", [10, 20])
@pytest.mark.parametrize("scatters", [True, False], ids=["total as those of replicates", "total in their midst"])
def test_few_replicates_are_no_less_exact(n_replicates, scatters):
    """The line is fitted to few cells: they lie closer to it than one that it was not fitted to."""
    rng, n = np.random.default_rng(4), 20000
    log_total = rng.normal(0, 0.2 * scatters, n)
    log_totals = rng.normal(0, 0.2, (n_replicates, n))
    replicates = -5 * log_totals + rng.normal(size=(n_replicates, n))
    score = -5 * log_total + rng.normal(size=n)
    _, z, p = replicate_test(score, log_total, replicates, log_totals)
    ranks = np.bincount(np.rint(p * (n_replicates + 1)).astype(int), minlength=n_replicates + 2)[1:]
    assert chisquare(ranks).pvalue > 1e-4
    freedom = n_replicates - 2
    kurtosis = 3 + 6 / (freedom - 4)
    assert abs(z.mean()) < 4 / np.sqrt(n)
    assert abs(z.var() - 1) < 4 * np.sqrt((kurtosis - 1) / n)
    # Three standard deviations below: about as often the lowest of all as with a line of which the error is known.
    centre = log_totals.mean(0)
    leverage = 1 / n_replicates + (log_total - centre) ** 2 / np.square(log_totals - centre).sum(0)
    known = rng.normal(-3 / np.sqrt(1 + leverage)) < rng.normal(size=(n_replicates, n)).min(0)
    lowest = replicate_test(score - 3, log_total, replicates, log_totals)[2] < 1.5 / (n_replicates + 1)
    assert lowest.mean() > known.mean() - 0.05


def test_a_cell_that_scores_as_all_its_replicates_do_is_not_improbable():
    _, z, p = replicate_test(np.full(3, -5.0), np.zeros(3), np.full((12, 3), -5.0), np.zeros((12, 3)))
    assert z.tolist() == [0.0] * 3
    assert p.tolist() == [1.0] * 3


def test_equal_totals_are_no_matter_of_a_slope():
    rng, n, n_replicates = np.random.default_rng(6), 20000, 12
    # The mean of equal logarithms is not always that logarithm.
    log_total = np.log(rng.integers(100, 9999, n))
    replicates, score = rng.normal(size=(n_replicates, n)), rng.normal(size=n)
    expected, z, p = replicate_test(score, log_total, replicates, np.tile(log_total, (n_replicates, 1)))
    np.testing.assert_allclose(expected, replicates.mean(0))
    np.testing.assert_allclose(p, (1 + (replicates <= score).sum(0)) / (n_replicates + 1))
    assert (
        kstest(z, student(n_replicates - 1, scale=np.sqrt((n_replicates - 3) / (n_replicates - 1))).cdf).pvalue > 1e-4
    )


def test_a_total_beyond_all_others_and_equal_totals_leave_numbers():
    rng = np.random.default_rng(5)
    log_totals, replicates = np.zeros((10, 4)), rng.normal(size=(10, 4))
    log_totals[0, 1:] = [1.0, 1e-9, 1e9]
    found = np.stack(replicate_test(np.full(4, -9.0), np.full(4, 0.5), replicates, log_totals))
    assert np.isfinite(found).all()
    # Where all totals are equal there is no slope, and the rank is that of the scores.
    assert found[2, 0] == 1 / 11


def test_z_says_by_how_much():
    rng = np.random.default_rng(2)
    expected, z, p = replicate_test(np.full(3, -7.0), np.zeros(3), rng.normal(3, 2, (4000, 3)), np.zeros((4000, 3)))
    # Standard errors of the mean and of the standard deviation of 4000 normal values; four of each.
    of_mean, of_sd = 2 / np.sqrt(4000), 1 / np.sqrt(2 * 4000)
    np.testing.assert_allclose(expected, 3, rtol=0, atol=4 * of_mean)
    np.testing.assert_allclose(z, -5, rtol=0, atol=4 * np.hypot(5 * of_sd, of_mean / 2))
    np.testing.assert_allclose(p, 1 / 4001)


def test_few_replicates_are_refused():
    with pytest.raises(ValueError, match="9 replicates are too few: 10 at least"):
        replicate_test(np.zeros(3), np.zeros(3), np.zeros((9, 3)), np.zeros((9, 3)))


def test_rank_is_the_share_that_is_no_larger():
    np.testing.assert_allclose(rank_among(np.array([0.5, 3.0, 9.0]), np.array([1.0, 3.0, 2.0, 4.0])), [0.2, 0.8, 1.0])


def test_rank_of_exchangeable_values_is_uniform():
    rng = np.random.default_rng(3)
    value, reference = rng.normal(size=N), rng.normal(size=3 * N)
    p = rank_among(value, reference)
    # All are ranked among the same: the distance from uniform is Kolmogorov's for two samples.
    at = np.sort(p)
    distance = np.maximum(np.arange(1, N + 1) / N - at, at - np.arange(N) / N).max()
    assert distance < kolmogi(1e-4) * np.sqrt(1 / N + 1 / len(reference)) + 1 / len(reference)


def test_says_it_in_words():
    low = np.array([0.01, 0.5, 0.5, 0.5])
    novelty = Novelty(low, low, low, low, low, low[::-1], pd.Index(list("abcd")))
    np.testing.assert_allclose(novelty.p, [0.02, 1, 1, 0.02])
    assert "25.0 % by their ELBO" in repr(novelty)
    assert "50.0 % by either" in repr(novelty)
    assert novelty.to_frame().index.tolist() == list("abcd")
