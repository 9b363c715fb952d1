import numpy as np
import pytest
from posterior_draws import moments_of

from scvae_ext.analysis import Comparison, CountContrast, change_table
from scvae_ext.analysis.estimates import group_estimates, pooled, within_batches

N_GENES, DEPTH, THETA = 200, 400.0, 2.0
FIELDS = ("mean", "variance", "exposure", "n_measured", "n_expressing")


def _simulate(rng, n_cells=600, share=0.85, change=1.0, absorbed=0.5):
    """Count cells of two groups of which one lies mostly in one batch, and the other in the other.

    The model takes a part of the change for an effect of the batch, and leaves that part out of the groups.
    """
    batch = np.arange(n_cells) % 2
    group = (rng.random(n_cells) > np.where(batch == 1, share, 1 - share)).astype(int)
    changed = np.zeros(N_GENES)
    changed[:10], changed[10:20] = change, -change
    effect = rng.normal(0, 1, N_GENES)
    base = np.full(N_GENES, 1 / N_GENES)

    def normalised(expression):
        return expression / expression.sum(1, keepdims=True)

    true = normalised(base * 2.0 ** (effect * batch[:, None] + changed * (group == 0)[:, None]))
    fitted = normalised(
        base
        * 2.0 ** ((effect + absorbed * changed) * batch[:, None] + (1 - absorbed) * changed * (group == 0)[:, None])
    )
    counts = rng.poisson(DEPTH * true * rng.gamma(THETA, 1 / THETA, true.shape))
    return counts, fitted, group, batch, changed


def _units(group, batch):
    units, of_cell = np.unique(np.stack([group, batch], 1), axis=0, return_inverse=True)
    return Comparison("a", "b", units[:, 0] == 0, units[:, 0] == 1), units[:, 1], of_cell.ravel()


def test_what_the_model_takes_for_an_effect_of_batches_cancels():
    rng, estimates, together = np.random.default_rng(0), [], []
    for _ in range(6):
        counts, fitted, group, batch, changed = _simulate(rng)
        comparison, of_unit, of_cell = _units(group, batch)
        own = moments_of(counts, fitted, of_cell, THETA)
        found = group_estimates(own, comparison, own, of_unit, False)
        estimates.append(np.log2(found.mean[0] / found.mean[1]) - changed)
        # All decoded in the first batch, with the ratio of a group over both batches.
        first = _decoded_in_first(fitted, batch)
        moments = moments_of(counts, first, of_cell, THETA, fitted=fitted)
        both = pooled(moments.merge(np.stack([comparison.one, comparison.two]).astype(float)))
        together.append(np.log2(both.mean[0] / both.mean[1]) - changed)
    slope = [np.polyfit(changed[:20], (np.mean(each, axis=0) + changed)[:20], 1)[0] for each in (estimates, together)]
    assert slope[0] == pytest.approx(1.0, abs=0.06)
    assert slope[1] < 0.8


def _decoded_in_first(fitted, batch):
    """Take the effect of the second batch, as the model has it, out of its cells."""
    effect = np.log(fitted[batch == 1]).mean(0) - np.log(fitted[batch == 0]).mean(0)
    moved = np.where(batch[:, None] == 1, fitted * np.exp(-effect), fitted)
    return moved / moved.sum(1, keepdims=True)


def test_evidence_against_no_difference_is_as_rare_as_it_says():
    rng, statistics = np.random.default_rng(1), []
    for _ in range(5):
        counts, fitted, group, batch, _ = _simulate(rng, change=0.0)
        comparison, of_unit, of_cell = _units(group, batch)
        own = moments_of(counts, fitted, of_cell, THETA)
        contrast = CountContrast.of(group_estimates(own, comparison, own, of_unit, False))
        statistics.append(contrast.estimate / contrast.standard_error)
    statistics = np.concatenate(statistics)
    # Of a thousand independent genes: five standard errors.
    assert np.std(statistics) == pytest.approx(1.0, abs=0.12)
    assert np.mean(np.abs(statistics) > 1.96) == pytest.approx(0.05, abs=0.035)


