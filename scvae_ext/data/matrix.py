"""Matrices of counts, however AnnData holds them, read as float32 CSR."""

import logging
from collections.abc import Iterator
from typing import Any, TypeAlias

import anndata.abc
import numpy as np
import scipy.sparse as sp
from anndata import AnnData
from jaxtyping import Int

from scvae_ext.data.fields import Layer

__all__ = ["CountMatrix", "InMemoryCounts", "OnDiskCounts", "as_csr", "open_counts", "select_genes"]

logger = logging.getLogger("scvae_ext")

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

    def chunks(self) -> Iterator[tuple[int, sp.csr_matrix]]:
        """Yield all rows in order, without copying them."""
        csr = self.csr
        step = _rows_per_chunk(self.shape[1])
        for start in range(0, self.shape[0], step):
            indptr = csr.indptr[start : start + step + 1]
            entries = slice(indptr[0], indptr[-1])
            rows = sp.csr_matrix((len(indptr) - 1, self.shape[1]), dtype=csr.dtype)
            # The constructor would copy these slices.
            rows.data, rows.indices, rows.indptr = csr.data[entries], csr.indices[entries], indptr - indptr[0]
            yield start, rows


class OnDiskCounts:
    """Counts in a file, read as they are needed.

    Parameters
    ----------
    matrix
        Dense dataset or sparse one stored by rows, as a backed AnnData holds it.
    position
        Where each column goes, -1 to drop it; ``None`` keeps them as they are.
    n_genes
        Number of columns after that.
    """

    def __init__(self, matrix: Any, position: Int[np.ndarray, "genes_in_file"] | None, n_genes: int) -> None:
        self.matrix = matrix
        self.position = position
        self.shape = (int(matrix.shape[0]), n_genes)

    def rows(self, indices: Int[np.ndarray, "chosen"]) -> sp.csr_matrix:
        """Return some rows in the order asked for, by one read of each.

        Parameters
        ----------
        indices
            Positions of the rows.
        """
        if len(indices) == 0:
            return sp.csr_matrix((0, self.shape[1]), dtype=np.float32)
        unique, inverse = np.unique(indices, return_inverse=True)
        return self._convert(self.matrix[unique])[inverse]

    def chunks(self) -> Iterator[tuple[int, sp.csr_matrix]]:
        """Yield all rows in order, some at a time."""
        step = _rows_per_chunk(self.matrix.shape[1])
        for start in range(0, self.shape[0], step):
            yield start, self._convert(self.matrix[start : start + step])

    def _convert(self, block: Any) -> sp.csr_matrix:
        csr = as_csr(block)
        return csr if self.position is None else select_genes(csr, self.position, self.shape[1])


CountMatrix: TypeAlias = InMemoryCounts | OnDiskCounts
"""A matrix of cells by genes whose rows can be read as canonical float32 CSR."""


def _rows_per_chunk(n_columns: int) -> int:
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
        If it is something else.
    """
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
    step = _rows_per_chunk(dense.shape[1])
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


def open_counts(
    adata: AnnData, layer: Layer, position: Int[np.ndarray, "columns"] | None = None, n_genes: int | None = None
) -> CountMatrix:
    """Open the counts of an AnnData.

    A matrix in memory is converted to float32 CSR once, without a copy if it is one. A matrix on disk that is dense or
    stored by rows stays there; one that is stored by columns is read into memory, as is a view of a backed AnnData.

    Parameters
    ----------
    adata
        Where to read.
    layer
        Which matrix.
    position, n_genes
        As for :func:`select_genes`; ``None`` keeps the columns as they are.

    Raises
    ------
    TypeError
        If the matrix is of a kind that cannot be read.
    """
    try:
        matrix: Any = layer.read(adata)
    except (IndexError, TypeError, ValueError) as error:
        if not (adata.isbacked and adata.is_view and layer.key is None):
            raise
        raise ValueError(
            f"anndata cannot read this view of a backed matrix ({error}). Select cells alone, adata[cells], or load "
            "the AnnData before selecting from it: adata = adata.to_memory()."
        ) from error
    n_columns = adata.n_vars if n_genes is None else n_genes
    is_backed = adata.isbacked and not adata.is_view and layer.key is None
    if isinstance(matrix, anndata.abc.CSCDataset):
        logger.warning(
            "%s is stored by genes (CSC), which cannot be read by cells: all of it is loaded into memory. "
            "Store it as CSR to read it from disk.",
            layer.where,
        )
        matrix = matrix.to_memory()
    elif is_backed or isinstance(matrix, anndata.abc.CSRDataset):
        return OnDiskCounts(matrix, position, n_columns)
    is_array = isinstance(matrix, np.ndarray) and not isinstance(matrix, np.ma.MaskedArray)
    if not is_array and not sp.issparse(matrix):
        raise TypeError(
            f"{layer.where} is a {type(matrix).__module__}.{type(matrix).__qualname__}, which cannot be read as "
            "counts. Convert it to a NumPy array or a SciPy CSR matrix, for example by adata = adata.to_memory()."
        )
    try:
        csr = as_csr(matrix)
    except TypeError as error:
        raise TypeError(f"{layer.where}: {error}") from None
    return InMemoryCounts(csr if position is None else select_genes(csr, position, n_columns))
