"""Which units of cells are compared."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool

__all__ = ["Comparison"]


@dataclass(frozen=True, eq=False)
class Comparison:
    """Two sets of units of cells to compare: groups, or the cells of a group in a sample.

    Parameters
    ----------
    group1, group2
        Names of the two.
    one, two
        Which units belong to them.
    """

    group1: str
    group2: str
    one: Bool[np.ndarray, "units"]
    two: Bool[np.ndarray, "units"]

    @property
    def name(self) -> str:
        """What is compared, in words."""
        return f"{self.group1} vs {self.group2}"
