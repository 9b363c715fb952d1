"""Which states of cells are more frequent in some samples than in others."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int
from scipy.special import logsumexp

__all__ = ["AbundanceRatio", "DifferentialAbundance", "abundance_ratio"]

# Cells of the whole population that are added to each sample, so that a sample without any cell of a kind is known to
# have few of them, not none.
PSEUDO_CELLS = 1.0
# Standard errors from zero beyond which a state counts as different in the summary.
NOTABLE = 2.0


@dataclass(frozen=True, eq=False)
class AbundanceRatio:
    """Log ratio of the density of each cell's state in two groups of samples.

    Parameters
    ----------
    group1, group2
        Names of the groups; the ratio is that of the first over the second.
    log_ratio
        Natural logarithm of the ratio, a value a cell.
    standard_error
        Its standard error from the spread between samples; not a number where a group has one sample.
    n_samples1, n_samples2
        Numbers of samples.
    """

    group1: str
    group2: str
    log_ratio: Float[np.ndarray, "cells"]
    standard_error: Float[np.ndarray, "cells"]
    n_samples1: int
    n_samples2: int


@dataclass(frozen=True, eq=False, repr=False)
class DifferentialAbundance:
    """Density of each cell's state in each sample, and its ratio between two groups of samples.

    Parameters
    ----------
    log_prob
        Log density of cells (rows) in samples (columns), in nats.
    n_cells
        Number of cells of each sample that its density is made of.
    ratio
        The ratio between groups, ``None`` where none were asked for.
    """

    log_prob: pd.DataFrame
    n_cells: pd.Series
    ratio: AbundanceRatio | None

    def to_frame(self) -> pd.DataFrame:
        """Return cells by samples, in nats, and behind them ``log_ratio`` and ``standard_error`` where there are."""
        if self.ratio is None:
            return self.log_prob.copy()
        return self.log_prob.assign(log_ratio=self.ratio.log_ratio, standard_error=self.ratio.standard_error)

    def summary(self) -> str:
        """Return the result in plain words."""
        sizes = ", ".join(f"{name} ({n})" for name, n in self.n_cells.items())
        lines = [f"{len(self.log_prob)} cells; samples with their numbers of cells: {sizes}."]
        ratio = self.ratio
        if ratio is not None:
            n = len(ratio.log_ratio)
            with np.errstate(invalid="ignore"):
                up = int((ratio.log_ratio > NOTABLE * ratio.standard_error).sum())
                down = int((ratio.log_ratio < -NOTABLE * ratio.standard_error).sum())
            lines.append(
                f"{ratio.group1} ({ratio.n_samples1} samples) over {ratio.group2} ({ratio.n_samples2} samples): the "
                f"state of {up} cells ({100 * up / n:.0f} %) is more frequent and that of {down} ({100 * down / n:.0f} "
                f"%) less frequent by more than {NOTABLE:g} standard errors between samples. About 5 % would be by "
                "chance, more with few samples, and cells beside each other share their chance. Shares of a sample sum "
                "to one: what is more frequent makes all else less so."
            )
        return "\n".join(lines)

    def __repr__(self) -> str:
        return self.summary()


def abundance_ratio(
    log_prob: Float[np.ndarray, "cells samples"],
    n_cells: Int[np.ndarray, "cells samples"],
    one: Bool[np.ndarray, "samples"],
    two: Bool[np.ndarray, "samples"],
    names: tuple[str, str] = ("one", "two"),
) -> AbundanceRatio:
    r"""Compare the density of states between two groups of samples, with the samples as replicates.

    .. math:: r_{ns} = \frac{N_s q_s(z_n) + q(z_n)}{(N_s + 1)\, q(z_n)}, \qquad
              \hat\beta_n = \log \bar r_{n1} - \log \bar r_{n2}, \qquad
              \operatorname{se}^2_n = \max\Big(\sum_{g=1}^2 \frac{v_{ng}}{S_g\,\bar r_{ng}^2},\;
              \phi_n \sum_{g=1}^2 \frac{1}{S_g\,\bar r_{ng}}\Big), \qquad
              \phi_n = \frac{\sum_g (S_g - 1)\, v_{ng} / \bar r_{ng}}{\sum_g (S_g - 1)}

    with the density :math:`q` of all samples' cells together, and means and variances :math:`v` over the :math:`S_g`
    samples of a group. The one cell of the whole population that each sample gets bounds the ratio where a sample has
    no cell at all. A sample counts the same whatever its number of cells. The standard error is that of the delta
    method, and no less than with a variance that is proportional to the mean, by one factor for both groups, as that of
    numbers of cells is: where no sample of a group has a cell nearby, they do not differ, and say little all the same.

    Parameters
    ----------
    log_prob
        Log density of each cell's state in each sample, the cell itself left out.
    n_cells
        Number of cells that each of them is made of.
    one, two
        Samples of either group; others count towards the whole population alone.
    names
        Names of the groups.
    """
    with np.errstate(divide="ignore"):
        weighted = log_prob + np.log(n_cells)
    population = logsumexp(weighted, axis=1, keepdims=True) - np.log(n_cells.sum(axis=1, keepdims=True))
    smoothed = np.logaddexp(weighted, np.log(PSEUDO_CELLS) + population) - np.log(n_cells + PSEUDO_CELLS)
    relative = np.exp(smoothed - population)
    log_ratio, variance = np.zeros(len(log_prob)), np.zeros(len(log_prob))
    factor, inverse, n_free = np.zeros(len(log_prob)), np.zeros(len(log_prob)), 0
    for sign, group in ((1, one), (-1, two)):
        values = relative[:, group]
        mean = values.mean(axis=1)
        log_ratio += sign * np.log(mean)
        n_samples = values.shape[1]
        spread = values.var(axis=1, ddof=1) if n_samples > 1 else np.full(len(values), np.nan)
        variance += spread / (n_samples * mean**2)
        factor += (n_samples - 1) * spread / mean
        inverse += 1 / (n_samples * mean)
        n_free += n_samples - 1
    variance = np.maximum(variance, factor * inverse / max(n_free, 1))
    return AbundanceRatio(*names, log_ratio, np.sqrt(variance), int(one.sum()), int(two.sum()))
