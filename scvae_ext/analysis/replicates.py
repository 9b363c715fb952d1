"""Fold changes between groups of cells that come from several samples, with the samples as the replicates."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.special import digamma, gammaincinv, polygamma
from typing_extensions import override

from scvae_ext.analysis.contrasts import LN2, Contrast, effective_exposure
from scvae_ext.analysis.estimates import pooled
from scvae_ext.analysis.moments import GroupMoments

__all__ = ["SampleContrast"]

# Genes with so many effective counts in a sample tell the variance between samples from that of counting.
ENOUGH_COUNTS = 5.0
FEWEST_GENES = 20
MOST_PRIOR_FREEDOM = 100.0
LARGEST_VARIANCE = 25.0
# Of the weight of the median sample, that of another.
MOST_OF_MEDIAN = 2.0


@dataclass(frozen=True, eq=False)
class SampleContrast(Contrast):
    r"""Samples (donors, animals) as replicates: a t distribution about the mean difference between them.

    With the log2 mean expression :math:`y_j` of a group in sample j, whose variance has a part :math:`v_j` from the
    finite number of counts and a part :math:`\tau^2` between samples, the same for all genes,

    .. math:: \hat\beta = \frac{\sum_j h_j y_j}{\sum_j h_j}, \qquad h_j = \min\left(\frac1{u_j},
              2 \operatorname{median}_i \frac1{u_i}\right), \qquad u_j = v_j + \tau^2, \qquad
              \operatorname{Var}(\hat\beta) = \frac{\tilde\varphi}{\sum_j h_j},

    for the differences within samples where groups come from the same ones, and for each group where they do not.
    No sample counts for more than two of the median one: where one has most of the cells, the others are too small to
    show how samples differ (:math:`\tau^2` may come out as zero), and its own error would be taken for that of all.
    :math:`\tilde\varphi`, the spread between samples relative to what is expected, is moderated over genes as in limma
    (Smyth, Statistical Applications in Genetics and Molecular Biology 3, 3 (2004)).

    Parameters
    ----------
    difference
        Estimated log2 fold changes.
    error
        Their standard errors.
    freedom
        Degrees of freedom, those of the moderation included.
    """

    difference: Float[np.ndarray, "genes"]
    error: Float[np.ndarray, "genes"]
    freedom: float

    @classmethod
    def from_moments(cls, one: GroupMoments, two: GroupMoments, *, paired: bool) -> "SampleContrast":
        """Compare two groups of samples.

        Parameters
        ----------
        one, two
            Sums of each sample of group one, and of group two.
        paired
            Whether rows of the two belong to the same samples.
        """
        n_one = len(one.n_cells)
        both = GroupMoments(**{name: np.concatenate([vars(one)[name], vars(two)[name]]) for name in vars(one)})
        exposure = effective_exposure(pooled(both))
        # Half a count keeps the logarithm finite; the same for all samples, so that it makes no difference by itself.
        pseudo = 0.5 / np.minimum(exposure[:n_one].mean(0), exposure[n_one:].mean(0))
        shifted = both.mean + pseudo
        value = np.log2(shifted)
        counting = 1.0 / (shifted * exposure * LN2**2)
        counted = (both.mean * exposure).mean(0) >= ENOUGH_COUNTS
        if counted.sum() < FEWEST_GENES:
            counted = np.ones_like(counted)
        if paired:
            groups = [(value[:n_one] - value[n_one:], counting[:n_one] + counting[n_one:])]
        else:
            groups = [(value[:n_one], counting[:n_one]), (value[n_one:], counting[n_one:])]
        freedom = sum(len(values) - 1 for values, _ in groups)
        between = _variance_between(groups, freedom, counted)
        spread = _spread(groups, between, freedom)
        means, precisions = zip(*(_mean(*group, between) for group in groups), strict=True)
        prior_spread, prior_freedom = _moderation(spread[counted], freedom)
        moderated = (prior_freedom * prior_spread + freedom * spread) / (prior_freedom + freedom)
        variance = moderated * sum(1 / precision for precision in precisions)
        difference = means[0] if paired else means[0] - means[1]
        return cls(difference, np.sqrt(variance), float(min(freedom + prior_freedom, freedom * len(spread))))

    @property
    @override
    def estimate(self) -> Float[np.ndarray, "genes"]:
        return self.difference

    @property
    @override
    def standard_error(self) -> Float[np.ndarray, "genes"]:
        return self.error

    @override
    def log_likelihood(self, fold_change: Float[np.ndarray, "genes nodes"]) -> Float[np.ndarray, "genes nodes"]:
        deviation = np.square((fold_change - self.difference[:, None]) / self.error[:, None])
        log_likelihood: Float[np.ndarray, "genes nodes"] = (
            -0.5 * (self.freedom + 1) * np.log1p(deviation / self.freedom)
        )
        return log_likelihood


Groups = list[tuple[np.ndarray, np.ndarray]]


def _spread(groups: Groups, between: float, freedom: int) -> Float[np.ndarray, "genes"]:
    """Return the squared deviations from the means of the groups, relative to expectation."""
    spread = np.zeros(groups[0][0].shape[1])
    for value, counting in groups:
        weight = 1.0 / (counting + between)
        mean = (weight * value).sum(0) / weight.sum(0)
        spread += (weight * np.square(value - mean)).sum(0)
    return spread / freedom


def _mean(
    value: Float[np.ndarray, "samples genes"], counting: Float[np.ndarray, "samples genes"], between: float
) -> tuple[Float[np.ndarray, "genes"], Float[np.ndarray, "genes"]]:
    """Return the mean of a group and its precision, no sample counting for more than two of the median one."""
    weight = 1.0 / (counting + between)
    weight = np.minimum(weight, MOST_OF_MEDIAN * np.median(weight, axis=0))
    precision = weight.sum(0)
    return (weight * value).sum(0) / precision, precision


def _variance_between(groups: Groups, freedom: int, counted: np.ndarray) -> float:
    """Return the variance between samples for which the typical gene spreads as expected."""
    # The median of a chi-squared variable, per degree of freedom.
    goal = 2 * float(gammaincinv(freedom / 2, 0.5)) / freedom

    def excess(between: float) -> float:
        return float(np.median(_spread(groups, between, freedom)[counted]) - goal)

    low, high = 0.0, LARGEST_VARIANCE
    if excess(low) <= 0:
        return 0.0
    for _ in range(40):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if excess(middle) > 0 else (low, middle)
    return high


def _moderation(spread: Float[np.ndarray, "counted"], freedom: int) -> tuple[float, float]:
    """Return the expected spread and the degrees of freedom that it is worth, by moments of its logarithm."""
    spread = spread[spread > 1e-10]
    if len(spread) < 2:
        return 1.0, 0.0
    log = np.log(spread) - digamma(freedom / 2) + np.log(freedom / 2)
    extra = log.var(ddof=1) - float(polygamma(1, freedom / 2))
    prior_freedom = min(2 * _inverse_trigamma(extra), MOST_PRIOR_FREEDOM) if extra > 0 else MOST_PRIOR_FREEDOM
    location = float(np.exp(log.mean() + digamma(prior_freedom / 2) - np.log(prior_freedom / 2)))
    # Less than what counting and the variance between samples leave would be chance.
    return max(location, 1.0), prior_freedom


def _inverse_trigamma(value: float) -> float:
    guess = 0.5 + 1.0 / value
    for _ in range(50):
        trigamma = float(polygamma(1, guess))
        step = trigamma * (1 - trigamma / value) / float(polygamma(2, guess))
        guess += step
        if -step / guess < 1e-8:
            break
    return guess
