import numpy as np
import pytest
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

from scvae_ext.analysis import AggregatedPosterior, aggregated_posterior

N, D = 40, 3


@pytest.fixture
def mixture():
    rng = np.random.default_rng(0)
    mean, variance = rng.normal(size=(N, D)), rng.uniform(0.1, 1.0, (N, D))
    return AggregatedPosterior(mean, variance, rng.permutation(np.arange(N) % 3), 3)


def brute_force(mixture, mean, variance, own, bandwidth=1.0):
    """The sum of Gaussian densities, one by one."""
    result = np.empty((len(mean), mixture.n_groups))
    for i, group in np.ndindex(*result.shape):
        members = [m for m in range(N) if mixture.group[m] == group and m != own[i]]
        terms = [
            multivariate_normal.logpdf(
                mean[i], mixture.mean[m], np.diag((variance[i] + mixture.variance[m]) * bandwidth**2)
            )
            for m in members
        ]
        result[i, group] = logsumexp(terms) - np.log(len(members))
    return result


@pytest.mark.parametrize("bandwidth", [1.0, 1.7])
def test_equals_the_sum_of_all_components_but_the_cells_own(mixture, bandwidth):
    own = np.arange(N)
    found = mixture.log_density(mixture.mean, mixture.variance, own, bandwidth)
    np.testing.assert_allclose(found, brute_force(mixture, mixture.mean, mixture.variance, own, bandwidth), rtol=1e-9)


def test_equals_the_density_at_a_point_where_that_has_no_variance(mixture):
    points = np.random.default_rng(1).normal(size=(7, D))
    own = np.full(7, -1)
    found = mixture.log_density(points, np.zeros((7, D)), own)
    np.testing.assert_allclose(found, brute_force(mixture, points, np.zeros((7, D)), own), rtol=1e-9)


def test_is_the_same_in_blocks_of_any_size(mixture, monkeypatch):
    whole = mixture.log_density(mixture.mean, mixture.variance, np.arange(N))
    monkeypatch.setattr(aggregated_posterior, "_PAIRS_AT_ONCE", 20)
    monkeypatch.setattr(aggregated_posterior, "_CELLS_AT_ONCE", 7)
    np.testing.assert_allclose(mixture.log_density(mixture.mean, mixture.variance, np.arange(N)), whole, rtol=1e-12)


def test_does_not_underflow_far_away(mixture):
    far = np.full((1, D), 1e4)
    found = mixture.log_density(far, np.ones((1, D)), np.array([-1]))
    assert np.isfinite(found).all()
    assert (found < -1e7).all()


def test_a_group_without_another_cell_has_no_density():
    one = AggregatedPosterior(np.zeros((2, 1)), np.ones((2, 1)), np.array([0, 1]), 3)
    found = one.log_density(one.mean, one.variance, np.arange(2))
    np.testing.assert_array_equal(np.isneginf(found), [[True, False, True], [False, True, True]])
    # The other cell, of the same mean, with the variances of both.
    assert found[0, 1] == pytest.approx(-0.5 * np.log(4 * np.pi))


def test_leaving_the_cell_out_makes_the_density_of_its_own_group_unbiased():
    rng = np.random.default_rng(0)
    group = np.arange(400) % 2
    mean, variance = rng.normal(size=(400, 2)), np.full((400, 2), 0.01)
    mixture = AggregatedPosterior(mean, variance, group, 2)

    def mean_advantage(own):
        log_density = mixture.log_density(mean, variance, own)
        density = np.exp(log_density)
        return (density[np.arange(400), group] - density[np.arange(400), 1 - group]).mean()

    # Under the same density the own group has no advantage; with the cell itself in it, it has the kernel's height.
    assert abs(mean_advantage(np.arange(400))) < 0.01
    assert mean_advantage(np.full(400, -1)) == pytest.approx(1 / (4 * np.pi * 0.01) / 200, abs=0.01)
