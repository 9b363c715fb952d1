"""How often a cell of one group expresses more of a gene than a cell of another."""

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from scvae_ext.analysis.differential_expression import Comparison, bayes_factor

__all__ = ["PairProbabilities"]


class PairProbabilities:
    r"""Probability that expression in a random cell of group one is above that in a random cell of group two.

    .. math:: p(M_1) = \frac{1}{n_1 n_2} \sum_{a \in 1} \sum_{b \in 2} P(\rho_a > \rho_b),

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
        # Ranks are found once, for all comparisons.
        self._unit = unit[np.argsort(expression, axis=0)]
        self._weight = n_cells / np.maximum(n_draws, 1)

    def table(self, comparison: Comparison) -> pd.DataFrame:
        """Return one row a gene.

        Parameters
        ----------
        comparison
            Which units to compare.
        """
        one, two = comparison.one * self._weight, comparison.two * self._weight
        weight_one, weight_two = one[self._unit], two[self._unit]
        above = (weight_one * weight_two.cumsum(0)).sum(0)
        probability = np.clip(above / (weight_one.sum(0) * weight_two.sum(0)), 0.0, 1.0)
        return pd.DataFrame(
            {"proba_m1": probability, "proba_m2": 1.0 - probability, "bayes_factor": bayes_factor(probability)}
        )
