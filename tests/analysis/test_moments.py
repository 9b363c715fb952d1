from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from posterior_draws import draws_of, moments_of

from scvae_ext.analysis import GroupMoments, group_moments

THETA = 3.0


@pytest.fixture(scope="module")
def cells():
    """Thirty cells whose true expression is off by a factor of two, up or down, from what the model says."""
    rng = np.random.default_rng(0)
    expression = rng.dirichlet(np.ones(5), 30)
    factor = np.array([2.0, 0.5, 1.0, 1.0, 1.0])
    counts = rng.poisson(200 * expression * factor)
    return counts, expression


def _mean(counts, expression, theta, reference=None):
    """Estimate the mean directly from its definition."""
    mu = counts.sum(1, keepdims=True) * expression
    weight = theta / (theta + mu)
    counts = np.minimum(counts, mu + 3 * np.sqrt(mu + mu**2 / min(theta, 5.0)) + 1)
    reference = expression if reference is None else reference
    return reference.mean(0) * (weight * counts).sum(0) / (weight * mu).sum(0)


def test_mean_is_expression_corrected_by_the_ratio_of_counts(cells):
    counts, expression = cells
    moments = moments_of(counts, expression, np.zeros(30, int), THETA)
    np.testing.assert_allclose(moments.mean[0], _mean(counts, expression, THETA), rtol=1e-5)


def test_without_dispersion_and_variation_the_mean_is_that_of_the_counts():
    counts = np.random.default_rng(3).poisson(40.0, (30, 5))
    moments = moments_of(counts, np.full(counts.shape, 0.2), np.zeros(30, int))
    np.testing.assert_allclose(moments.mean[0], counts.sum(0) / counts.sum(), rtol=1e-5)


def test_a_factor_that_the_model_misses_does_not_bias_the_mean(cells):
    counts, expression = cells
    twice = np.where(np.arange(5) == 0, 2.0, 1.0)
    moments = moments_of(counts, expression * twice, np.zeros(30, int))
    plain = moments_of(counts, expression, np.zeros(30, int))
    np.testing.assert_allclose(moments.mean, plain.mean, rtol=1e-5)


def test_expression_in_other_batches_takes_the_ratio_from_the_observed_one(cells):
    counts, expression = cells
    reference = expression[:, ::-1].copy()
    moments = moments_of(counts, reference, np.zeros(30, int), THETA, fitted=expression)
    np.testing.assert_allclose(moments.mean[0], _mean(counts, expression, THETA, reference), rtol=1e-5)


def test_variance_of_a_mean_of_equal_cells_is_that_of_the_textbook():
    """With the same depth and expression in all cells the mean is that of their counts over the depth."""
    x = np.array([3, 8, 5, 2, 7])
    moments = moments_of(np.stack([x, 50 - x], axis=1), np.full((5, 2), 0.2), np.zeros(5, int))
    np.testing.assert_allclose(moments.mean[0, 0], x.mean() / 50)
    np.testing.assert_allclose(moments.variance[0, 0], x.var(ddof=1) / 5 / 50**2, rtol=1e-5)


def test_variance_agrees_with_the_jackknife(cells):
    counts, expression = cells
    moments = moments_of(counts, expression, np.zeros(30, int), THETA)
    left_out = np.stack(
        [_mean(np.delete(counts, cell, 0), np.delete(expression, cell, 0), THETA) for cell in range(30)]
    )
    jackknife = 29 / 30 * np.square(left_out - left_out.mean(0)).sum(0)
    np.testing.assert_allclose(moments.variance[0], jackknife, rtol=0.12)


def test_variance_is_that_over_repeated_experiments():
    rng = np.random.default_rng(1)
    means, variances = [], []
    for _ in range(400):
        expression = rng.dirichlet(np.array([4.0, 4.0, 40.0]), 40)
        rate = rng.gamma(2.0, 1 / 2.0, expression.shape) * expression
        moments = moments_of(rng.poisson(rng.integers(50, 200, (40, 1)) * rate), expression, np.zeros(40, int), 2.0)
        means.append(moments.mean[0])
        variances.append(moments.variance[0])
    # The standard deviation of a variance from 400 draws is 7%.
    np.testing.assert_allclose(np.mean(variances, axis=0), np.var(means, axis=0), rtol=0.25)


def test_neither_chunks_nor_merging_change_the_sums(cells):
    counts, expression = cells
    group = np.arange(30) % 3
    whole = moments_of(counts, expression, np.zeros(30, int), THETA)
    parts = moments_of(counts, expression, group, THETA, chunks=7)
    merged = parts.merge(np.ones((1, 3)))
    for field in fields(GroupMoments):
        np.testing.assert_allclose(getattr(merged, field.name), getattr(whole, field.name), rtol=1e-5)


