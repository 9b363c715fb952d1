"""A statistic of the observed data beside that of replicated data sets, and the sums that statistics follow from."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float
from torch import Tensor

__all__ = ["STATISTICS", "Moments", "Replicated"]

STATISTICS = ("mean", "variance", "zeros", "cv")
"""Mean, variance, share of zeros and coefficient of variation."""

INTERVAL = 0.95


@dataclass(frozen=True, eq=False)
class Replicated:
    """A statistic of the observed data, beside the same statistic of each replicated data set.

    Parameters
    ----------
    observed
        Of the observed data; NaN where it is not defined, as the coefficient of variation of zeros alone.
    expected, median
        Mean and median over replicated data sets.
    lower, upper
        Interval that holds 95% of them.
    tail
        Share of replicated data sets with a larger value, those with the same value counted half. NaN where the
        statistic is not defined.
    """

    observed: Float[np.ndarray, "units"]
    expected: Float[np.ndarray, "units"]
    median: Float[np.ndarray, "units"]
    lower: Float[np.ndarray, "units"]
    upper: Float[np.ndarray, "units"]
    tail: Float[np.ndarray, "units"]

    @property
    def is_too_low(self) -> Bool[np.ndarray, "units"]:
        """Whether replicated values are too low: the observed one is above 97.5% of them."""
        return self.tail < (1 - INTERVAL) / 2

    @property
    def is_too_high(self) -> Bool[np.ndarray, "units"]:
        """Whether replicated values are too high: the observed one is below 97.5% of them."""
        return self.tail > (1 + INTERVAL) / 2

    def to_frame(self, name: str, index: pd.Index) -> pd.DataFrame:
        """Return one row a unit, with columns that begin with the name of the statistic.

        Parameters
        ----------
        name
            Of the statistic.
        index
            Names of the units.
        """
        return pd.DataFrame(
            {
                name: self.observed,
                f"{name}_replicated": self.expected,
                f"{name}_median": self.median,
                f"{name}_lower": self.lower,
                f"{name}_upper": self.upper,
                f"{name}_tail": self.tail,
            },
            index=index,
        )

    @classmethod
    def compare(
        cls, observed: Float[np.ndarray, "units"], replicated: Float[np.ndarray, "samples units"]
    ) -> "Replicated":
        """Compare an observed statistic with replicated ones; replicates where it is not defined are left out.

        Parameters
        ----------
        observed, replicated
            The statistic of each unit.
        """
        defined = ~np.isnan(replicated)
        n_defined = defined.sum(0)
        # Quantiles of the defined values alone; a unit that has none keeps NaN.
        usable = n_defined > 0
        expected, lower, median, upper = (np.full(len(observed), np.nan) for _ in range(4))
        expected[usable] = np.where(defined, replicated, 0.0).sum(0)[usable] / n_defined[usable]
        levels = [(1 - INTERVAL) / 2, 0.5, (1 + INTERVAL) / 2]
        complete = n_defined == len(replicated)
        lower[complete], median[complete], upper[complete] = np.quantile(replicated[:, complete], levels, axis=0)
        for unit in np.flatnonzero(usable & ~complete):
            lower[unit], median[unit], upper[unit] = np.quantile(replicated[defined[:, unit], unit], levels)
        larger = (replicated > observed).sum(0) + 0.5 * (replicated == observed).sum(0)
        tail = np.full(len(observed), np.nan)
        comparable = usable & ~np.isnan(observed)
        tail[comparable] = larger[comparable] / n_defined[comparable]
        return cls(observed, expected, median, lower, upper, tail)


@dataclass
class Moments:
    """Sums over some axis, from which all statistics follow.

    Parameters
    ----------
    total, squares, zeros
        Sum of counts, of their squares, and number of zeros.
    n
        How many counts were summed.
    """

    total: np.ndarray
    squares: np.ndarray
    zeros: np.ndarray
    n: int

    @classmethod
    def zero(cls, *shape: int) -> "Moments":
        """Return sums over nothing.

        Parameters
        ----------
        *shape
            Of the sums.
        """
        return cls(np.zeros(shape), np.zeros(shape), np.zeros(shape), 0)

    @classmethod
    def of(cls, counts: Float[Tensor, "*samples cells genes"], axis: int) -> "Moments":
        """Sum over an axis, in double precision.

        Parameters
        ----------
        counts
            Counts.
        axis
            -2 for sums over cells, -1 for sums over genes.
        """
        # Squares as well: in single precision, a count of a few thousand has none that is exact.
        double = counts.double()
        total, squares, zeros = double.sum(axis), double.square().sum(axis), (counts == 0).sum(axis)
        return cls(total.cpu().numpy(), squares.cpu().numpy(), zeros.cpu().numpy(), counts.shape[axis])

    def statistics(self) -> dict[str, np.ndarray]:
        """Return :data:`STATISTICS`; the coefficient of variation is NaN where the mean is zero."""
        mean = self.total / self.n
        variance = np.maximum(self.squares / self.n - np.square(mean), 0.0)
        cv = np.full_like(mean, np.nan)
        np.divide(np.sqrt(variance), mean, out=cv, where=mean > 0)
        return {"mean": mean, "variance": variance, "zeros": self.zeros / self.n, "cv": cv}
