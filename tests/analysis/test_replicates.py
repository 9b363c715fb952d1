import numpy as np
import pytest
from posterior_draws import moments_of
from scipy.special import polygamma

from scvae_ext.analysis import Comparison, SampleContrast, change_table
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


@pytest.mark.parametrize("value", [0.02, 0.5, 3.0, 40.0])
def test_inverse_of_the_trigamma_function(value):
    assert polygamma(1, _inverse_trigamma(value)) == pytest.approx(value, rel=1e-6)
