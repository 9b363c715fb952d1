"""How well the data support each log fold change of a gene between two groups."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Self

import numpy as np
from jaxtyping import Float
from scipy.special import xlogy
from typing_extensions import override

from scvae_ext.analysis.estimates import GroupEstimates

__all__ = ["Contrast", "CountContrast", "effective_exposure"]

LN2 = float(np.log(2.0))
# Cells that the overdispersion expected by the model counts for, beside that seen between cells.
PRIOR_CELLS = 10.0


class Contrast(ABC):
    """Likelihood of the log2 fold change of each gene, group one over group two."""

    @property
    @abstractmethod
    def estimate(self) -> Float[np.ndarray, "genes"]:
        """Where the likelihood is about highest, always finite."""

    @property
    @abstractmethod
    def standard_error(self) -> Float[np.ndarray, "genes"]:
        """How wide it is about there."""

    @abstractmethod
    def log_likelihood(self, fold_change: Float[np.ndarray, "genes nodes"]) -> Float[np.ndarray, "genes nodes"]:
        """Return the log-likelihood, zero at its maximum.

        Parameters
        ----------
        fold_change
            Log2 fold changes to evaluate for each gene.
        """


@dataclass(frozen=True, eq=False)
class CountContrast(Contrast):
    r"""Cells as replicates: two totals of counts, corrected for overdispersion, of which the first is binomial.

    A group whose mean :math:`m` has the sampling variance :math:`v` weighs as much as :math:`k = m^2/v` independent
    counts at the exposure :math:`e = m/v`. Given both,

    .. math:: k_1 \mid k_1 + k_2 \sim \operatorname{Binomial}\left(k_1 + k_2,
              \frac{e_1 2^\beta}{e_1 2^\beta + e_2}\right)

    with the log2 fold change :math:`\beta` (Przyborowski and Wilenski, Biometrika 31, 313 (1940)), which stays exact
    for genes with few counts and groups of different size, where a normal approximation does not. The deviance
    :math:`D` enters as :math:`(1 + D/\nu)^{-(\nu + 1)/2}`, because the variances come from a finite number of cells.

    Parameters
    ----------
    counts1, counts2
        Effective counts :math:`k`.
    exposure1, exposure2
        Effective exposures :math:`e`.
    freedom
        Degrees of freedom :math:`\nu` of the variances.
    """

    counts1: Float[np.ndarray, "genes"]
    counts2: Float[np.ndarray, "genes"]
    exposure1: Float[np.ndarray, "genes"]
    exposure2: Float[np.ndarray, "genes"]
    freedom: Float[np.ndarray, "genes"]

    @classmethod
    def of(cls, groups: GroupEstimates) -> Self:
        """Compare two groups of cells.

        Parameters
        ----------
        groups
            What is known of group one, and of group two.
        """
        exposure = effective_exposure(groups)
        counts = groups.mean * exposure
        variance = 1.0 / exposure
        cells = groups.n_measured - 1 + PRIOR_CELLS
        freedom = np.square(variance.sum(0)) / (np.square(variance) / cells).sum(0)
        return cls(counts[0], counts[1], exposure[0], exposure[1], freedom)

    @property
    @override
    def estimate(self) -> Float[np.ndarray, "genes"]:
        ratio: Float[np.ndarray, genes] = np.log2((self.counts1 + 0.5) / (self.counts2 + 0.5)) - self._offset
        return ratio

    @property
    @override
    def standard_error(self) -> Float[np.ndarray, "genes"]:
        error: Float[np.ndarray, genes] = np.sqrt(1 / (self.counts1 + 0.5) + 1 / (self.counts2 + 0.5)) / LN2
        return error

    @property
    def _offset(self) -> Float[np.ndarray, "genes"]:
        offset: Float[np.ndarray, genes] = np.log2(self.exposure1 / self.exposure2)
        return offset

    @override
    def log_likelihood(self, fold_change: Float[np.ndarray, "genes nodes"]) -> Float[np.ndarray, "genes nodes"]:
        one, two = self.counts1[:, None], self.counts2[:, None]
        log_odds = (fold_change + self._offset[:, None]) * LN2
        total = np.maximum(one + two, np.finfo(np.float64).tiny)
        highest = xlogy(one, one / total) + xlogy(two, two / total)
        deviance = 2 * (highest + total * np.logaddexp(0, log_odds) - one * log_odds)
        freedom = self.freedom[:, None]
        log_likelihood: Float[np.ndarray, "genes nodes"] = (
            -0.5 * (freedom + 1) * np.log1p(np.maximum(deviance, 0.0) / freedom)
        )
        return log_likelihood


def effective_exposure(groups: GroupEstimates) -> Float[np.ndarray, "groups genes"]:
    r"""Return the exposure at which independent counts would say as much about the mean of a group as its cells do.

    That is :math:`e/\varphi` with the exposure of the group and the overdispersion :math:`\varphi = v e / m`, the ratio
    of the sampling variance seen between cells to that of Poisson counts. A gene that few cells
    express says little about it: it is averaged with that of all groups, and that with one, each prior counting for
    ten cells.

    Parameters
    ----------
    groups
        What is known of each.
    """
    seen = (groups.mean > 0) & (groups.n_measured > 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = np.where(seen, groups.variance * groups.exposure / groups.mean, 1.0)
    weight = np.where(seen, np.minimum(groups.n_expressing, groups.n_measured - 1), 0.0)
    common = ((ratio * weight).sum(0) + PRIOR_CELLS) / (weight.sum(0) + PRIOR_CELLS)
    overdispersion = (ratio * weight + PRIOR_CELLS * common) / (weight + PRIOR_CELLS)
    exposure: Float[np.ndarray, "groups genes"] = groups.exposure / overdispersion
    return exposure