def test_in_a_single_batch_they_are_those_of_all_cells():
    counts, fitted, group, *_ = _simulate(np.random.default_rng(2))
    moments = moments_of(counts, fitted, group, THETA)
    within, shared = within_batches(moments.merge(np.eye(2)[:1]), moments.merge(np.eye(2)[1:]))
    assert shared.all()
    for name in FIELDS:
        np.testing.assert_allclose(getattr(within, name), getattr(pooled(moments), name), rtol=1e-9)


def test_batches_weigh_by_the_cells_of_both_groups():
    rng = np.random.default_rng(3)
    group, batch = np.repeat([0, 0, 1, 1], [30, 10, 20, 40]), np.repeat([0, 1, 0, 1], [30, 10, 20, 40])
    counts = rng.poisson(5.0, (100, 4))
    moments = moments_of(counts, np.full((100, 4), 0.25), 2 * group + batch)
    within, _ = within_batches(moments.merge(np.eye(4)[:2]), moments.merge(np.eye(4)[2:]))
    share = np.array([30 * 20 / 50, 10 * 40 / 50])
    share /= share.sum()
    by_hand = [share @ moments.mean[:2], share @ moments.mean[2:]]
    np.testing.assert_allclose(within.mean, by_hand)
    np.testing.assert_allclose(within.variance[0], share**2 @ moments.variance[:2])
    assert within.n_measured.tolist() == [[39.0] * 4, [59.0] * 4]


def test_a_batch_with_a_single_cell_of_a_group_is_left_out():
    """Of one cell no spread is known."""
    rng = np.random.default_rng(8)
    unit = np.repeat([0, 1, 2, 3, 4, 5], [30, 10, 1, 20, 40, 25])
    moments = moments_of(rng.poisson(5.0, (126, 4)), np.full((126, 4), 0.25), unit)
    rows = np.eye(6)
    within, shared = within_batches(moments.merge(rows[:3]), moments.merge(rows[3:]))
    without, _ = within_batches(moments.merge(rows[:2]), moments.merge(rows[3:5]))
    assert shared.all()
    for name in FIELDS:
        np.testing.assert_allclose(getattr(within, name), getattr(without, name))


def test_genes_without_counts_keep_an_exposure():
    counts = np.random.default_rng(4).poisson(5.0, (40, 3))
    counts[:, 0] = 0
    unit = np.arange(40) % 4
    moments = moments_of(counts, np.full((40, 3), 1 / 3), unit)
    within, shared = within_batches(moments.merge(np.eye(4)[:2]), moments.merge(np.eye(4)[2:]))
    assert shared.all()
    assert (within.mean[:, 0] == 0).all()
    assert np.isfinite(within.exposure).all()
    assert within.exposure[0, 0] == pytest.approx(within.exposure[0, 1], rel=0.1)


def test_without_a_shared_batch_the_model_is_asked_and_that_is_said():
    counts, fitted, group, _, _ = _simulate(np.random.default_rng(5), n_cells=80)
    comparison, of_unit, of_cell = _units(group, group)
    moments = moments_of(counts, fitted, of_cell, THETA)
    with pytest.warns(UserWarning, match="a vs b: no batch has two cells of both groups: the model alone"):
        table = change_table(moments, comparison, delta=0.25, fdr_target=0.05, own=moments, batch=of_unit)
    plain = change_table(moments, comparison, delta=0.25, fdr_target=0.05)
    np.testing.assert_allclose(table["lfc_mean"], plain["lfc_mean"])


def test_a_batch_that_is_left_out_plays_no_part():
    counts, fitted, group, batch, _ = _simulate(np.random.default_rng(6), n_cells=200)
    comparison, of_unit, of_cell = _units(group, batch)
    own = moments_of(counts, fitted, of_cell, THETA)
    chosen = batch == 1
    alone = moments_of(counts[chosen], fitted[chosen], group[chosen], THETA)
    found = group_estimates(own, comparison, own, np.where(of_unit == 1, 1, -1), False)
    np.testing.assert_allclose(found.mean, alone.mean, rtol=1e-5)