def test_raw_counts_are_those_of_the_group(cells):
    counts, expression = cells
    group = np.arange(30) % 2
    moments = moments_of(counts, expression, group, chunks=2)
    ones = counts[group == 1]
    np.testing.assert_allclose(moments.counts[1], ones.sum(0))
    np.testing.assert_allclose(moments.n_expressing[1], (ones > 0).sum(0))
    np.testing.assert_allclose(moments.normalized[1], (1e4 * ones / ones.sum(1, keepdims=True)).sum(0), rtol=1e-5)
    assert moments.n_cells.tolist() == [15, 15]


def test_single_cells_with_very_many_counts_do_not_decide():
    rng = np.random.default_rng(2)
    expression = np.full((200, 4), 0.25)
    counts = rng.poisson(10.0, (200, 4))
    plain = moments_of(counts, expression, np.zeros(200, int), THETA)
    counts[0, 0] = 3000
    # Every gene's share falls with the depth of that one cell, and no further.
    outlier = moments_of(counts, expression, np.zeros(200, int), THETA)
    assert outlier.mean[0, 0] == pytest.approx(plain.mean[0, 0], rel=0.15)
    assert outlier.counts[0, 0] == counts[:, 0].sum()


@pytest.mark.parametrize("factor", [3.0, 10.0, 40.0])
def test_cells_that_have_far_more_than_the_model_expects_are_not_cut(factor):
    rng = np.random.default_rng(4)
    expression = np.full((300, 40), 1 / 40)
    rate = 60 * expression * np.where(np.arange(40) == 0, factor, 1.0)
    counts = rng.poisson(rate * rng.gamma(THETA, 1 / THETA, rate.shape))
    moments = moments_of(counts, expression, np.zeros(300, int), THETA)
    of_counts = counts.sum(0) / (counts.sum() / 40)
    np.testing.assert_allclose((moments.mean[0] * 40)[[0]], of_counts[[0]], rtol=0.06)
    # The spread between cells is that of the counts as well.
    plain = np.var(counts[:, 0] / (counts.sum(1) / 40), ddof=1) / 300
    assert moments.variance[0, 0] * 40**2 == pytest.approx(plain, rel=0.4)


def test_a_single_cell_has_no_variance():
    counts = np.array([[3, 1], [2, 5], [1, 1]])
    moments = moments_of(counts, np.full((3, 2), 0.5), [0, 1, 1])
    assert np.isnan(moments.variance[0]).all()
    assert np.isfinite(moments.variance[1]).all()


def test_a_factor_that_all_genes_of_a_group_share_is_taken_out():
    """One group has half as much of everything as the model says, and then twice as much of one gene of six."""
    rng = np.random.default_rng(4)
    expression = np.full((2000, 6), 1 / 6)
    group = np.arange(2000) % 2
    depth = 600.0
    rate = depth * expression * np.where(group == 0, 0.5, 1.0)[:, None]
    rate[group == 0, 3] *= 2
    counts = rng.poisson(rate)
    draws = draws_of(counts, expression)
    of_known_depth = (replace(chunk, depth=torch.full((len(counts), 1), depth)) for chunk in draws)
    moments = group_moments(of_known_depth, group, 2, 6)
    factor = np.array([1.0, 1.0, 1.0, 2.0, 1.0, 1.0])
    np.testing.assert_allclose(moments.mean[0] * 6, factor * 0.5, rtol=0.01)
    without = moments.without_common_factor()
    np.testing.assert_allclose(without.mean[0] * 6, factor, rtol=0.01)
    np.testing.assert_allclose(without.mean[1] * 6, 1.0, rtol=0.01)
    # In proportion to the means, errors are what they were.
    np.testing.assert_allclose(without.variance / without.mean**2, moments.variance / moments.mean**2, rtol=1e-9)
    few = moments.of_genes(np.arange(6) < 4)
    np.testing.assert_array_equal(few.without_common_factor().mean, moments.mean[:, :4])


def test_cells_without_a_measurement_count_for_nothing(cells):
    counts, expression = cells
    measured = np.ones(counts.shape, dtype=bool)
    measured[10:, 2] = False
    seen = np.where(measured, counts, 0)
    draws = (
        replace(chunk, depth=torch.full((30, 1), 200.0), measured=torch.from_numpy(measured))
        for chunk in draws_of(seen, expression, THETA)
    )
    moments = group_moments(draws, np.zeros(30, int), 1, 5)
    assert moments.n_measured[0].tolist() == [30, 30, 10, 30, 30]
    mu = 200 * expression
    weight = THETA / (THETA + mu)
    cut = np.minimum(counts, mu + 3 * np.sqrt(mu + mu**2 / THETA) + 1)
    ratio = (weight * cut)[:10, 2].sum() / (weight * mu)[:10, 2].sum()
    np.testing.assert_allclose(moments.mean[0, 2], expression[:, 2].mean() * ratio, rtol=1e-5)
