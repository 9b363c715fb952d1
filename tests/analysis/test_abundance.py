import numpy as np
import pandas as pd
import pytest
from scipy.stats import binom
from scipy.stats import t as student

from scvae_ext.analysis import AggregatedPosterior, DifferentialAbundance, abundance_ratio

ONE, TWO = np.array([True, True, False, False]), np.array([False, False, True, True])


def test_is_the_log_ratio_of_mean_densities():
    density = np.array([[0.4, 0.2, 0.1, 0.1], [0.1, 0.1, 0.1, 0.1]])
    n_cells = np.full((2, 4), 10**9)
    found = abundance_ratio(np.log(density), n_cells, ONE, TWO, ("case", "control"))
    np.testing.assert_allclose(found.log_ratio, [np.log(3), 0], atol=1e-6)
    # Variance of 0.4 and 0.2 is 0.02, which is 0.02 / 0.3 of the mean, and none in the other group; their mean factor
    # gives a larger error than the variance of each group by itself.
    factor = (0.02 / 0.3 + 0) / 2
    np.testing.assert_allclose(found.standard_error, [np.sqrt(factor / 2 * (1 / 0.3 + 1 / 0.1)), 0], atol=1e-6)
    assert (found.group1, found.group2, found.n_samples1, found.n_samples2) == ("case", "control", 2, 2)


def test_the_error_is_that_of_the_delta_method_where_that_is_larger():
    density = np.array([[0.5, 0.1, 0.9, 0.5]])
    found = abundance_ratio(np.log(density), np.full((1, 4), 10**9), ONE, TWO)
    of_each = (0.08 / 0.3**2 + 0.08 / 0.7**2) / 2
    assert of_each > (0.08 / 0.3 + 0.08 / 0.7) / 2 * (1 / 0.3 + 1 / 0.7) / 2
    np.testing.assert_allclose(found.standard_error**2, of_each, rtol=1e-6)


def test_a_cell_of_the_population_in_each_sample_bounds_the_ratio():
    log_prob = np.array([[0.0, 0.0, -np.inf, -1e4]])
    found = abundance_ratio(log_prob, np.full((1, 4), 99), ONE, TWO)
    # Density of the population is one half; samples of 100 cells have 99 + 0.5 and 0.5 hundredths of density one.
    np.testing.assert_allclose(found.log_ratio, np.log((99 + 0.5) / 0.5))
    assert found.standard_error[0] == pytest.approx(0)


def test_samples_may_differ_in_size():
    """Every sample gets one cell of the population, which says the more the smaller the sample."""
    density, sizes = np.array([0.4, 0.2, 0.1, 0.3]), np.array([3, 40, 7, 200])
    found = abundance_ratio(np.log(density[None]), sizes[None], ONE, TWO)
    population = (sizes * density).sum() / sizes.sum()
    relative = (sizes * density + population) / ((sizes + 1) * population)
    np.testing.assert_allclose(found.log_ratio, np.log(relative[:2].mean() / relative[2:].mean()))


def test_one_sample_has_no_spread():
    found = abundance_ratio(np.zeros((3, 4)), np.full((3, 4), 5), ONE, np.array([False, False, False, True]))
    assert np.isnan(found.standard_error).all()
    np.testing.assert_allclose(found.log_ratio, 0, atol=1e-12)


# Kernel and cells of a type are normal about the same point, with variances H2 and one in each of two dimensions.
H2 = 0.6
# E K^2 / (E K)^2 for such a kernel K: what a density at that point scatters by, times the number of cells.
SCATTER = (1 + H2) ** 2 / (H2 * (2 + H2))


def ratios_at_the_middle_of_two_types(shares, n_replicates, n_samples, n_cells, seed, h2=H2):
    """Compare two groups of samples in independent replicates, at the middle of the first type and of the second.

    A sample's share of the first type is a beta variate with the parameters that ``shares`` has for its group. Types
    are ten standard deviations apart, and no cell that is asked for is one of the samples'.
    """
    rng = np.random.default_rng(seed)
    n_all = n_replicates * 2 * n_samples
    group = np.arange(n_all) % (2 * n_samples) // n_samples
    share = rng.beta(*np.asarray(shares, dtype=float)[group].T)
    sample = np.repeat(np.arange(n_all), n_cells)
    is_first = rng.random(len(sample)) < share[sample]
    mean = np.where(is_first, -5.0, 5.0)[:, None] + rng.normal(size=(len(sample), 2))
    mixture = AggregatedPosterior(mean, np.full(mean.shape, h2 / 2), sample, n_all)
    points = np.array([[-5.0, -5.0], [5.0, 5.0]])
    log_prob = mixture.log_density(points, np.full((2, 2), h2 / 2), np.array([-1, -1]))
    log_prob = log_prob.reshape(2, n_replicates, 2 * n_samples)
    in_one = np.arange(2 * n_samples) < n_samples
    sizes = np.full((n_replicates, 2 * n_samples), n_cells)
    return [abundance_ratio(of_type, sizes, in_one, ~in_one) for of_type in log_prob]


