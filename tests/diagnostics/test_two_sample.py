import numpy as np
import pytest
from scipy.stats import binom, chi2, chisquare, norm
from sklearn.metrics import roc_auc_score

from scvae_ext.diagnostics._two_sample import _features, area_under_curve, classifier_auc


def _shifted(distance, n=800, n_features=8, seed=0):
    """Standard normal samples of which the second is moved by a distance along a random direction."""
    rng = np.random.default_rng(seed)
    direction = rng.normal(size=n_features)
    samples = rng.normal(size=(2, n, n_features))
    samples[1] += distance * direction / np.linalg.norm(direction)
    return samples


def test_the_area_is_that_of_scikit_learn_with_ties():
    rng = np.random.default_rng(0)
    score, positive = rng.integers(0, 7, 90).astype(float), rng.random(90) < 0.4
    assert area_under_curve(score, positive)[0] == pytest.approx(roc_auc_score(positive, score))


def test_the_variance_is_that_of_the_double_sum():
    rng = np.random.default_rng(1)
    score, positive = rng.integers(0, 9, 60).astype(float), rng.random(60) < 0.3
    high, low = score[positive], score[~positive]
    above = (high[:, None] > low) + 0.5 * (high[:, None] == low)
    expected = above.mean(1).var(ddof=1) / len(high) + above.mean(0).var(ddof=1) / len(low)
    area, variance = area_under_curve(score, positive)
    assert area == pytest.approx(above.mean())
    assert variance == pytest.approx(expected)


@pytest.mark.parametrize("classifier", ["linear", "trees"])
@pytest.mark.parametrize("distance", [0.0, 0.7, 1.5])
def test_a_shift_of_normal_samples_has_the_area_of_the_best_classifier(classifier, distance):
    found = classifier_auc(*_shifted(distance), classifier)
    best = norm.cdf(distance / np.sqrt(2))
    # A learned classifier is somewhat below the best one, the trees by more.
    lost = 0.0 if distance == 0 else 0.01 if classifier == "linear" else 0.03
    assert found.auc < best + 3 * found.standard_error
    assert found.auc > best - lost - 3 * found.standard_error


def test_only_the_trees_see_a_difference_in_spread():
    first, second = _shifted(0.0)
    linear, trees = (classifier_auc(first, 1.5 * second, name) for name in ("linear", "trees"))
    assert abs(linear.auc - 0.5) < 4 * linear.standard_error
    assert trees.auc > 0.7


def _spread_and_level(runs):
    """Return z-scores, and how many of them are significant at the level 0.05."""
    z = np.array([(run.auc - 0.5) / run.standard_error for run in runs])
    return z, np.count_nonzero(norm.sf(z) <= 0.05)


@pytest.mark.parametrize("n_folds", [2, 5])
def test_standard_errors_and_p_values_hold_under_the_null(n_folds):
    n = 200
    runs = [
        classifier_auc(*_shifted(0.0, n=100, seed=seed), n_folds=n_folds, n_permutations=19, seed=seed)
        for seed in range(n)
    ]
    z, n_significant = _spread_and_level(runs)
    # What unit normal scores have but once in 1,000 times.
    assert abs(z.mean()) < norm.isf(5e-4) / np.sqrt(n)
    low, high = np.sqrt(chi2.ppf([5e-4, 1 - 5e-4], n - 1) / (n - 1))
    assert low < z.std(ddof=1) < high
    low, high = binom.ppf([5e-4, 1 - 5e-4], n, 0.05)
    assert low <= n_significant <= high
    # Of 20 values p is one of 0.05, 0.1, ... 1, each of them as often.
    p_values = np.array([run.p_value for run in runs])
    assert chisquare(np.bincount(np.rint(20 * p_values).astype(int), minlength=21)[1:]).pvalue > 1e-3


def test_trees_tell_samples_apart_by_chance_no_more_often_than_they_say():
    n = 25
    runs = [classifier_auc(*_shifted(0.0, n=60, seed=seed), "trees", seed=seed) for seed in range(n)]
    z, n_significant = _spread_and_level(runs)
    assert abs(z.mean()) < norm.isf(5e-4) / np.sqrt(n)
    # At most that of unit normal scores, and no less than if folds were independent of each other.
    low, high = np.sqrt(chi2.ppf([5e-4, 1 - 5e-4], n - 1) / (n - 1))
    assert low / np.sqrt(2) < z.std(ddof=1) < high
    assert n_significant <= binom.isf(1e-3, n, 0.05)


def test_permutations_of_the_trees_find_a_difference():
    found = classifier_auc(*_shifted(2.0, n=100, n_features=2), "trees", n_permutations=9, n_folds=2)
    assert found.p_value == pytest.approx(0.1)


def test_components_come_from_training_folds_and_extra_columns_stand_beside_them():
    # Nothing but the extra column differs.
    first, second = _shifted(0.0, n=300)
    extra = (np.zeros((300, 1)), np.random.default_rng(0).normal(2.0, 1.0, (300, 1)))
    assert classifier_auc(first, second, extra=extra).auc > 0.85
    assert classifier_auc(first, second, n_components=2).auc < 0.6


@pytest.mark.usefixtures("unchecked")
def test_what_cannot_be_used_is_named():
    values = np.zeros((4, 2))
    with pytest.raises(ValueError, match='is not known: use "linear" or "trees"'):
        classifier_auc(values, values, "forest")
    with pytest.raises(ValueError, match=r"n_folds=5 cuts samples of 4 and 4 cells"):
        classifier_auc(values, values)


def test_components_and_spreads_are_those_of_training_cells():
    rng = np.random.default_rng(0)
    values, more = rng.normal(size=(40, 5)), rng.normal(size=(40, 1))
    train = np.arange(0, 40, 2)
    expected = _features(values, more, train, 3, 0)
    values[1::2], more[1::2] = 100 * rng.normal(size=(20, 5)), 7.0
    found = _features(values, more, train, 3, 0)
    np.testing.assert_array_equal(found[train], expected[train])
    np.testing.assert_allclose(found[train].mean(0), 0, atol=1e-9)
    np.testing.assert_allclose(found[train].std(0), 1)


def test_permutations_leave_the_share_of_samples_in_each_fold(monkeypatch):
    seen = []

    def scores_of(features, labels, train, test, seed):
        seen.append((labels[:, train].sum(1), labels[:, test].sum(1)))
        return np.zeros((len(labels), len(test)))

    monkeypatch.setattr("scvae_ext.diagnostics._two_sample._linear_scores", scores_of)
    rng = np.random.default_rng(0)
    found = classifier_auc(rng.normal(size=(40, 3)), rng.normal(size=(60, 3)), n_permutations=30)
    assert len(seen) == 5
    for in_training, left_out in seen:
        assert set(in_training) == {48}
        assert set(left_out) == {12}
    # Scores that say nothing.
    assert (found.auc, found.p_value) == (0.5, 1.0)
