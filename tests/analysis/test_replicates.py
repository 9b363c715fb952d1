import numpy as np
import pytest
from posterior_draws import moments_of
from scipy import stats
from scipy.optimize import brentq
from scipy.special import digamma, polygamma

from scvae_ext.analysis import Comparison, SampleContrast, change_table
from scvae_ext.analysis.contrasts import effective_exposure
from scvae_ext.analysis.estimates import pooled
from scvae_ext.analysis.replicates import _inverse_trigamma, _moderation

N_GENES, N_CELLS = 300, 40


def _simulate(rng, n_samples, between, change=0.0, per_group=False):
    """Count cells of two groups in samples whose expression differs by a log2 standard deviation."""
    share = np.full((2, N_GENES), 1 / N_GENES)
    # As much goes up as down, so that the share of the other genes stays.
    changed = N_GENES // 10
    high, low = 2 * 2.0**change / (2.0**change + 1), 2 / (2.0**change + 1)
    share[0, :changed] *= np.where(np.arange(changed) < changed // 2, high, low)
    share[1, :changed] *= np.where(np.arange(changed) < changed // 2, low, high)
    counts, group, sample = [], [], []
    for each in range(n_samples):
        own = between * rng.standard_normal((2, N_GENES))
        for which in (0, 1):
            # Samples of their own differ by group; shared ones differ in how they respond.
            name = 2 * each + which if per_group else each
            rate = 600 * share[which] * 2.0 ** own[which]
            counts.append(rng.poisson(rng.gamma(2.0, rate / 2.0, (N_CELLS, N_GENES))))
            group += [which] * N_CELLS
            sample += [name] * N_CELLS
    counts = np.concatenate(counts)
    units, of_cell = np.unique(np.stack([group, sample], 1), axis=0, return_inverse=True)
    moments = moments_of(counts, np.full(counts.shape, 1 / N_GENES), of_cell.ravel(), theta=2.0)
    return moments, Comparison("a", "b", units[:, 0] == 0, units[:, 0] == 1), units[:, 1]


def _flagged(moments, comparison, sample):
    names = [str(each) for each in range(sample.max() + 1)] if sample is not None else ()
    table = change_table(moments, comparison, delta=0.25, fdr_target=0.05, sample=sample, sample_names=names)
    return table["is_de_fdr_0.05"].to_numpy()


@pytest.fixture(scope="module")
def null():
    return _simulate(np.random.default_rng(0), 5, between=0.7, per_group=True)


def test_differences_between_samples_are_not_taken_for_differences_between_groups(null):
    moments, comparison, sample = null
    assert _flagged(moments, comparison, sample).sum() == 0
    # With cells as replicates they are: pseudoreplication.
    assert _flagged(moments, comparison, None).sum() > N_GENES / 10


@pytest.mark.parametrize("per_group", [True, False])
def test_evidence_against_no_difference_is_as_rare_as_it_says(per_group):
    rng = np.random.default_rng(1)
    statistics = []
    for _ in range(3):
        moments, comparison, sample = _simulate(rng, 4, between=0.4, per_group=per_group)
        contrast = _contrast(moments, comparison, sample, paired=not per_group)
        statistics.append(contrast.difference / contrast.error)
    # Genes of one simulation are independent: 900 values.
    rate = np.mean(np.abs(np.concatenate(statistics)) > 2.1)
    assert 0.015 < rate < 0.075


def _contrast(moments, comparison, sample, paired):
    def rows(members):
        return moments.merge(np.eye(len(sample))[members])

    return SampleContrast.from_moments(rows(comparison.one), rows(comparison.two), paired=paired)


def _samples_of_two_groups():
    """Twice five samples of 8 to 60 cells, of genes that have from less than one to hundreds of counts in a sample."""
    rng = np.random.default_rng(7)
    share = np.exp(rng.normal(0, 2.0, N_GENES))
    share /= share.sum()
    unit = np.repeat(np.arange(10), [8, 15, 60, 20, 30, 40, 10, 25, 12, 50])
    # Genes differ in how much they vary between samples.
    sd = 0.5 * np.sqrt(rng.chisquare(4, N_GENES) / 4)
    rate = 600 * share * 2.0 ** (sd * rng.standard_normal((10, N_GENES)))[unit]
    counts = rng.poisson(rng.gamma(2.0, rate / 2.0))
    return moments_of(counts, np.broadcast_to(share, counts.shape).copy(), unit, theta=2.0)


@pytest.mark.parametrize("paired", [True, False])
def test_difference_error_and_freedom_follow_the_formula(paired):
    """Logarithms with half a count more, weighted by their variances, with a spread that is moderated as in limma."""
    moments = _samples_of_two_groups()
    found = SampleContrast.from_moments(moments.merge(np.eye(10)[:5]), moments.merge(np.eye(10)[5:]), paired=paired)

    exposure = effective_exposure(pooled(moments))
    shifted = moments.mean + 0.5 / np.minimum(exposure[:5].mean(0), exposure[5:].mean(0))
    y, v = np.log2(shifted), 1 / (shifted * exposure * np.log(2) ** 2)
    groups = [(y[:5] - y[5:], v[:5] + v[5:])] if paired else [(y[:5], v[:5]), (y[5:], v[5:])]
    freedom = 4 if paired else 8
    enough = (moments.mean * exposure).mean(0) >= 5
    assert 20 < enough.sum() < N_GENES - 20

    def spread(between):
        total = np.zeros(N_GENES)
        for values, counting in groups:
            weights = 1 / (counting + between)
            total += (weights * (values - np.average(values, axis=0, weights=weights)) ** 2).sum(0)
        return total / freedom

    median = stats.chi2(freedom).median() / freedom
    between = brentq(lambda each: np.median(spread(each)[enough]) - median, 1e-6, 25)
    relative = spread(between)
    log = np.log(relative[enough])
    extra = log.var(ddof=1) - polygamma(1, freedom / 2)
    prior_freedom = 2 * brentq(lambda each: polygamma(1, each) - extra, 1e-3, 49)
    offset = digamma(prior_freedom / 2) - np.log(prior_freedom / 2) - digamma(freedom / 2) + np.log(freedom / 2)
    prior = max(np.exp(log.mean() + offset), 1)
    moderated = (prior_freedom * prior + freedom * relative) / (prior_freedom + freedom)
    weights = [np.minimum(1 / (c + between), 2 * np.median(1 / (c + between), axis=0)) for _, c in groups]
    means = [np.average(values, axis=0, weights=h) for (values, _), h in zip(groups, weights, strict=True)]

    np.testing.assert_allclose(found.difference, means[0] if paired else means[0] - means[1], atol=1e-6)
    np.testing.assert_allclose(found.error, np.sqrt(moderated * sum(1 / h.sum(0) for h in weights)), rtol=1e-5)
    assert found.freedom == pytest.approx(freedom + prior_freedom, rel=1e-5)


def test_likelihood_is_that_of_students_distribution():
    contrast = SampleContrast(np.array([0.5, -1.0]), np.array([0.2, 1.5]), freedom=3.5)
    nodes = np.linspace(-3, 3, 13) * np.ones((2, 1))
    of_t = stats.t(3.5, contrast.difference[:, None], contrast.error[:, None])
    expected = of_t.logpdf(nodes) - of_t.logpdf(contrast.difference[:, None])
    np.testing.assert_allclose(contrast.log_likelihood(nodes), expected, atol=1e-12)


@pytest.mark.parametrize("per_group", [True, False])
def test_finds_changes_that_all_samples_share(per_group):
    moments, comparison, sample = _simulate(np.random.default_rng(2), 6, 0.2, change=2.0, per_group=per_group)
    flagged = _flagged(moments, comparison, sample)
    assert flagged[: N_GENES // 10].mean() > 0.8
    assert flagged[N_GENES // 10 :].sum() <= 2


@pytest.mark.parametrize("cells", [(3, 3, 3, 300), (3, 3, 300), (5, 8, 20, 400), (10, 10, 10, 300)])
def test_a_sample_with_most_of_the_cells_is_not_taken_for_all(cells):
    """Samples differ, at random and by nothing else; the small ones cannot show by how much."""
    rng = np.random.default_rng(6)
    share = np.exp(rng.normal(0, 1.5, N_GENES))
    share /= share.sum()
    counts, unit = [], []
    for place, n_cells in enumerate([*cells, *(100 for _ in cells)]):
        rate = 1000 * share * 2.0 ** (0.3 * rng.standard_normal(N_GENES))
        counts.append(rng.poisson(rng.gamma(2.0, rate / 2.0, (n_cells, N_GENES))))
        unit += [place] * n_cells
    counts = np.concatenate(counts)
    moments = moments_of(counts, np.broadcast_to(share, counts.shape).copy(), unit, theta=2.0)
    in_one = np.arange(2 * len(cells)) < len(cells)
    sample = np.arange(2 * len(cells)) % len(cells)
    assert _flagged(moments, Comparison("a", "b", in_one, ~in_one), sample).sum() <= 1


def test_two_shared_samples_are_enough_for_a_result():
    moments, comparison, sample = _simulate(np.random.default_rng(3), 2, 0.1, change=1.0)
    contrast = _contrast(moments, comparison, sample, paired=True)
    assert np.isfinite(contrast.difference).all()
    assert contrast.freedom >= 1
    up, down = contrast.difference[: N_GENES // 20], contrast.difference[N_GENES // 20 : N_GENES // 10]
    assert np.median(up) - np.median(down) == pytest.approx(2.0, abs=0.3)


def test_genes_without_counts_do_not_differ_however_samples_vary_in_size():
    rng = np.random.default_rng(4)
    counts = rng.poisson(2.0, (120, 30))
    counts[:, 0] = 0
    unit = np.repeat([0, 1, 2, 3], [5, 5, 55, 55])
    moments = moments_of(counts, np.full(counts.shape, 1 / 30), unit, theta=2.0)
    contrast = SampleContrast.from_moments(moments.merge(np.eye(4)[:2]), moments.merge(np.eye(4)[2:]), paired=True)
    assert contrast.difference[0] == pytest.approx(0.0, abs=1e-9)


def test_moderation_recovers_the_prior_of_simulated_variances():
    rng = np.random.default_rng(5)
    freedom, prior_freedom, location = 3, 8.0, 1.5
    spread = location * prior_freedom / rng.chisquare(prior_freedom, 20_000) * rng.chisquare(freedom, 20_000) / freedom
    found_location, found_freedom = _moderation(spread, freedom)
    assert found_location == pytest.approx(location, rel=0.05)
    assert found_freedom == pytest.approx(prior_freedom, rel=0.2)


def test_samples_that_differ_less_than_by_chance_are_taken_to_differ_by_chance():
    spread = 0.3 * np.random.default_rng(5).chisquare(4, 2000) / 4
    assert _moderation(spread, 4)[0] == 1.0


@pytest.mark.parametrize("value", [0.02, 0.5, 3.0, 40.0])
def test_inverse_of_the_trigamma_function(value):
    assert polygamma(1, _inverse_trigamma(value)) == pytest.approx(value, rel=1e-6)
