import numpy as np
import pytest
from posterior_draws import moments_of
from scipy import stats

from scvae_ext.analysis import CountContrast
from scvae_ext.analysis.contrasts import effective_exposure
from scvae_ext.analysis.estimates import pooled

LARGE = 1e9


def _contrast(counts1, counts2, exposure1=1.0, exposure2=1.0, freedom=LARGE):
    values = (counts1, counts2, exposure1, exposure2, freedom)
    return CountContrast(*(np.atleast_1d(np.asarray(value, dtype=float)) for value in values))


@pytest.mark.parametrize(("one", "two", "ratio"), [(3, 7, 1.0), (0, 5, 2.0), (40, 40, 0.1), (0, 0, 3.0)])
def test_with_many_cells_the_likelihood_is_binomial(one, two, ratio):
    change = np.array([[-3.0, -0.5, 0.0, 1.0, 4.0]])
    share = ratio * 2.0**change / (ratio * 2.0**change + 1)
    expected = stats.binom.logpmf(one, one + two, share)
    highest = stats.binom.logpmf(one, one + two, one / max(one + two, 1))
    computed = _contrast(one, two, ratio).log_likelihood(change)
    np.testing.assert_allclose(computed, expected - highest, atol=1e-5)


def test_with_few_cells_and_many_counts_it_is_a_t_distribution():
    freedom, counts = 4.0, 1e8
    contrast = _contrast(counts, counts, freedom=freedom)
    deviations = np.array([[0.0, 1.0, 3.0, 10.0]])
    computed = contrast.log_likelihood(deviations * contrast.standard_error[:, None])
    expected = stats.t.logpdf(deviations, freedom) - stats.t.logpdf(0, freedom)
    np.testing.assert_allclose(computed, expected, atol=1e-3)


def test_estimate_is_the_log_ratio_of_rates():
    assert _contrast(8e6, 1e6, 2.0, 1.0).estimate[0] == pytest.approx(2.0, abs=1e-4)


def test_genes_that_nobody_expresses_say_nothing():
    contrast = _contrast(0, 0, 1.0, 50.0)
    assert np.isfinite(contrast.estimate).all()
    assert np.allclose(contrast.log_likelihood(np.linspace(-20, 20, 9)[None]), 0)


def _poisson(rng, overdispersion=None, n_cells=400, n_genes=200):
    expression = np.full((n_cells, n_genes), 1 / n_genes)
    rate = 200 * expression
    if overdispersion is not None:
        rate = rate * rng.gamma(1 / overdispersion, overdispersion, rate.shape)
    return rng.poisson(rate), expression


def test_poisson_counts_count_one_each():
    counts, expression = _poisson(np.random.default_rng(0))
    moments = moments_of(counts, expression, np.arange(400) % 2)
    ratio = effective_exposure(pooled(moments)) / moments.exposure
    # Given the total of a cell, a gene's count is binomial, with a variance below its mean by one part in 200.
    assert np.median(ratio) == pytest.approx(1.0, abs=0.03)
    assert ratio.std() < 0.15


def test_overdispersed_counts_count_less():
    rng = np.random.default_rng(1)
    counts, expression = _poisson(rng, overdispersion=3.0)
    # A model that knows of it expects what there is, or a little more, as the largest counts are cut.
    known = moments_of(counts, expression, np.arange(400) % 2, theta=1 / 3)
    assert 1.0 < np.median(effective_exposure(pooled(known)) / known.exposure) < 1.4
    # One that does not is corrected.
    unknown = moments_of(counts, expression, np.arange(400) % 2)
    assert np.median(effective_exposure(pooled(unknown)) / unknown.exposure) < 0.5


def test_overdispersion_is_averaged_over_cells_that_show_it():
    """Each gene's ratio of variances weighs by the cells that express it, the common one and Poisson by ten cells."""
    rng = np.random.default_rng(5)
    group = (np.arange(60) >= 40).astype(int)
    counts = rng.poisson(rng.gamma(1.0, [[0.02, 0.3, 2.0, 20.0]], (60, 4))) + np.array([0, 0, 0, 1])
    counts[[0, 59, 59], [0, 0, 1]] = 1
    moments = moments_of(counts, np.full((60, 4), 0.25), group)
    ratio = moments.variance * moments.exposure / moments.mean
    n_expressing = np.stack([(counts[group == each] > 0).sum(0) for each in (0, 1)])
    cells = np.minimum(n_expressing, np.array([[39], [19]]))
    common = ((ratio * cells).sum(0) + 10) / (cells.sum(0) + 10)
    expected = (ratio * cells + 10 * common) / (cells + 10)
    assert (cells < [[39], [19]]).any()
    np.testing.assert_allclose(moments.exposure / effective_exposure(pooled(moments)), expected, rtol=1e-6)


def test_freedom_is_that_of_welch_and_satterthwaite():
    """Each variance has the freedom of the group's cells and of those that the prior stands for."""
    rng = np.random.default_rng(6)
    group = (np.arange(60) >= 45).astype(int)
    moments = moments_of(rng.poisson(3.0, (60, 5)), np.full((60, 5), 0.2), group)
    variance = 1 / effective_exposure(pooled(moments))
    of_group = np.array([[44 + 10], [14 + 10]])
    expected = variance.sum(0) ** 2 / (variance**2 / of_group).sum(0)
    np.testing.assert_allclose(CountContrast.of(pooled(moments)).freedom, expected)


def test_evidence_against_no_difference_is_as_rare_as_it_says():
    rng = np.random.default_rng(2)
    counts, expression = _poisson(rng, overdispersion=1.0, n_cells=120, n_genes=2000)
    group = (np.arange(120) >= 30).astype(int)
    contrast = CountContrast.of(pooled(moments_of(counts, expression, group, theta=1.0)))
    log_likelihood = contrast.log_likelihood(np.zeros((2000, 1)))[:, 0]
    deviance = contrast.freedom * np.expm1(-2 * log_likelihood / (contrast.freedom + 1))
    probability = stats.f.sf(deviance, 1, contrast.freedom)
    assert np.mean(probability < 0.05) == pytest.approx(0.05, abs=0.02)
    assert np.mean(probability < 0.01) == pytest.approx(0.01, abs=0.008)


def test_groups_of_two_cells_stay_finite():
    counts = np.array([[3, 0, 1], [2, 0, 5], [1, 0, 1], [0, 0, 2]])
    contrast = CountContrast.of(pooled(moments_of(counts, np.full((4, 3), 1 / 3), [0, 0, 1, 1])))
    assert np.isfinite(contrast.log_likelihood(np.array([[-1.0, 0.0, 1.0]] * 3))).all()
    assert (contrast.freedom < 25).all()
