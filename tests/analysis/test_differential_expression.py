from dataclasses import replace

import numpy as np
import pytest
import torch
from posterior_draws import draws_of, moments_of
from scipy import stats

from scvae_ext.analysis import (
    Comparison,
    CountContrast,
    change_table,
    count_table,
    fold_change_posterior,
    group_moments,
)
from scvae_ext.analysis.differential_expression import bayes_factor
from scvae_ext.analysis.estimates import pooled

N_GENES = 400


def _units(n_units, ones):
    one = np.zeros(n_units, dtype=bool)
    one[list(ones)] = True
    return Comparison("a", "b", one, ~one)


def _counts(rng, n_cells, changed, change):
    """Two groups, whose first genes differ by a log2 fold change, half of them up and half down."""
    group = np.arange(n_cells) % 2
    rate = rng.gamma(1.0, 2.0, N_GENES) + 0.05
    high = rate[:changed].copy()
    rates = np.tile(rate, (n_cells, 1))
    up = np.arange(changed) < changed // 2
    rates[:, :changed] = np.where((group[:, None] == 0) == up, high, high * 2.0**-change)
    counts = rng.poisson(rng.gamma(2.0, rates / 2.0))
    return counts, group


@pytest.fixture(scope="module")
def table():
    counts, group = _counts(np.random.default_rng(0), 200, 80, 1.5)
    moments = moments_of(counts, np.full(counts.shape, 1 / N_GENES), group, theta=2.0)
    return change_table(moments, _units(2, [0]), delta=0.25, fdr_target=0.05)


def test_realised_false_discoveries_are_within_the_target_and_most_changes_are_found(table):
    flagged = table["is_de_fdr_0.05"].to_numpy()
    assert flagged[80:].sum() <= 0.075 * flagged.sum() + 1
    assert flagged[:80].mean() > 0.6


def test_columns_agree_with_each_other(table):
    np.testing.assert_allclose(table["proba_de"] + table["proba_not_de"], 1.0)
    np.testing.assert_allclose(table["bayes_factor"], bayes_factor(table["proba_de"].to_numpy()))
    assert (table["lfc_min"] <= table["lfc_median"]).all()
    assert (table["lfc_median"] <= table["lfc_max"]).all()
    # Fold changes of genes that do not differ are shrunk to zero.
    sure = table["is_de_fdr_0.05"] & (table["lfc_std"] < 0.2)
    np.testing.assert_allclose(table["lfc_mean"][sure], np.log2(table["scale1"] / table["scale2"])[sure], atol=0.25)


def test_a_gene_exactly_at_the_target_is_in_the_list(table):
    counts, group = _counts(np.random.default_rng(0), 200, 80, 1.5)
    moments = moments_of(counts, np.full(counts.shape, 1 / N_GENES), group, theta=2.0)
    target = float(np.sort(table["expected_fdr"])[70])
    found = change_table(moments, _units(2, [0]), delta=0.25, fdr_target=target)
    np.testing.assert_array_equal(found[f"is_de_fdr_{target}"], table["expected_fdr"] <= target)
    assert found[f"is_de_fdr_{target}"].sum() >= 71


def test_random_halves_do_not_differ():
    for seed in range(5):
        counts, group = _counts(np.random.default_rng(seed), 100, 2, 0.0)
        moments = moments_of(counts, np.full(counts.shape, 1 / N_GENES), group, theta=2.0)
        flagged = change_table(moments, _units(2, [0]), delta=0.25, fdr_target=0.05)["is_de_fdr_0.05"]
        assert flagged.sum() <= 1


def test_a_larger_delta_flags_fewer_genes():
    counts, group = _counts(np.random.default_rng(1), 200, 80, 1.5)
    moments = moments_of(counts, np.full(counts.shape, 1 / N_GENES), group, theta=2.0)
    probabilities = [
        change_table(moments, _units(2, [0]), delta=delta, fdr_target=0.05)["proba_de"] for delta in (0.1, 0.5, 2.0)
    ]
    assert (probabilities[0] >= probabilities[1] - 1e-9).all()
    assert (probabilities[1] >= probabilities[2] - 1e-9).all()
    assert probabilities[2][:80].mean() < 0.2


@pytest.mark.parametrize(("change", "is_least"), [(3.0, False), (0.0, True)])
def test_a_delta_of_ones_own_is_a_share_of_the_typical_change_but_not_below_a_tenth(change, is_least):
    counts, group = _counts(np.random.default_rng(6), 200, 80, change)
    moments = moments_of(counts, np.full(counts.shape, 1 / N_GENES), group, theta=2.0)
    typical = fold_change_posterior(CountContrast.of(pooled(moments))).typical_change
    assert (0.6 * typical < 0.1) == is_least
    delta = change_table(moments, _units(2, [0]), delta=None, fdr_target=0.05)["delta"]
    np.testing.assert_allclose(delta, 0.1 if is_least else 0.6 * typical)


