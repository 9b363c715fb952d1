"""One pass over all counts: what is wrong with them, and their totals."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import scipy.sparse as sp
from jaxtyping import Bool, Float

__all__ = ["CountFacts", "Entry", "changed_counts", "require_counts", "scan_counts"]

# Small enough that the passes over a part find it in the processor's cache.
_ENTRIES_PER_PART = 1 << 16


@dataclass(frozen=True)
class Entry:
    """One entry of a matrix, by name.

    Parameters
    ----------
    cell, gene
        Names of the row and the column.
    value
        The entry.
    """

    cell: str
    gene: str
    value: float


@dataclass(frozen=True)
class CountFacts:
    """What a pass over a matrix of counts found.

    Parameters
    ----------
    total_per_cell, total_per_gene
        Sums over the rows and the columns, in counts.
    first_fraction
        The first entry that is not a whole number, row by row; ``None`` if there is none.
    n_nonzero
        Number of entries that are not zero.
    """

    total_per_cell: Float[np.ndarray, "cells"]
    total_per_gene: Float[np.ndarray, "genes"]
    first_fraction: Entry | None
    n_nonzero: int


def scan_counts(
    chunks: Iterable[tuple[int, sp.csr_matrix]], cell_names: pd.Index, gene_names: pd.Index, where: str
) -> CountFacts:
    """Look at every entry of a matrix.

    Parameters
    ----------
    chunks
        Pairs of first row and canonical CSR rows, which together cover the matrix in order.
    cell_names, gene_names
        Names of the rows and columns.
    where
        Name of the matrix for messages.

    Returns
    -------
    CountFacts
        Totals in float64, and the first fraction.

    Raises
    ------
    ValueError
        If an entry is negative, NaN or infinite.
    """
    total_per_cell = np.zeros(len(cell_names))
    total_per_gene = np.zeros(len(gene_names))
    first_fraction = None
    n_nonzero = 0

    def name(start: int, rows: sp.csr_matrix, place: int) -> Entry:
        row = start + int(np.searchsorted(rows.indptr, place, side="right")) - 1
        return Entry(str(cell_names[row]), str(gene_names[rows.indices[place]]), float(rows.data[place]))

    for start, rows in chunks:
        for begin in range(0, rows.nnz, _ENTRIES_PER_PART):
            part = rows.data[begin : begin + _ENTRIES_PER_PART]
            # A NaN makes the minimum NaN, so that the first comparison fails.
            if not (part.min() >= 0 and part.max() < np.inf):
                place = begin + _first(~((part >= 0) & (part < np.inf)))
                raise ValueError(_describe_invalid(name(start, rows, place), where))
            if first_fraction is None:
                is_fraction = np.rint(part) != part
                if is_fraction.any():
                    first_fraction = name(start, rows, begin + _first(is_fraction))
        n_nonzero += rows.nnz
        total_per_cell[start : start + rows.shape[0]] = sum_rows(rows)
        total_per_gene += np.ones(rows.shape[0], dtype=rows.dtype) @ rows
    return CountFacts(total_per_cell, total_per_gene, first_fraction, n_nonzero)


def sum_rows(rows: sp.csr_matrix) -> Float[np.ndarray, "cells"]:
    """Sum each row in float64.

    Parameters
    ----------
    rows
        CSR matrix.
    """
    totals = np.zeros(rows.shape[0])
    filled = np.diff(rows.indptr) > 0
    if filled.any():
        # reduceat would give an empty row the value of the next one.
        totals[filled] = np.add.reduceat(rows.data, rows.indptr[:-1][filled], dtype=np.float64)
    return totals


def _first(mask: Bool[np.ndarray, "entries"]) -> int:
    return int(np.argmax(mask))


def _describe_invalid(entry: Entry, where: str) -> str:
    at = f"cell {entry.cell!r}, gene {entry.gene!r} of {where} is {entry.value:g}"
    if entry.value < 0:
        return (
            f"{at}: counts cannot be negative. Were the values scaled or batch-corrected? "
            "Pass the layer that holds raw counts, layer='counts' for example."
        )
    return (
        f"{at}: counts must be finite. Find where it came from, or pass the layer that holds raw counts, "
        "layer='counts' for example."
    )


def require_counts(first_fraction: Entry | None, where: str, gene_likelihood: str) -> None:
    """Raise if a matrix that must hold counts does not.

    Parameters
    ----------
    first_fraction
        The first entry that is not a whole number, ``None`` if there is none.
    where
        Name of the matrix for the message.
    gene_likelihood
        Name of the likelihood that needs counts.

    Raises
    ------
    ValueError
        If there is such an entry.
    """
    if first_fraction is not None:
        raise ValueError(
            f"gene_likelihood={gene_likelihood!r} needs raw counts, but cell {first_fraction.cell!r}, "
            f"gene {first_fraction.gene!r} of {where} is {first_fraction.value:g}, not a whole number. "
            "Pass the layer that holds raw counts to setup_anndata, layer='counts' for example, "
            "or choose gene_likelihood='normal'."
        )


def changed_counts(where: str, *, is_view: bool = False) -> RuntimeError:
    """Return the error for a matrix that is no longer what it was when it was read.

    Parameters
    ----------
    where
        Name of the matrix for the message.
    is_view
        Whether it is that of a view.
    """
    if is_view:
        return RuntimeError(
            f"{where} has changed since it was read first: adata is a view, and what it is a view of was written to, "
            "sorted or filtered since, so that names and counts of its cells may not belong together any more. Take "
            "the cells anew, and as a copy: model.adata = adata[cells].copy()."
        )
    return RuntimeError(
        f"{where} has changed since it was read first. Keep the counts in a layer, adata.layers['counts'] = "
        "adata.X.copy(), before scanpy normalises adata.X, and set up with layer='counts'. If the new values are those "
        "to use, hand them to the model: model.adata = adata."
    )
