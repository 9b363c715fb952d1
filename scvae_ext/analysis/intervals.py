"""Intervals of normalized expression that hold the truth as often as they say."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

__all__ = ["ExpressionInterval", "IntervalCalibration", "calibrate_intervals", "interval_level"]

# Levels at which quantiles are kept; others are interpolated. Beyond the ends they would be extrapolated.
LEVELS = np.concatenate([[0.01], np.arange(1, 40) / 40, [0.99]])
N_BINS = 10
GENES_PER_BIN = 20
ERRORS_PER_BIN = 100
SMALLEST_SD = 1e-12
# Standard deviations to either side that hold 90 % of a Gaussian.
GAUSSIAN_90 = 1.6448536
BISECTIONS = 30


@dataclass(frozen=True, eq=False, repr=False)
class IntervalCalibration:
    r"""How far the model's expression lies from a known truth, in units of the spread of its posterior.

    The interval of level :math:`\alpha` for a gene of bin :math:`b` is

    .. math::
        \exp\left(\log\hat\rho \pm k_b(\alpha) \sqrt{s^2 + \tau_b^2}\right)

    with the posterior's standard deviation :math:`s` of :math:`\log\rho`.

    Parameters
    ----------
    levels
        Levels at which ``multipliers`` are tabulated, between 0 and 1.
    multipliers
        :math:`k_b`, a row a bin and a column a level.
    extra_sd
        :math:`\tau_b`, standard deviation of :math:`\log\rho` that the posterior leaves out.
    mean_counts
        Mean count per cell of the genes of each bin.
    gene_bin
        Bin of each gene of the model.
    posterior_coverage
        Share of known values inside the central 90 % interval of the posterior alone.
    n_cells
        Number of cells whose values were compared.
    """

    levels: Float[np.ndarray, "levels"]
    multipliers: Float[np.ndarray, "bins levels"]
    extra_sd: Float[np.ndarray, "bins"]
    mean_counts: Float[np.ndarray, "bins"]
    gene_bin: Int[np.ndarray, "genes"]
    posterior_coverage: float
    n_cells: int

    def half_width(
        self, sd: Float[np.ndarray, "cells chosen"], level: float, genes: Int[np.ndarray, "chosen"] | None = None
    ) -> Float[np.ndarray, "cells chosen"]:
        """Return half the width of the interval of log expression.

        Parameters
        ----------
        sd
            Posterior standard deviation of log expression.
        level
            Share of true values that intervals are to hold.
        genes
            Positions of the genes that the columns stand for; all where ``None``.
        """
        bins = self.gene_bin if genes is None else self.gene_bin[genes]
        multiplier = np.array([np.interp(level, self.levels, row) for row in self.multipliers])
        width: np.ndarray = multiplier[bins] * np.sqrt(np.square(sd) + np.square(self.extra_sd)[bins])
        return width.astype(sd.dtype)

    def to_frame(self) -> pd.DataFrame:
        """Return one row for each bin of genes, with the multipliers at 50, 80, 90 and 95 %."""
        frame = pd.DataFrame(
            {
                "n_genes": np.bincount(self.gene_bin, minlength=len(self.extra_sd)),
                "mean_counts": self.mean_counts,
                "extra_sd": self.extra_sd,
            },
            index=pd.RangeIndex(len(self.extra_sd), name="bin"),
        )
        for level in (0.5, 0.8, 0.9, 0.95):
            frame[f"multiplier_{level:g}"] = [np.interp(level, self.levels, row) for row in self.multipliers]
        return frame

    def summary(self) -> str:
        """Return the result in plain words."""
        return (
            f"In counts simulated from the model, of {self.n_cells} cells, the posterior's own 90 % intervals hold "
            f"{100 * self.posterior_coverage:.0f} % of the known expression values: its spread leaves out the errors "
            "of decoder and encoder. The calibrated intervals are wider, for each of "
            f"{len(self.extra_sd)} groups of genes by mean count, so that they hold the stated share of them."
        )

    def __repr__(self) -> str:
        return self.summary()


@dataclass(frozen=True, eq=False, repr=False)
class ExpressionInterval:
    """Normalized expression of cells and genes with an interval for each value.

    Parameters
    ----------
    lower, median, upper
        Ends of the interval, and expression at the mean of the posterior, in the unit that was asked for.
    level
        Share of true values that the intervals are to hold.
    obs_names, var_names
        Names of cells and genes.
    """

    lower: Float[np.ndarray, "cells chosen"]
    median: Float[np.ndarray, "cells chosen"]
    upper: Float[np.ndarray, "cells chosen"]
    level: float
    obs_names: pd.Index
    var_names: pd.Index

    def to_frame(self) -> pd.DataFrame:
        """Return one row for each cell and gene, cell by cell."""
        index = pd.MultiIndex.from_product([self.obs_names, self.var_names], names=["cell", "gene"])
        values = {"lower": self.lower.ravel(), "median": self.median.ravel(), "upper": self.upper.ravel()}
        return pd.DataFrame(values, index=index)

    def summary(self) -> str:
        """Return the result in plain words."""
        fold = np.exp(np.median(np.log(self.upper) - np.log(self.lower)) / 2)
        return (
            f"{100 * self.level:g} % intervals of {self.median.shape[1]} genes in {self.median.shape[0]} cells; "
            f"half of them reach further than a factor of {fold:.2f} from their median."
        )

    def __repr__(self) -> str:
        return self.summary()


def interval_level(level: float) -> float:
    """Return the level of an interval, checked.

    Parameters
    ----------
    level
        Share of true values that the interval is to hold.

    Raises
    ------
    ValueError
        If it is not between 0.01 and 0.99.
    """
    if isinstance(level, bool) or not LEVELS[0] <= level <= LEVELS[-1]:
        raise ValueError(f"The level of an interval is {level!r}: pass a number from 0.01 to 0.99, 0.9 for 90 %.")
    return float(level)


def calibrate_intervals(
    error: Float[np.ndarray, "cells genes"],
    sd: Float[np.ndarray, "cells genes"],
    mean_counts: Float[np.ndarray, "genes"],
) -> IntervalCalibration:
    r"""Find how wide intervals must be, from errors against a known truth.

    Genes are put into at most ten bins of equal size by their mean count, because rare genes are shrunk towards their
    mean more than abundant ones. With the errors :math:`e` of :math:`\log\rho` and the posterior's standard deviations
    :math:`s`, each bin gets :math:`\tau_b`, the smallest spread beyond the posterior's with which

    .. math:: |e| \le 1.645 \sqrt{s^2 + \tau_b^2}

    for 90 % of its errors, and :math:`k_b(\alpha)`, the quantile :math:`\alpha` of :math:`|e| / \sqrt{s^2 + \tau_b^2}`.

    Parameters
    ----------
    error
        Estimated minus true log expression.
    sd
        Standard deviation that the posterior gives to log expression.
    mean_counts
        Mean count per cell of each gene.

    Raises
    ------
    ValueError
        If an error or a standard deviation is not finite.

    Examples
    --------
    >>> import numpy as np
    >>> from scvae_ext.analysis import calibrate_intervals
    >>> rng = np.random.default_rng(0)
    >>> sd = np.full((500, 40), 0.1)
    >>> found = calibrate_intervals(rng.normal(0, 0.3, sd.shape), sd, np.arange(1.0, 41.0))
    >>> found.half_width(sd, 0.95)[0, 0].round(1)
    np.float64(0.6)
    """
    if not (np.isfinite(error).all() and np.isfinite(sd).all()):
        raise ValueError("Errors or standard deviations of log expression are not finite: has the model diverged?")
    n_bins = max(1, min(N_BINS, error.shape[1] // GENES_PER_BIN, error.size // ERRORS_PER_BIN))
    gene_bin = np.empty(error.shape[1], dtype=np.int64)
    for position, genes in enumerate(np.array_split(np.argsort(mean_counts, kind="stable"), n_bins)):
        gene_bin[genes] = position
    extra, multipliers = np.empty(n_bins), np.empty((n_bins, len(LEVELS)))
    for position in range(n_bins):
        chosen = gene_bin == position
        of_bin, spread = error[:, chosen].astype(np.float64), np.square(sd[:, chosen], dtype=np.float64)
        extra[position] = _missing_spread(np.abs(of_bin), spread)
        scale = np.sqrt(spread + extra[position] ** 2).clip(SMALLEST_SD)
        multipliers[position] = np.quantile(np.abs(of_bin) / scale, LEVELS)
    covered = np.abs(error) <= GAUSSIAN_90 * sd
    return IntervalCalibration(
        levels=LEVELS.copy(),
        multipliers=multipliers,
        extra_sd=extra,
        mean_counts=np.array([mean_counts[gene_bin == position].mean() for position in range(n_bins)]),
        gene_bin=gene_bin,
        posterior_coverage=float(covered.mean()),
        n_cells=len(error),
    )


def _missing_spread(size: Float[np.ndarray, "cells chosen"], variance: Float[np.ndarray, "cells chosen"]) -> float:
    """Return the least standard deviation that has to be added for 90 % of the errors to be as large as they may be."""

    def is_enough(extra: float) -> bool:
        return bool(np.mean(np.square(size) <= GAUSSIAN_90**2 * (variance + extra**2)) >= 0.9)

    # Not from the mean square, in which expression that underflowed would outweigh all else.
    low, high = 0.0, float(size.max()) / GAUSSIAN_90
    if is_enough(low):
        return low
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (low, middle) if is_enough(middle) else (middle, high)
    return high
