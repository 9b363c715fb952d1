"""Groups of cells in a plot."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Shaped

__all__ = ["names_of_groups"]


def names_of_groups(
    groups: Sequence[object] | np.ndarray | pd.Series | None, n_cells: int
) -> Shaped[np.ndarray, "cells"]:
    """Return the name of each cell's group as text, that of all cells where there are no groups.

    Parameters
    ----------
    groups
        Group of each cell, of any type.
    n_cells
        Number of cells.

    Raises
    ------
    ValueError
        If there are more groups than cells, or fewer.
    """
    if groups is None:
        return np.array(["all cells"] * n_cells)
    # By way of objects, because the strings that zarr gives do not turn into others.
    names = np.asarray(groups, dtype=object).astype(str)
    if len(names) != n_cells:
        raise ValueError(f"groups has {len(names)} entries, but there are {n_cells} cells.")
    return names
