"""Rows of a sparse matrix, as minibatches hold them."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from scvae_ext.kernels.compiled import compiled
from scvae_ext.kernels.team import in_team, integers, next_range, small_integers, task, vector

__all__ = ["gathered_rows"]

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
SmallInts = NDArray[np.int32]

_ROWS_AT_A_TIME = 32


def gathered_rows(
    values: Floats, gene_index: NDArray[Any], offsets: NDArray[Any], positions: Ints, places: Ints
) -> tuple[Floats, Ints, Ints, Ints, Floats]:
    """Copy some rows of a matrix in compressed rows, in the order asked for.

    Parameters
    ----------
    values, gene_index, offsets
        The matrix: its values; the column of each, in int32 or int64; where each row begins, and the number of values.
    positions
        Which rows.
    places
        What to write as the row of their values.

    Returns
    -------
    values, places, gene_index
        Of the copied rows, one after the other.
    offsets
        Where each of them begins, and the number of values.
    totals
        Sum of the values of each.
    """
    starts = offsets[positions].astype(np.int64)
    copied = np.concatenate([[0], np.cumsum(offsets[positions + 1] - starts, dtype=np.int64)])
    # An index of 64 bits is read as its two halves, of which the first holds every number of a gene.
    step = gene_index.itemsize // 4
    halves = np.ascontiguousarray(gene_index).view(np.int32)
    n_values = int(copied[-1])
    out = np.empty(n_values, dtype=np.float32), np.empty(n_values, dtype=np.int64), np.empty(n_values, dtype=np.int64)
    totals = np.empty(len(positions), dtype=np.float32)
    arrays = (
        *(np.ascontiguousarray(values), halves, np.array([step], dtype=np.int64)),
        *(starts, copied, np.ascontiguousarray(places), *out, totals),
    )
    in_team(_rows_task, arrays, len(positions), _ROWS_AT_A_TIME)
    return *out, copied, totals


@task
def _rows_task(words: Any) -> None:
    values, gene_index, step = vector(words, 0), small_integers(words, 1), integers(words, 2)
    starts, copied, places = integers(words, 3), integers(words, 4), integers(words, 5)
    out_values, out_places, out_genes = vector(words, 6), integers(words, 7), integers(words, 8)
    totals = vector(words, 9)
    first, last = next_range(words)
    while first < last:
        for row in range(first, last):
            start, into, stop = starts[row], copied[row], copied[row + 1]
            n = stop - into
            genes = gene_index[start * step[0] : (start + n) * step[0] : step[0]]
            totals[row] = _copy_row(values[start : start + n], out_values[into:stop])
            _widen(genes, out_genes[into:stop])
            out_places[into:stop] = places[row]
        first, last = next_range(words)


@compiled(sums=True)
def _copy_row(values: Floats, result: Floats) -> np.float32:
    total = 0.0
    for entry in range(values.size):
        result[entry] = values[entry]
        total += values[entry]
    return np.float32(total)


@compiled()
def _widen(values: SmallInts, result: Ints) -> None:
    for entry in range(values.size):
        result[entry] = values[entry]
