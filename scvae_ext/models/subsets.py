"""Some of the model's cells in place of all, where time would grow with cells times cells."""

import numpy as np
from jaxtyping import Int

__all__ = ["place_among", "some_of_each"]


def some_of_each(
    codes: Int[np.ndarray, "all_cells"], n_groups: int, most_cells: int | None, seed: int
) -> Int[np.ndarray, "chosen"]:
    """Return the positions of the cells of some groups, of each no more than asked for.

    Parameters
    ----------
    codes, n_groups
        Group of each cell, -1 for one of none, and the number of groups.
    most_cells
        Cells of a group, drawn at random where it has more; all where ``None``.
    seed
        Of the draw.
    """
    if most_cells is None:
        return np.flatnonzero(codes >= 0)
    generator = np.random.default_rng(seed)
    of_group = (generator.permutation(np.flatnonzero(codes == group)) for group in range(n_groups))
    return np.sort(np.concatenate([members[:most_cells] for members in of_group]))


def place_among(
    chosen: Int[np.ndarray, "chosen"], n_cells: int, positions: Int[np.ndarray, "cells"]
) -> Int[np.ndarray, "cells"]:
    """Return where cells stand among those that were chosen, -1 for the others.

    Parameters
    ----------
    chosen, n_cells
        Positions of those that were chosen, of so many cells.
    positions
        Of the cells that are asked about, -1 for one that is none of them.
    """
    place = np.full(n_cells + 1, -1)
    place[chosen] = np.arange(len(chosen))
    # The position -1 is that of the last entry, which is never set.
    found: np.ndarray = place[positions]
    return found
