"""How often a cell of one group expresses more of a gene than a cell of another."""

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from scvae_ext.analysis.comparison import Comparison
from scvae_ext.analysis.differential_expression import bayes_factor

__all__ = ["PairProbabilities"]


class PairProbabilities:
    r"""Probability that expression in a random cell of group one is above that in a random cell of group two.

    .. math:: p(M_1) = \frac{1}{n_1 n_2} \sum_{a \in 1} \sum_{b \in 2}
              \{P(\rho_a > \rho_b) + \tfrac12 P(\rho_a = \rho_b)\},

    by all pairs of the draws given. This is the ``"vanilla"`` test of Lopez et al., Nature Methods 15, 1053 (2018). It
    says how well a gene tells two cells apart, not how sure it is that the means of the groups differ.

    Parameters
    ----------
    expression
        Draws of expression, in random order of cells.
    unit
        Unit of the cell of each draw.
    n_cells
        Number of cells of each unit, which its draws stand for.
    """

    def __init__(
        self,
        expression: Float[np.ndarray, "draws genes"],
        unit: Int[np.ndarray, "draws"],
        n_cells: Float[np.ndarray, "units"],
    ) -> None:
        n_draws = np.bincount(unit, minlength=len(n_cells))
        self._weight = n_cells / np.maximum(n_draws, 1)
        # Ranks are found once, for all comparisons.
        order = np.argsort(expression, axis=0)
        self._unit = unit[order]
        ordered = np.take_along_axis(expression, order, axis=0)
        is_tied = ordered[1:] == ordered[:-1]
        self._has_ties = is_tied.any(0)
        # Equal draws in the one order and in its reverse: the mean of the two counts each such pair half.
        self._unit_reversed = _with_runs_reversed(self._unit[:, self._has_ties], is_tied[:, self._has_ties])

    def table(self, comparison: Comparison) -> pd.DataFrame:
        """Return one row a gene.

        Parameters
        ----------
        comparison
            Which units to compare.
        """
        probability = self._share_above(self._unit, comparison)
        of_reversed = self._share_above(self._unit_reversed, comparison)
        probability[self._has_ties] = 0.5 * (probability[self._has_ties] + of_reversed)
        return pd.DataFrame(
            {"proba_m1": probability, "proba_m2": 1.0 - probability, "bayes_factor": bayes_factor(probability)}
        )

    def _share_above(
        self, unit: Int[np.ndarray, "draws chosen"], comparison: Comparison
    ) -> Float[np.ndarray, "chosen"]:
        """Return the share of pairs whose draw of group one comes later."""
        one, two = comparison.one * self._weight, comparison.two * self._weight
        weight_one, weight_two = one[unit], two[unit]
        above = (weight_one * weight_two.cumsum(0)).sum(0)
        share: np.ndarray = np.clip(above / (weight_one.sum(0) * weight_two.sum(0)), 0.0, 1.0)
        return share


def _with_runs_reversed(
    values: Int[np.ndarray, "draws chosen"], is_tied: Bool[np.ndarray, "steps chosen"]
) -> Int[np.ndarray, "draws chosen"]:
    """Reverse each run of rows that are tied to the next, column by column."""
    place = np.arange(len(values))[:, None]
    edge = np.ones((1, values.shape[1]), dtype=bool)
    first = np.maximum.accumulate(np.where(np.concatenate([edge, ~is_tied]), place, 0), axis=0)
    ends = np.where(np.concatenate([~is_tied, edge]), place, len(values))
    last = np.minimum.accumulate(ends[::-1], axis=0)[::-1]
    reversed_values: np.ndarray = np.take_along_axis(values, first + last - place, axis=0)
    return reversed_values
