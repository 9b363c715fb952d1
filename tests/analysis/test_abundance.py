import numpy as np
import pandas as pd
import pytest

from scvae_ext.analysis import AggregatedPosterior, DifferentialAbundance, abundance_ratio

ONE, TWO = np.array([True, True, False, False]), np.array([False, False, True, True])


def test_is_the_log_ratio_of_mean_densities():
    density = np.array([[0.4, 0.2, 0.1, 0.1], [0.1, 0.1, 0.1, 0.1]])
    n_cells = np.full((2, 4), 10**9)
    found = abundance_ratio(np.log(density), n_cells, ONE, TWO, ("case", "control"))
    np.testing.assert_allclose(found.log_ratio, [np.log(3), 0], atol=1e-6)
    # Variance of 0.4 and 0.2 is 0.02; over two samples and the squared mean 0.3.
    np.testing.assert_allclose(found.standard_error, [np.sqrt(0.02 / 2) / 0.3, 0], atol=1e-6)
    assert (found.group1, found.group2, found.n_samples1, found.n_samples2) == ("case", "control", 2, 2)


def test_a_cell_of_the_population_in_each_sample_bounds_the_ratio():
    log_prob = np.array([[0.0, 0.0, -np.inf, -1e4]])
    found = abundance_ratio(log_prob, np.full((1, 4), 99), ONE, TWO)
    # Density of the population is one half; samples of 100 cells have 99 + 0.5 and 0.5 hundredths of density one.
    np.testing.assert_allclose(found.log_ratio, np.log((99 + 0.5) / 0.5))
    assert found.standard_error[0] == pytest.approx(0)


def test_one_sample_has_no_spread():
    found = abundance_ratio(np.zeros((3, 4)), np.full((3, 4), 5), ONE, np.array([False, False, False, True]))
    assert np.isnan(found.standard_error).all()
    np.testing.assert_allclose(found.log_ratio, 0, atol=1e-12)


def test_recovers_known_shares_of_known_types():
    """Two types far apart; six samples in either group, whose shares of the first type vary about 0.6 and 0.2."""
    rng = np.random.default_rng(0)
    shares = np.concatenate([rng.beta(60, 40, 6), rng.beta(20, 80, 6)])
    sample = np.repeat(np.arange(12), 120)
    is_first = rng.random(len(sample)) < shares[sample]
    mean = np.where(is_first, -5.0, 5.0)[:, None] + rng.normal(size=(len(sample), 2))
    variance = np.full(mean.shape, 0.3)
    mixture = AggregatedPosterior(mean, variance, sample, 12)
    log_prob = mixture.log_density(mean, variance, np.arange(len(sample)))
    n_cells = 120 - (sample[:, None] == np.arange(12)).astype(int)
    found = abundance_ratio(log_prob, n_cells, np.arange(12) < 6, np.arange(12) >= 6)
    counts = np.bincount(sample[is_first], minlength=12) / 120
    for kind, observed in ((is_first, counts), (~is_first, 1 - counts)):
        truth = np.log(observed[:6].mean() / observed[6:].mean())
        assert np.median(found.log_ratio[kind]) == pytest.approx(truth, abs=0.1)
        # Samples scatter by their shares; the error knows that, and holds the truth for nearly all cells.
        assert (np.abs(found.log_ratio[kind] - truth) < 3 * found.standard_error[kind]).mean() > 0.9
    # Shares of twelve samples: the error of the log of the mean of six beta variates, and the kernel's noise above it.
    least = np.sqrt(sum(part.var(ddof=1) / 6 / part.mean() ** 2 for part in (counts[:6], counts[6:])))
    assert least < np.median(found.standard_error[is_first]) < 3 * least


@pytest.mark.parametrize("n_samples", [3, 8])
def test_says_nothing_of_samples_that_do_not_differ(n_samples):
    rng = np.random.default_rng(1)
    sample = np.repeat(np.arange(2 * n_samples), 100)
    mean, variance = rng.normal(size=(len(sample), 2)), np.full((len(sample), 2), 0.1)
    mixture = AggregatedPosterior(mean, variance, sample, 2 * n_samples)
    log_prob = mixture.log_density(mean, variance, np.arange(len(sample)))
    n_cells = 100 - (sample[:, None] == np.arange(2 * n_samples)).astype(int)
    found = abundance_ratio(
        log_prob, n_cells, np.arange(2 * n_samples) < n_samples, np.arange(2 * n_samples) >= n_samples
    )
    assert abs(found.log_ratio.mean()) < 0.05
    # Noise of the shares alone; with few samples their spread is known badly.
    assert 0.5 < (found.log_ratio / found.standard_error).std() < 1.6


def test_says_it_in_words():
    log_prob = pd.DataFrame(np.log([[0.4, 0.4, 0.1, 0.1], [0.1, 0.1, 0.1, 0.1]]), columns=list("abcd"))
    ratio = abundance_ratio(log_prob.to_numpy(), np.full((2, 4), 50), ONE, TWO, ("case", "control"))
    result = DifferentialAbundance(log_prob, pd.Series(50, index=list("abcd")), ratio)
    assert "case (2 samples) over control (2 samples): the state of 1 cells (50 %) is more frequent" in repr(result)
    assert result.to_frame().columns.tolist() == ["a", "b", "c", "d", "log_ratio", "standard_error"]
    assert DifferentialAbundance(log_prob, result.n_cells, None).to_frame().equals(log_prob)
