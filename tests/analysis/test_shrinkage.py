from dataclasses import dataclass

import numpy as np
import pytest
from scipy import integrate, stats

from scvae_ext.analysis import Contrast, CountContrast, expected_fdr, fold_change_posterior
from scvae_ext.analysis.shrinkage import SCALES, FoldChangePosterior


@dataclass(frozen=True, eq=False)
class NormalContrast(Contrast):
    """Normal estimates of known error."""

    value: np.ndarray
    error: np.ndarray

    @property
    def estimate(self):
        return self.value

    @property
    def standard_error(self):
        return self.error

    def log_likelihood(self, fold_change):
        return -0.5 * np.square((fold_change - self.value[:, None]) / self.error[:, None])


@pytest.fixture(scope="module")
def genes():
    """Two thousand genes of which one in five differs, by a standard deviation of 1.2."""
    rng = np.random.default_rng(0)
    truth = np.where(rng.random(2000) < 0.2, rng.normal(0, 1.2, 2000), 0.0)
    error = rng.uniform(0.1, 0.8, 2000)
    return truth, NormalContrast(truth + error * rng.standard_normal(2000), error)


@pytest.fixture(scope="module")
def posterior(genes):
    return fold_change_posterior(genes[1])


def test_mass_sums_to_one(posterior):
    np.testing.assert_allclose(posterior.mass.sum(1), 1.0)
    assert (posterior.mass >= 0).all()


def test_prior_finds_the_share_of_genes_that_do_not_differ(posterior):
    assert posterior.prior.sum() == pytest.approx(1.0)
    # Changes below 0.1 cannot be told from none.
    assert posterior.prior[:2].sum() == pytest.approx(0.8, abs=0.06)
    spread = np.sqrt(posterior.prior[2:] @ np.square(SCALES[1:]) / posterior.prior[2:].sum())
    assert spread == pytest.approx(1.2, rel=0.15)


def test_the_typical_change_is_the_mean_absolute_one_of_genes_that_differ():
    shares = np.array([0.6, 0.0, 0.1, 0.0, 0.05, 0.25, 0.0])
    nothing = np.zeros((1, 1))
    found = FoldChangePosterior(nothing, nothing + 1, np.ones(1), shares)
    means = [integrate.quad(lambda x, sd=sd: 2 * x * stats.norm.pdf(x, scale=sd), 0, 12 * sd)[0] for sd in SCALES]
    assert found.typical_change == pytest.approx(np.average(means, weights=shares[1:]))
    alone = FoldChangePosterior(nothing, nothing + 1, np.ones(1), np.eye(7)[0])
    assert alone.typical_change == 0


def test_moments_are_those_of_the_mixture_in_closed_form(genes, posterior):
    _, contrast = genes
    # A normal likelihood and a normal component have a normal posterior.
    value, error = contrast.value[:, None], contrast.error[:, None]
    scales = np.array([0.0, *SCALES])
    weight = posterior.prior * stats.norm.pdf(value, 0, np.sqrt(scales**2 + error**2))
    weight /= weight.sum(1, keepdims=True)
    shrunk = scales**2 / (scales**2 + error**2)
    mean = (weight * shrunk * value).sum(1)
    second = (weight * (np.square(shrunk * value) + shrunk * error**2)).sum(1)
    np.testing.assert_allclose(posterior.mean, mean, atol=2e-3)
    np.testing.assert_allclose(posterior.std, np.sqrt(second - mean**2), atol=5e-3)
    with np.errstate(divide="ignore"):
        above = stats.norm.sf(0.25, shrunk * value, np.sqrt(shrunk) * error)
    above[:, 0] = 0.0
    np.testing.assert_allclose(posterior.probability_above(0.25), (weight * above).sum(1), atol=5e-3)


def test_probabilities_are_frequencies(genes, posterior):
    truth, _ = genes
    probability = posterior.probability_above(0.25) + 1 - posterior.probability_above(-0.25)
    differs = np.abs(truth) > 0.25
    for low, high in ((0.0, 0.2), (0.2, 0.6), (0.6, 0.95), (0.95, 1.01)):
        chosen = (probability >= low) & (probability < high)
        assert differs[chosen].mean() == pytest.approx(probability[chosen].mean(), abs=0.1)


def test_no_change_lies_neither_above_nor_below_zero(posterior):
    above, below = posterior.probability_above(0.0), posterior.probability_below(0.0)
    np.testing.assert_allclose(above + below + posterior.no_change, 1.0, atol=1e-9)
    assert np.median(posterior.no_change) > 0.5
    np.testing.assert_allclose(posterior.probability_above(-0.5) + posterior.probability_below(-0.5), 1.0)
    np.testing.assert_allclose(posterior.probability_above(0.5) + posterior.probability_below(0.5), 1.0)


def test_false_sign_rate_of_a_list_is_what_it_says(genes, posterior):
    truth, _ = genes
    above, below = posterior.probability_above(0.0), posterior.probability_below(0.0)
    flagged = expected_fdr(np.maximum(above, below)) <= 0.05
    assert flagged.sum() > 100
    assert (np.sign(truth[flagged]) != np.where(above > below, 1, -1)[flagged]).mean() <= 0.075


def test_intervals_cover(genes, posterior):
    truth, _ = genes
    covered = (posterior.quantile(0.025) <= truth) & (truth <= posterior.quantile(0.975))
    assert covered.mean() > 0.93


def test_counts_are_integrated_as_quadrature_does():
    counts = np.array([[0.0, 3.0, 50.0, 20.0, 0.0], [6.0, 5.0, 20.0, 20.0, 0.0]])
    contrast = CountContrast(counts[0], counts[1], np.full(5, 2.0), np.ones(5), np.full(5, 1e9))
    posterior = fold_change_posterior(contrast)
    change = np.linspace(-40, 40, 400_001)
    share = 2.0 * 2.0**change / (2.0 * 2.0**change + 1)
    prior = sum(
        weight * stats.norm.pdf(change, 0, scale) for weight, scale in zip(posterior.prior[1:], SCALES, strict=True)
    )
    for gene, (one, two) in enumerate(counts.T):
        density = share**one * (1 - share) ** two * prior
        at_zero = posterior.prior[0] * (2 / 3) ** one * (1 / 3) ** two
        total = integrate.simpson(density, x=change) + at_zero
        mean = integrate.simpson(change * density, x=change) / total
        above = integrate.simpson(np.where(change > 0.25, density, 0), x=change) / total
        assert posterior.mean[gene] == pytest.approx(mean, abs=5e-3)
        assert posterior.probability_above(0.25)[gene] == pytest.approx(above, abs=5e-3)


def test_without_differences_none_is_probable():
    rng = np.random.default_rng(3)
    error = rng.uniform(0.1, 1.0, 1000)
    posterior = fold_change_posterior(NormalContrast(error * rng.standard_normal(1000), error))
    assert posterior.prior[0] > 0.9
    assert (posterior.probability_above(0.25) < 0.9).all()


def test_quantiles_ascend_and_the_median_of_a_shrunk_gene_is_zero(posterior):
    low, middle, high = (posterior.quantile(level) for level in (0.05, 0.5, 0.95))
    assert (low <= middle).all()
    assert (middle <= high).all()
    assert np.mean(middle == 0) > 0.5
