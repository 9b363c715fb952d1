"""Matrices of counts in memory, as float32 CSR."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import scipy.sparse as sp
from jaxtyping import Int

__all__ = ["InMemoryCounts", "as_csr", "rows_per_chunk", "select_genes"]

_ENTRIES_PER_CHUNK = 1 << 23
# float32 sums of counts over so many rows stay exact up to a mean count of 4096.
_ROWS_PER_CHUNK = 1 << 12


class InMemoryCounts:
    """Counts in memory.

    Parameters
    ----------
    csr
        Canonical float32 CSR; never modified.
    """

    def __init__(self, csr: sp.csr_matrix) -> None:
        self.csr = csr
        self.shape: tuple[int, int] = csr.shape

    def rows(self, indices: Int[np.ndarray, "chosen"]) -> sp.csr_matrix:
        """Return some rows in the order asked for.

        Parameters
        ----------
        indices
            Positions of the rows.
        """
        return self.csr[indices]

    def equals(self, other: "InMemoryCounts") -> bool:
        """Return whether all entries are those of another matrix, to the precision of sums of float32.

        Parameters
        ----------
        other
            The other.
        """
        one, two = self.csr, other.csr
        return (
            one.shape == two.shape
            and np.array_equal(one.indptr, two.indptr)
            and np.array_equal(one.indices, two.indices)
            and np.allclose(one.data, two.data, rtol=1e-4, atol=0)
        )

    def chunks(self) -> Iterator[tuple[int, sp.csr_matrix]]:
        """Yield all rows in order, without copying them."""
        csr = self.csr
        step = rows_per_chunk(self.shape[1])
        for start in range(0, self.shape[0], step):
            indptr = csr.indptr[start : start + step + 1]
            entries = slice(indptr[0], indptr[-1])
            rows = sp.csr_matrix((len(indptr) - 1, self.shape[1]), dtype=csr.dtype)
            # The constructor would copy these slices.
            rows.data, rows.indices, rows.indptr = csr.data[entries], csr.indices[entries], indptr - indptr[0]
            yield start, rows


def rows_per_chunk(n_columns: int) -> int:
    """Return how many rows are read or converted at once.

    Parameters
    ----------
    n_columns
        Number of columns.
    """
    return max(1, min(_ROWS_PER_CHUNK, _ENTRIES_PER_CHUNK // n_columns))


def as_csr(matrix: Any) -> sp.csr_matrix:
    """Return a matrix as float32 CSR with sorted indices, no pair twice and no explicit zeros.

    Memory is shared with the argument where it is such a matrix already.

    Parameters
    ----------
    matrix
        Dense array or any scipy sparse matrix or array of real numbers; not modified.

    Raises
    ------
    TypeError
        If it is something else, or a masked array.
    """
    if isinstance(matrix, np.ma.MaskedArray):
        raise TypeError(
            "the matrix holds a numpy.ma.MaskedArray, whose mask would be lost. Replace masked values by counts, for "
            "example by zeros: numpy.ma.filled(matrix, 0)."
        )
    if matrix.dtype.kind not in "buif":
        raise TypeError(f"the matrix must hold real numbers, but its dtype is {matrix.dtype}. Convert it to float32.")
    if sp.issparse(matrix):
        if matrix.format not in ("csr", "csc"):
            matrix = matrix.tocsr()
        kind = sp.csr_matrix if matrix.format == "csr" else sp.csc_matrix
        arrays = (matrix.data.astype(np.float32, copy=False), matrix.indices, matrix.indptr)
        csr = kind(arrays, shape=matrix.shape).tocsr()
        if not csr.has_canonical_format or not csr.data.all():
            csr = csr.copy()
            csr.sum_duplicates()
            csr.eliminate_zeros()
        return csr
    dense = np.asarray(matrix)
    step = rows_per_chunk(dense.shape[1])
    # Conversion by blocks of rows keeps scipy's temporary coordinates small.
    blocks = [
        sp.csr_matrix(dense[start : start + step].astype(np.float32, copy=False))
        for start in range(0, dense.shape[0], step)
    ]
    return blocks[0] if len(blocks) == 1 else sp.vstack(blocks, format="csr")


def select_genes(csr: sp.csr_matrix, position: Int[np.ndarray, "columns"], n_genes: int) -> sp.csr_matrix:
    """Move, drop and add columns.

    Parameters
    ----------
    csr
        Canonical CSR; not modified.
    position
        New position of each column, -1 to drop it. A position that no column takes holds zeros.
    n_genes
        Number of columns afterwards.
    """
    columns = position[csr.indices]
    kept = columns >= 0
    indptr = np.concatenate([[0], np.cumsum(kept)])[csr.indptr]
    selected = sp.csr_matrix((csr.data[kept], columns[kept], indptr), shape=(csr.shape[0], n_genes))
    selected.sort_indices()
    return selected