def moments_of_the_log_ratio(shares, n_samples, n_cells):
    r"""Return mean and variance of the log ratio to second order in the noise of the groups' mean densities.

    A sample's density over the kernel's mean is an average of n_cells variables with the mean p and the second moment
    p SCATTER, given its share p; p is a beta variate. With group means u and v and one cell of the population, the log
    ratio is log(A u + B v) - log(B u + A v), with A = n_cells + 1/2 and B = 1/2.
    """
    a, b = np.asarray(shares, dtype=float).T
    share = a / (a + b)
    between = share * (1 - share) / (a + b + 1)
    variance = (between + (share * SCATTER - share**2 - between) / n_cells) / n_samples
    large, small = n_cells + 0.5, 0.5
    one, two = large * share[0] + small * share[1], small * share[0] + large * share[1]
    slopes = np.array([large / one - small / two, small / one - large / two])
    curvatures = np.array([(small / two) ** 2 - (large / one) ** 2, (large / two) ** 2 - (small / one) ** 2])
    return np.log(one / two) + 0.5 * curvatures @ variance, slopes**2 @ variance


def within(values, expected, errors=4.0):
    """Say whether the mean of independent values is that expected: four standard errors miss six times in 100,000."""
    return abs(np.mean(values) - expected) < errors * np.std(values, ddof=1) / np.sqrt(len(values))


def test_recovers_known_shares_of_known_types():
    """Shares of the first type vary about 0.6 and 0.2; the second type has the rest."""
    shares, n_samples, n_cells = [(60, 40), (20, 80)], 12, 60
    found = ratios_at_the_middle_of_two_types(shares, 150, n_samples, n_cells, seed=0)
    for of_type, parameters in zip(found, (shares, [each[::-1] for each in shares]), strict=True):
        mean, variance = moments_of_the_log_ratio(parameters, n_samples, n_cells)
        assert within(of_type.log_ratio, mean)
        assert within((of_type.log_ratio - mean) ** 2, variance)
        # The error is that of the ratio, with the samples' own shares in it, or the larger one of two estimates.
        squared = of_type.standard_error**2
        assert squared.mean() > variance - 4 * squared.std(ddof=1) / np.sqrt(len(squared))


@pytest.mark.slow
@pytest.mark.parametrize(("n_samples", "h2", "least"), [(3, H2, 1e-4), (8, H2, 1e-4), (4, 0.003, 0.0)])
def test_says_nothing_of_samples_that_do_not_differ(n_samples, h2, least):
    """As many are beyond Student's bound of 5 % as ought to be, by a binomial distribution with false alarms of 1e-4.

    Fewer may be with a kernel so narrow that only one in three samples has a cell nearby, of whose scatter the delta
    method alone would take a fifth of all states for different.
    """
    n_replicates = 2400 // n_samples
    found = ratios_at_the_middle_of_two_types([(50, 50)] * 2, n_replicates, n_samples, 100, seed=1, h2=h2)
    for of_type in found:
        beyond = np.abs(of_type.log_ratio) > student(2 * n_samples - 2).isf(0.025) * of_type.standard_error
        assert beyond.sum() <= binom.isf(1e-4, n_replicates, 0.05)
        assert beyond.sum() >= binom.ppf(least, n_replicates, 0.05)


def test_says_it_in_words():
    log_prob = pd.DataFrame(np.log([[0.4, 0.4, 0.1, 0.1], [0.1, 0.1, 0.1, 0.1]]), columns=list("abcd"))
    ratio = abundance_ratio(log_prob.to_numpy(), np.full((2, 4), 50), ONE, TWO, ("case", "control"))
    result = DifferentialAbundance(log_prob, pd.Series(50, index=list("abcd")), ratio)
    assert "case (2 samples) over control (2 samples): the state of 1 cells (50 %) is more frequent" in repr(result)
    assert result.to_frame().columns.tolist() == ["a", "b", "c", "d", "log_ratio", "standard_error"]
    assert DifferentialAbundance(log_prob, result.n_cells, None).to_frame().equals(log_prob)