@pytest.mark.parametrize("test_mode", ["two", "three"])
def test_genes_that_are_not_measured_leave_the_others_as_they_are(test_mode):
    """Three genes of sixty were measured in one group alone; what is asked for holds for the others all the same."""
    rng = np.random.default_rng(8)
    group, batch = np.arange(240) % 2, np.arange(240) // 2 % 3 // 2
    units, of_cell = np.unique(np.stack([group, batch], 1), axis=0, return_inverse=True)
    counts = rng.poisson(rng.gamma(2.0, 1.5, (240, 60)))
    measured = np.ones(counts.shape, dtype=bool)
    measured[np.ix_(group == 0, [0, 30, 59])] = False
    fitted = rng.dirichlet(np.full(60, 50.0)) * np.where(batch[:, None] == 1, 1.5, 1.0)
    elsewhere = rng.dirichlet(np.full(60, 50.0)) * np.ones((240, 1))

    def sums(expression):
        draws = draws_of(np.where(measured, counts, 0), expression, theta=2.0, fitted=fitted)
        known = (replace(each, measured=torch.from_numpy(measured)) for each in draws)
        return group_moments(known, of_cell.ravel(), len(units), 60)

    moments, own = sums(elsewhere), sums(fitted)
    comparison = Comparison("a", "b", units[:, 0] == 0, units[:, 0] == 1)
    options = {"delta": 0.1, "fdr_target": 0.1, "batch": units[:, 1], "test_mode": test_mode, "levels": [0.8]}
    found = change_table(moments, comparison, own=own, common_factor=True, **options)
    others = measured.all(0)
    alone = change_table(moments.of_genes(others), comparison, own=own.of_genes(others), common_factor=True, **options)
    flag = "is_de_fdr_0.1"
    np.testing.assert_array_equal(found.loc[others].drop(columns=flag), alone.drop(columns=flag))
    np.testing.assert_array_equal(found[flag][others].astype(bool), alone[flag])
    assert found.loc[~others].drop(columns=flag).isna().all(axis=None)
    assert not found[flag][~others].any()
    # The batches, the factor and the other mode each make a difference.
    other_mode = {"two": "three", "three": "two"}[test_mode]
    for change in ({"batch": None}, {"common_factor": False}, {"test_mode": other_mode}):
        other = change_table(moments, comparison, own=own, **{"common_factor": True, **options, **change})
        assert not np.allclose(other.loc[others, "proba_de"], alone["proba_de"])


def test_both_directions_together_are_no_less_probable():
    counts, group = _counts(np.random.default_rng(2), 60, 40, 1.0)
    moments = moments_of(counts, np.full(counts.shape, 1 / N_GENES), group, theta=2.0)
    three, two = (
        change_table(moments, _units(2, [0]), delta=0.25, fdr_target=0.05, test_mode=mode)["proba_de"]
        for mode in ("three", "two")
    )
    assert (two >= three - 1e-12).all()


def test_bayes_factor_is_the_log_odds():
    assert bayes_factor(np.array([0.5, 0.9, 1.0])) == pytest.approx([0.0, np.log(9), np.log(1e8)], rel=1e-6)


def test_raw_counts_of_merged_units():
    rng = np.random.default_rng(3)
    counts = rng.poisson(1.0, (30, 4)) + 1
    unit = np.arange(30) % 3
    table = count_table(moments_of(counts, np.full((30, 4), 0.25), unit), _units(3, [0, 2]))
    np.testing.assert_allclose(table["raw_mean1"], counts[unit != 1].mean(0))
    np.testing.assert_allclose(table["raw_mean2"], counts[unit == 1].mean(0))
    np.testing.assert_allclose(table["non_zeros_proportion1"], 1.0)


@pytest.fixture
def donors():
    """Units one to four: groups a and b, each in donors x, y and z, or less."""
    rng = np.random.default_rng(4)
    unit = np.arange(240) % 6
    counts = rng.poisson(3.0, (240, 30))
    return moments_of(counts, np.full(counts.shape, 1 / 30), unit), _units(6, [0, 1, 2])


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        ([0, 1, 2, 0, 1, 3], r"2 samples are compared within themselves; left out.*2 samples \('z', 'w'\)"),
        ([0, 1, 2, 0, 3, 3], r"come from 1 sample \('x'\), and are taken as independent"),
    ],
)
def test_warns_of_samples_that_cannot_be_compared_within_themselves(donors, sample, message):
    moments, comparison = donors
    with pytest.warns(UserWarning, match=message):
        table = change_table(
            moments, comparison, delta=0.25, fdr_target=0.05, sample=np.array(sample), sample_names=["x", "y", "z", "w"]
        )
    assert table["lfc_mean"].notna().all()


def test_one_sample_a_group_is_no_replication(donors):
    moments, comparison = donors
    with pytest.raises(ValueError, match=r"'a' has cells of 1 sample \('x'\) and 'b' of 1 sample \('y'\)"):
        change_table(
            moments,
            comparison,
            delta=0.25,
            fdr_target=0.05,
            sample=np.array([0, 0, 0, 1, 1, 1]),
            sample_names=["x", "y"],
        )


def test_estimates_follow_the_truth():
    counts, group = _counts(np.random.default_rng(5), 400, 80, 1.0)
    moments = moments_of(counts, np.full(counts.shape, 1 / N_GENES), group, theta=2.0)
    table = change_table(moments, _units(2, [0]), delta=0.25, fdr_target=0.05, levels=[0.9])
    truth = np.where(np.arange(80) < 40, 1.0, -1.0)
    low, high = (table[f"lfc_confidence_interval_0.9_{side}"][:80] for side in ("min", "max"))
    assert np.mean((low <= truth) & (truth <= high)) > stats.binom.ppf(0.001, 80, 0.8) / 80
    assert np.median(table["lfc_mean"][:40]) == pytest.approx(1.0, abs=0.2)
