import numpy as np
import pandas as pd
import pytest
from scipy.stats import kstest

from scvae_ext.analysis import Novelty, rank_among, replicate_test

N, R = 1000, 40


def jittered(p, n_replicates, seed=0):
    """Spread a discrete p over the interval that it stands for, after which it should be uniform."""
    return p - np.random.default_rng(seed).random(len(p)) / (n_replicates + 1)


def test_p_is_uniform_for_cells_drawn_as_their_replicates_are():
    rng = np.random.default_rng(0)
    replicates, score = rng.gamma(2.0, size=(R, N)), rng.gamma(2.0, size=N)
    _, _, p = replicate_test(score, np.zeros(N), replicates, np.zeros((R, N)))
    assert kstest(jittered(p, R), "uniform").pvalue > 0.01


def test_compares_at_the_same_total():
    """Replicates scatter about a total that the cell has exactly, and the score falls with the total."""
    rng = np.random.default_rng(1)
    log_total = rng.normal(7, 0.5, N)
    log_totals = log_total + rng.normal(0, 0.1, (R, N))
    replicates = -300 * log_totals + rng.normal(size=(R, N))
    score = -300 * log_total + rng.normal(size=N)
    expected, z, p = replicate_test(score, log_total, replicates, log_totals)
    np.testing.assert_allclose(expected, -300 * log_total, atol=2)
    assert kstest(jittered(p, R), "uniform").pvalue > 0.01
    assert z.std() == pytest.approx(1, abs=0.1)
    # Without the regression the spread of totals would hide any difference below 30 nats.
    assert (replicate_test(score - 5, log_total, replicates, log_totals)[2] < 0.1).mean() > 0.95


def test_z_says_by_how_much():
    rng = np.random.default_rng(2)
    expected, z, p = replicate_test(np.full(3, -7.0), np.zeros(3), rng.normal(3, 2, (4000, 3)), np.zeros((4000, 3)))
    np.testing.assert_allclose(expected, 3, atol=0.15)
    np.testing.assert_allclose(z, -5, atol=0.25)
    np.testing.assert_allclose(p, 1 / 4001)


def test_few_replicates_are_refused():
    with pytest.raises(ValueError, match="9 replicates are too few: 10 at least"):
        replicate_test(np.zeros(3), np.zeros(3), np.zeros((9, 3)), np.zeros((9, 3)))


def test_rank_is_the_share_that_is_no_larger():
    np.testing.assert_allclose(rank_among(np.array([0.5, 3.0, 9.0]), np.array([1.0, 3.0, 2.0, 4.0])), [0.2, 0.8, 1.0])


def test_rank_of_exchangeable_values_is_uniform():
    rng = np.random.default_rng(3)
    p = rank_among(rng.normal(size=N), rng.normal(size=3 * N))
    assert kstest(p, "uniform").pvalue > 0.01


def test_says_it_in_words():
    low = np.array([0.01, 0.5, 0.5, 0.5])
    novelty = Novelty(low, low, low, low, low, low[::-1], pd.Index(list("abcd")))
    np.testing.assert_allclose(novelty.p, [0.02, 1, 1, 0.02])
    assert "25.0 % by their ELBO" in repr(novelty)
    assert "50.0 % by either" in repr(novelty)
    assert novelty.to_frame().index.tolist() == list("abcd")
