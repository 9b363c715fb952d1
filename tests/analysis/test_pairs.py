import numpy as np
import pytest
from scipy.stats import mannwhitneyu

from scvae_ext.analysis import Comparison, PairProbabilities


@pytest.fixture
def draws():
    rng = np.random.default_rng(0)
    unit = np.repeat([0, 1, 2], [20, 30, 40])
    return rng.gamma(1.0 + unit[:, None] * np.array([0.0, 0.5, 5.0]), 1.0), unit


def test_is_the_statistic_of_mann_and_whitney(draws):
    expression, unit = draws
    pairs = PairProbabilities(expression, unit, np.bincount(unit).astype(float))
    comparison = Comparison("a", "Rest", np.array([True, False, False]), np.array([False, True, True]))
    expected = mannwhitneyu(expression[unit == 0], expression[unit > 0]).statistic / (20 * 70)
    table = pairs.table(comparison)
    np.testing.assert_allclose(table["proba_m1"], expected)
    np.testing.assert_allclose(table["proba_m1"] + table["proba_m2"], 1.0)
    np.testing.assert_allclose(table["bayes_factor"], np.log(expected / (1 - expected)), rtol=1e-5)


def test_draws_stand_for_the_cells_of_their_unit(draws):
    expression, unit = draws
    pairs = PairProbabilities(expression, unit, np.array([20.0, 300.0, 100.0]))
    one, two = np.array([True, False, False]), np.array([False, True, True])
    alone = [
        mannwhitneyu(expression[unit == 0], expression[unit == other]).statistic / (20 * np.sum(unit == other))
        for other in (1, 2)
    ]
    probability = pairs.table(Comparison("a", "Rest", one, two))["proba_m1"]
    np.testing.assert_allclose(probability, 0.75 * alone[0] + 0.25 * alone[1])


def test_ties_count_half(draws):
    """Counts, in which most values are equal, some genes of zeros alone, and some without a tie."""
    expression, unit = draws
    expression = np.concatenate([np.floor(expression), np.zeros((len(unit), 1)), expression], axis=1)
    pairs = PairProbabilities(expression, unit, np.bincount(unit).astype(float))
    one, two = np.array([True, False, False]), np.array([False, True, True])
    table, swapped = pairs.table(Comparison("a", "Rest", one, two)), pairs.table(Comparison("Rest", "a", two, one))
    expected = mannwhitneyu(expression[unit == 0], expression[unit > 0]).statistic / (20 * 70)
    np.testing.assert_allclose(table["proba_m1"], expected, rtol=1e-12)
    np.testing.assert_allclose(swapped["proba_m1"], 1 - expected, rtol=1e-12)
    assert table["proba_m1"][3] == 0.5
