import inspect

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from scvae_ext.analysis import setting_overlap
from scvae_ext.analysis.overlap import _auc


def test_the_ratio_is_that_of_densities():
    rng = np.random.default_rng(0)
    states = np.concatenate([rng.normal(0, 1, (4000, 1)), rng.normal(1.5, 1, (4000, 1))])
    treated = np.arange(8000) >= 4000
    query = np.array([[-1.0], [0.75], [2.5]])
    found = setting_overlap(states, treated, query)
    densities = stats.norm.pdf(query[:, 0] - 1.5), stats.norm.pdf(query[:, 0])
    expected = densities[0] / ((densities[0] + densities[1]) / 2)
    np.testing.assert_allclose(found.ratio, expected, atol=0.25)
    # The best classifier of two Gaussians; neighbours come close to it.
    assert found.dependence.auc == pytest.approx(stats.norm.cdf(1.5 / np.sqrt(2)), abs=0.02)
    assert found.dependence.null_auc == pytest.approx(0.5, abs=0.02)
    assert found.dependence.p_value == pytest.approx(1 / 201)


def test_permutations_reject_as_often_as_they_should():
    rng = np.random.default_rng(0)
    values = [
        setting_overlap(rng.normal(size=(120, 2)), rng.random(120) < 0.4, np.zeros((1, 2)), seed=i).dependence.p_value
        for i in range(60)
    ]
    assert stats.kstest(values, "uniform").pvalue > 0.01


def test_few_cells_that_are_all_each_others_neighbours_tell_nothing():
    """Whatever the labels, a cell with the setting has one such neighbour less: permutations are all as extreme."""
    states = np.random.default_rng(0).normal(size=(30, 2))
    found = setting_overlap(states, np.arange(30) % 3 == 0, states).dependence
    assert (found.auc, found.null_auc, found.p_value) == (0.0, 0.0, 1.0)


def test_states_that_are_all_the_same_were_seen():
    states = np.zeros((120, 3))
    assert setting_overlap(states, np.arange(120) % 2 == 0, states[:4]).is_supported.all()


def test_the_area_is_that_of_scikit_learn():
    rng = np.random.default_rng(0)
    score, positive = rng.integers(0, 6, 300) / 5, rng.random(300) < 0.3
    assert _auc(score, positive) == pytest.approx(roc_auc_score(positive, score))


def test_a_setting_nobody_or_everybody_has():
    states = np.random.default_rng(0).normal(size=(100, 2))
    nobody = setting_overlap(states, np.zeros(100, dtype=bool), states)
    assert not nobody.is_supported.any()
    assert nobody.dependence is None
    assert "100 of 100 cells are in states that were not seen" in str(nobody)
    everybody = setting_overlap(states, np.ones(100, dtype=bool), states)
    assert everybody.is_supported.all()
    assert str(everybody) == "All 100 cells are in states that were seen under the setting."


def test_many_reference_cells_are_thinned(monkeypatch):
    states = np.random.default_rng(0).normal(size=(500, 2))
    monkeypatch.setitem(inspect.unwrap(setting_overlap).__globals__, "MAX_REFERENCE", 100)
    assert setting_overlap(states, np.arange(500) % 2 == 0, states).dependence.n_cells == 100
