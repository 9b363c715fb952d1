"""The order in which cells on disk are read for training."""

import numpy as np
from jaxtyping import Int

from scvae_ext.data.loading import CellSource

__all__ = ["cells_per_window", "shuffle_blocks"]

# Cells that are shuffled together; 256 MB of float32 values and int32 columns at most.
_CELLS_PER_WINDOW = 1 << 14
_ENTRIES_PER_WINDOW = 1 << 25
_BLOCKS_PER_WINDOW = 64


def shuffle_blocks(
    indices: Int[np.ndarray, "cells"], rows_per_block: int, generator: np.random.Generator
) -> Int[np.ndarray, "cells"]:
    """Return cells in an order in which those of one block of the file stand together, blocks at random.

    A block is the cells whose positions agree in their quotient by ``rows_per_block``.

    Parameters
    ----------
    indices
        Positions of the cells, ascending.
    rows_per_block
        Number of consecutive positions in a block.
    generator
        Source of the order.
    """
    block = indices // rows_per_block
    starts = np.flatnonzero(np.diff(block, prepend=-1))
    rank = generator.permutation(len(starts))
    return indices[np.argsort(np.repeat(rank, np.diff(starts, append=len(indices))), kind="stable")]


def cells_per_window(source: CellSource, rows_per_block: int) -> int:
    """Return how many cells are held in memory and shuffled together.

    At least 16,384 cells and 64 blocks, unless their counts that are not zero would take more than 256 MB.

    Parameters
    ----------
    source
        The cells.
    rows_per_block
        Number of cells in a block.
    """
    per_cell = max(1.0, source.facts.n_nonzero / source.n_cells)
    return int(min(max(_CELLS_PER_WINDOW, _BLOCKS_PER_WINDOW * rows_per_block), _ENTRIES_PER_WINDOW / per_cell))
