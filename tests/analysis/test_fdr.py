import numpy as np
import pytest

from scvae_ext.analysis import expected_fdr


@pytest.fixture
def probability():
    return np.round(np.random.default_rng(0).beta(0.5, 0.5, 60), 2)


def test_is_the_mean_probability_of_error_of_the_list_down_to_each_gene(probability):
    expected = [np.mean(1 - probability[probability >= each]) for each in probability]
    np.testing.assert_allclose(expected_fdr(probability), expected, atol=1e-12)


def test_rises_as_the_probability_falls(probability):
    assert (np.diff(expected_fdr(np.sort(probability)[::-1])) >= 0).all()


def test_genes_of_equal_probability_stand_or_fall_together():
    np.testing.assert_allclose(expected_fdr(np.array([0.9, 0.9, 0.9])), 0.1)


def test_the_list_realises_the_rate_where_probabilities_are_right():
    rng = np.random.default_rng(1)
    probability = rng.beta(0.2, 0.8, 200_000)
    truth = rng.random(len(probability)) < probability
    flagged = expected_fdr(probability) <= 0.05
    assert np.mean(~truth[flagged]) == pytest.approx(0.05, abs=0.005)
