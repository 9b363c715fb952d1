import numpy as np
import pandas as pd
import pytest
import torch

from scvae_ext.diagnostics.replicated import Moments, Replicated


def test_statistics_are_those_of_numpy():
    counts = np.random.default_rng(0).poisson(1.5, (3, 40, 6)).astype(np.float32)
    counts[:, :, 2] = 0
    for axis in (-2, -1):
        found = Moments.of(torch.from_numpy(counts), axis).statistics()
        double = counts.astype(float)
        np.testing.assert_allclose(found["mean"], double.mean(axis))
        np.testing.assert_allclose(found["variance"], double.var(axis))
        np.testing.assert_allclose(found["zeros"], (counts == 0).mean(axis))
        mean = double.mean(axis)
        defined = mean > 0
        np.testing.assert_allclose(found["cv"][defined], (double.std(axis)[defined] / mean[defined]))
        assert np.isnan(found["cv"][~defined]).all()


def test_large_counts_keep_their_variance():
    counts = torch.tensor([[[1e6], [1e6 + 1], [1e6 + 2]]])
    assert Moments.of(counts, -2).statistics()["variance"][0, 0] == pytest.approx(2 / 3, rel=1e-3)


def test_tails_count_ties_half():
    replicated = np.array([[1.0, 5.0], [2.0, 5.0], [3.0, 5.0], [4.0, 6.0]])
    found = Replicated.compare(np.array([2.0, 5.0]), replicated)
    np.testing.assert_allclose(found.tail, [(2 + 0.5) / 4, (1 + 1.5) / 4])
    np.testing.assert_allclose(found.expected, [2.5, 5.25])
    np.testing.assert_allclose(found.median, [2.5, 5.0])


def test_sides():
    replicated = np.arange(100.0)[:, None] * np.ones(5)
    found = Replicated.compare(np.array([-1.0, 1.0, 50.0, 98.0, 100.0]), replicated)
    assert found.is_too_high.tolist() == [True, True, False, False, False]
    assert found.is_too_low.tolist() == [False, False, False, True, True]
    np.testing.assert_allclose(found.lower, np.quantile(np.arange(100), 0.025))
    np.testing.assert_allclose(found.upper, np.quantile(np.arange(100), 0.975))


def test_replicates_that_are_not_defined_are_left_out():
    nan = np.nan
    replicated = np.array([[1.0, nan, 1.0], [2.0, nan, 2.0], [nan, nan, 3.0]])
    found = Replicated.compare(np.array([0.0, 1.0, nan]), replicated)
    np.testing.assert_allclose(found.tail, [1.0, nan, nan])
    np.testing.assert_allclose(found.expected, [1.5, nan, 2.0])
    np.testing.assert_allclose(found.upper[0], 1 + 0.975)
    assert not (found.is_too_low | found.is_too_high)[1:].any()


def test_table():
    found = Replicated.compare(np.array([2.0]), np.array([[1.0], [2.0], [3.0]]))
    frame = found.to_frame("zeros", pd.Index(["gene"]))
    assert list(frame.columns) == [
        "zeros",
        "zeros_replicated",
        "zeros_median",
        "zeros_lower",
        "zeros_upper",
        "zeros_tail",
    ]
    assert frame.loc["gene", "zeros_tail"] == 0.5
