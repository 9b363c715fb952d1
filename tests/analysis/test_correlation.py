import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from scvae_ext.analysis import pearson_correlation, spearman_correlation


@pytest.fixture
def draws():
    rng = np.random.default_rng(0)
    shared = rng.normal(size=(5000, 2))
    values = shared @ rng.normal(size=(2, 6)) + rng.normal(size=(5000, 6))
    return np.exp(values).astype(np.float32)


def in_chunks(values, sizes=(1, 700, 3, 1296)):
    tensor, start = torch.from_numpy(values), 0
    for size in sizes:
        yield tensor[start : start + size]
        start += size
    yield tensor[start:]


def test_pearson_is_that_of_numpy_on_the_whole(draws):
    found = pearson_correlation(in_chunks(draws))
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, np.corrcoef(draws.astype(np.float64), rowvar=False), rtol=0, atol=1e-12)


def test_pearson_is_not_lost_far_from_zero(draws):
    far = draws.astype(np.float64) + 1e7
    expected = np.corrcoef(draws.astype(np.float64), rowvar=False)
    np.testing.assert_allclose(pearson_correlation(in_chunks(far)), expected, rtol=0, atol=1e-7)


def test_spearman_is_that_of_scipy_where_each_value_has_an_interval(draws):
    few = draws[:1500]
    found = spearman_correlation(lambda: in_chunks(few), in_chunks(few))
    np.testing.assert_allclose(found, spearmanr(few).statistic, rtol=0, atol=1e-10)


def coarse_spearman(values, sample):
    """Rank correlation of the intervals between the sample's values that the values lie in."""
    intervals = [np.searchsorted(np.sort(of_gene), each) for of_gene, each in zip(sample.T, values.T, strict=True)]
    return spearmanr(np.transpose(intervals)).statistic


def test_spearman_counts_ties_as_scipy_does(draws):
    counts = np.floor(draws)
    # Counts that the sample lacks share an interval.
    found = spearman_correlation(lambda: in_chunks(counts), in_chunks(counts[:100]), 400)
    np.testing.assert_allclose(found, coarse_spearman(counts, counts[:100]), rtol=0, atol=1e-10)
    whole = spearman_correlation(lambda: in_chunks(counts), in_chunks(counts), 5000)
    np.testing.assert_allclose(whole, spearmanr(counts).statistic, rtol=0, atol=1e-10)


def lost_to_intervals(shares, n_draws):
    r"""Bound the change of a rank correlation that comes of ties within intervals that hold these shares of draws.

    A rank is that of its interval and a rest whose standard deviation, over that of all ranks, is
    d = sqrt(sum shares^3). The correlation loses the mean product of either gene's rest with the other gene's rank.
    Within an interval the other's expected rank is near linear, with a slope of one at most in standard deviations, and
    the mean product d^2 at most; about it, it scatters by d / sqrt(n_draws). The largest of 15 pairs is beyond 4.5
    standard deviations once in 10,000 times.
    """
    d = np.sqrt(np.sum(np.asarray(shares) ** 3))
    return 2 * d**2 + 4.5 * d * np.sqrt(2 / n_draws)


@pytest.mark.parametrize("n_intervals", [2048, 64])
def test_spearman_is_close_with_fewer_intervals_than_draws(draws, n_intervals):
    found = spearman_correlation(lambda: in_chunks(draws), in_chunks(draws), n_intervals)
    difference = np.abs(found - spearmanr(draws).statistic).max()
    assert 0 < difference < lost_to_intervals(np.full(n_intervals, 1 / n_intervals), len(draws))


def test_spearman_needs_but_a_sample_to_place_intervals(draws):
    sample = draws[::10]
    found = spearman_correlation(lambda: in_chunks(draws), in_chunks(sample, ()))
    np.testing.assert_allclose(found, coarse_spearman(draws, sample), rtol=0, atol=1e-10)
    # Shares between values of a sample are those of exponential variates: six times the sum of cubes of equal ones.
    d2 = 6 / len(sample) ** 2
    bound = 2 * d2 + 4.5 * np.sqrt(d2 * 2 / len(draws))
    np.testing.assert_allclose(found, spearmanr(draws).statistic, rtol=0, atol=bound)


def test_a_gene_that_does_not_vary_has_no_correlation(draws):
    draws[:, 2] = 0.1
    for found in (
        pearson_correlation(in_chunks(draws)),
        spearman_correlation(lambda: in_chunks(draws), in_chunks(draws)),
    ):
        assert np.isnan(found[2]).all()
        assert np.isnan(found[:, 2]).all()
        assert not np.isnan(np.delete(np.delete(found, 2, 0), 2, 1)).any()


def test_one_draw_is_too_few(draws):
    with pytest.raises(ValueError, match="two draws at least, and there are 1"):
        pearson_correlation([torch.from_numpy(draws[:1])])
