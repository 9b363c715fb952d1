"""Matrices of counts that stay on disk, or in the chunks of a Dask array, and are read some rows at a time."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import scipy.sparse as sp
from jaxtyping import Int

from scvae_ext.data.matrix import as_csr, rows_per_chunk, select_genes
from scvae_ext.data.readers import DaskRows, RowReader

__all__ = ["OnDiskCounts", "registered_csr"]


class OnDiskCounts:
    """Counts that are not in memory, read as they are needed.

    Parameters
    ----------
    reader
        The stored matrix.
    position
        Where each column goes, -1 to drop it; ``None`` keeps them as they are.
    n_genes
        Number of columns after that.
    """

    def __init__(self, reader: RowReader, position: Int[np.ndarray, "genes_in_file"] | None, n_genes: int) -> None:
        self.reader = reader
        self.position = position
        self.shape = (reader.shape[0], n_genes)
        self._kept = np.empty(0, dtype=np.int64)
        self._kept_rows = sp.csr_matrix((0, n_genes), dtype=np.float32)

    def rows(self, indices: Int[np.ndarray, "chosen"]) -> sp.csr_matrix:
        """Return some rows in the order asked for, reading each once, in the order of the file.

        Parameters
        ----------
        indices
            Positions of the rows.

        Raises
        ------
        OSError
            If the file cannot be read.
        """
        if len(indices) == 0:
            return sp.csr_matrix((0, self.shape[1]), dtype=np.float32)
        unique, inverse = np.unique(indices, return_inverse=True)
        if len(self._kept) and np.isin(unique, self._kept, assume_unique=True).all():
            return self._kept_rows[np.searchsorted(self._kept, indices)]
        spans = self.reader.spans(unique)
        parts = []
        for (start, stop), block in zip(spans, self.reader.read(spans), strict=True):
            inside = unique[np.searchsorted(unique, start) : np.searchsorted(unique, stop)] - start
            parts.append(self._convert(block if len(inside) == stop - start else block[inside]))
        rows = parts[0] if len(parts) == 1 else sp.vstack(parts, format="csr")
        return rows if np.array_equal(unique, indices) else rows[inverse]

    def keep(self, indices: Int[np.ndarray, "chosen"]) -> None:
        """Hold some rows in memory from now on, in place of those held before.

        Parameters
        ----------
        indices
            Positions of the rows; none to hold nothing.
        """
        self._kept = np.empty(0, dtype=np.int64)
        kept = np.unique(indices)
        self._kept_rows = self.rows(kept)
        self._kept = kept

    def chunks(self) -> Iterator[tuple[int, sp.csr_matrix]]:
        """Yield all rows in order, some at a time."""
        n_rows = self.shape[0]
        if isinstance(self.reader, DaskRows):
            spans = self.reader.spans(np.arange(n_rows))
        else:
            step = rows_per_chunk(self.reader.shape[1])
            spans = [(start, min(start + step, n_rows)) for start in range(0, n_rows, step)]
        for (start, _), block in zip(spans, self.reader.read(spans), strict=True):
            yield start, self._convert(block)

    def _convert(self, block: Any) -> sp.csr_matrix:
        return registered_csr(block, self.position, self.shape[1])


def registered_csr(block: Any, position: Int[np.ndarray, "genes_in_file"] | None, n_genes: int) -> sp.csr_matrix:
    """Return rows of a stored matrix as canonical float32 CSR of the registered genes.

    Parameters
    ----------
    block
        Rows as they are stored.
    position, n_genes
        As for :class:`OnDiskCounts`.
    """
    csr = as_csr(block)
    return csr if position is None else select_genes(csr, position, n_genes)
