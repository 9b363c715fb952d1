"""Consecutive rows of a matrix in a file or in a Dask array."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
import scipy.sparse as sp
from jaxtyping import Int

from scvae_ext.data.matrix import rows_per_chunk

__all__ = ["DaskRows", "DenseFileRows", "RowReader", "SparseFileRows"]

Span: TypeAlias = tuple[int, int]

# Reading so many rows that nobody asked for takes about as long as a second read.
_GAP = 64
_BLOCK_RANGE = (64, 1024)
_CHUNKS_AT_ONCE = 8


@runtime_checkable
class RowReader(Protocol):
    """Consecutive rows of a matrix, read as scipy or NumPy has them."""

    where: str
    shape: tuple[int, int]
    rows_per_block: int

    def spans(self, rows: Int[np.ndarray, "ascending"]) -> list[Span]:
        """Return the ranges of rows that are read to have the given ones."""

    def read(self, spans: Sequence[Span]) -> Iterator[Any]:
        """Yield the rows of each range."""


class SparseFileRows:
    """Rows of a CSR matrix in an h5ad or zarr store.

    Its offsets (eight bytes a row) are held in memory.

    Parameters
    ----------
    dataset
        The matrix, an ``anndata.abc.CSRDataset``.
    where
        Name of the matrix for messages.

    Raises
    ------
    ValueError
        If the offsets do not fit the entries, so that the file must be damaged.
    """

    def __init__(self, dataset: Any, where: str) -> None:
        # anndata's own slices allocate offsets for all rows at every read.
        group = dataset.group
        self.where = where
        self.shape: tuple[int, int] = dataset.shape
        self.dtype = dataset.dtype
        self._values, self._columns = group["data"], group["indices"]
        self._offsets = np.asarray(group["indptr"][...], dtype=np.int64)
        n_entries = self._values.shape[0]
        if (
            len(self._offsets) != self.shape[0] + 1
            or self._offsets[0] != 0
            or self._offsets[-1] != n_entries
            or self._columns.shape[0] != n_entries
            or (np.diff(self._offsets) < 0).any()
        ):
            raise ValueError(
                f"{where} is damaged: it holds {n_entries} values and {self._columns.shape[0]} columns for "
                f"{self.shape[0]} cells, and its offsets end at {self._offsets[-1]}. The file was not written to its "
                "end: write or copy it again."
            )
        chunks = self._values.chunks
        per_row = max(1.0, n_entries / max(1, self.shape[0]))
        self.rows_per_block = int(np.clip(chunks[0] / per_row if chunks else 1, *_BLOCK_RANGE))

    def spans(self, rows: Int[np.ndarray, "ascending"]) -> list[Span]:
        """Return ranges that leave out large gaps, none of them long.

        Parameters
        ----------
        rows
            The rows.
        """
        return _spans(rows, self.shape[1])

    def read(self, spans: Sequence[Span]) -> Iterator[sp.csr_matrix]:
        """Yield the rows of each range.

        Parameters
        ----------
        spans
            First row, and the row after the last.

        Raises
        ------
        OSError
            If the file cannot be read.
        ValueError
            If what it holds cannot be a matrix.
        """
        for start, stop in spans:
            offsets = self._offsets[start : stop + 1]
            entries = slice(int(offsets[0]), int(offsets[-1]))
            try:
                values, columns = self._values[entries], self._columns[entries]
            except (OSError, RuntimeError, ValueError, KeyError) as error:
                raise _unreadable(self.where, start, stop, error) from error
            if len(columns) and not (columns.min() >= 0 and columns.max() < self.shape[1]):
                raise ValueError(
                    f"{self.where} is damaged: rows {start} to {stop - 1} name a column outside of its "
                    f"{self.shape[1]} genes. Write or copy the file again."
                )
            rows = sp.csr_matrix((values, columns, offsets - offsets[0]), shape=(stop - start, self.shape[1]))
            # A lost zarr chunk reads as zeros: as the first gene, many times over.
            rows.sort_indices()
            if not rows.has_canonical_format:
                raise ValueError(
                    f"{self.where} is damaged: rows {start} to {stop - 1} hold a gene of a cell more than once. "
                    "Write or copy the file again, or load it, adata = adata.to_memory(), to add such entries up."
                )
            yield rows


class DenseFileRows:
    """Rows of a dense matrix in an h5ad or zarr store.

    Parameters
    ----------
    dataset
        The matrix, an ``h5py.Dataset`` or a ``zarr.Array``.
    where
        Name of the matrix for messages.
    """

    def __init__(self, dataset: Any, where: str) -> None:
        self.where = where
        self.shape: tuple[int, int] = dataset.shape
        self.dtype = dataset.dtype
        self.rows_per_block = int(np.clip(dataset.chunks[0] if dataset.chunks else 1, *_BLOCK_RANGE))
        self._dataset = dataset

    def spans(self, rows: Int[np.ndarray, "ascending"]) -> list[Span]:
        """Return ranges that leave out large gaps, none of them long.

        Parameters
        ----------
        rows
            The rows.
        """
        return _spans(rows, self.shape[1])

    def read(self, spans: Sequence[Span]) -> Iterator[np.ndarray]:
        """Yield the rows of each range.

        Parameters
        ----------
        spans
            First row, and the row after the last.

        Raises
        ------
        OSError
            If the file cannot be read.
        """
        for start, stop in spans:
            try:
                block = self._dataset[start:stop]
            except (OSError, RuntimeError, ValueError, KeyError) as error:
                raise _unreadable(self.where, start, stop, error) from error
            yield block


class DaskRows:
    """Rows of a Dask array, whole chunks at a time.

    Parameters
    ----------
    array
        The matrix; its chunks may be dense or sparse.
    where
        Name of the matrix for messages.

    Attributes
    ----------
    bounds
        First row of each chunk, and the number of rows.

    Raises
    ------
    ValueError
        If the sizes of its chunks are not known.
    """

    def __init__(self, array: Any, where: str) -> None:
        if any(math.isnan(size) for size in (*array.chunks[0], *array.chunks[1])):
            raise ValueError(
                f"{where} is a Dask array whose chunks have no known sizes. Call its compute_chunk_sizes() first."
            )
        self.where = where
        self.shape: tuple[int, int] = array.shape
        self.dtype = array.dtype
        self.rows_per_block = max(_BLOCK_RANGE[0], *array.chunks[0])
        self.array = array
        self.bounds = np.concatenate([[0], np.cumsum(array.chunks[0])])

    def spans(self, rows: Int[np.ndarray, "ascending"]) -> list[Span]:
        """Return the chunks that hold the given rows.

        Parameters
        ----------
        rows
            The rows.
        """
        return [(int(self.bounds[chunk]), int(self.bounds[chunk + 1])) for chunk in np.unique(self.chunk_of(rows))]

    def chunk_of(self, rows: Int[np.ndarray, "rows"]) -> Int[np.ndarray, "rows"]:
        """Return the chunk that each row lies in.

        Parameters
        ----------
        rows
            The rows.
        """
        return np.searchsorted(self.bounds, rows, side="right") - 1

    def read(self, spans: Sequence[Span]) -> Iterator[Any]:
        """Yield the rows of each range, some of them computed together.

        Parameters
        ----------
        spans
            First row, and the row after the last.

        Raises
        ------
        OSError
            If a file behind the array cannot be read.
        """
        import dask

        for first in range(0, len(spans), _CHUNKS_AT_ONCE):
            group = spans[first : first + _CHUNKS_AT_ONCE]
            try:
                blocks = dask.compute(*(self.array[start:stop] for start, stop in group))
            except (OSError, RuntimeError, ValueError, KeyError) as error:
                raise _unreadable(self.where, group[0][0], group[-1][1], error) from error
            yield from blocks


def _spans(rows: Int[np.ndarray, "ascending"], n_columns: int) -> list[Span]:
    longest = rows_per_chunk(n_columns)
    spans = []
    for part in np.split(rows, np.flatnonzero(np.diff(rows) > _GAP) + 1):
        start, stop = int(part[0]), int(part[-1]) + 1
        while start < stop:
            end = min(start + longest, stop)
            spans.append((start, end))
            start = end
    return spans


def _unreadable(where: str, start: int, stop: int, error: Exception) -> OSError:
    return OSError(
        f"{where}, rows {start} to {stop - 1}, could not be read: {type(error).__name__}: {error}. The file may be "
        "truncated or damaged, or was closed, moved or overwritten since the AnnData was opened: open it again, or "
        "write or copy it anew."
    )
