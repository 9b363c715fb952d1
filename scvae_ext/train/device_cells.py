"""Cells on the device that trains: all of them where they fit, otherwise a block of minibatches at a time."""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from jaxtyping import Float, Int, Int32, Integer
from torch import Tensor
from torch.utils.data import IterableDataset

from scvae_ext.data import CellSource
from scvae_ext.minibatch import Minibatch, SparseCounts, cut
from scvae_ext.peaks import AccessiblePeaks
from scvae_ext.types import CellIndices, CellValues

__all__ = ["PackedCells", "ReadAhead", "ResidentCells", "StreamedCells", "load_cells"]

CELLS_PER_PART = 8192
# As much again is needed for a moment to join the parts, and the rest for weights and activations.
SHARE_OF_FREE_MEMORY = 0.4

COLUMNS = (
    "library_size",
    "batch",
    "label",
    "categorical_covariates",
    "continuous_covariates",
    "size_factor",
    "proteins",
    "peaks",
)


@dataclass(frozen=True)
class PackedCells:
    """Counts by compressed rows and what is known about the cells: eight bytes for each count that is not zero.

    Parameters
    ----------
    values, gene_index
        The counts that are not zero, row by row, and the column of each.
    indptr
        Where each row starts among them, and where the last one ends; always on the host, so that the length of what
        is gathered is known without asking the device.
    n_genes
        Number of columns.
    library_size, batch, label, categorical_covariates, continuous_covariates, size_factor, proteins, peaks
        As for :class:`~scvae_ext.minibatch.Minibatch`.
    """

    values: Float[Tensor, "nonzero"]
    gene_index: Int32[Tensor, "nonzero"]
    indptr: Int[np.ndarray, "rows_and_end"]
    n_genes: int
    library_size: CellValues
    batch: CellIndices
    label: CellIndices
    categorical_covariates: Int[Tensor, "cells categorical"]
    continuous_covariates: Float[Tensor, "cells continuous"]
    size_factor: CellValues | None
    proteins: Float[Tensor, "cells proteins"] | None = None
    peaks: AccessiblePeaks | None = None

    @classmethod
    def read(cls, source: CellSource, indices: Integer[np.ndarray, "chosen"]) -> Self:
        """Read cells on the host.

        Parameters
        ----------
        source
            Where to read.
        indices
            Positions of the cells.
        """
        rows = source.read(indices)
        chosen = torch.from_numpy(indices)
        gene_index = torch.from_numpy(rows.indices.astype(np.int32, copy=False))
        columns: dict[str, Any] = {
            name: None if (of_all := getattr(source, name)) is None else of_all[chosen] for name in COLUMNS
        }
        return cls(torch.from_numpy(rows.data), gene_index, rows.indptr.astype(np.int64), source.n_genes, **columns)

    @classmethod
    def concatenate(cls, parts: Sequence[Self]) -> Self:
        """Join cells, in the order of the parts.

        Parameters
        ----------
        parts
            Cells on one device, at least one part.
        """
        ends = np.cumsum([0, *(part.indptr[-1] for part in parts)])
        indptr = [part.indptr[:-1] + end for part, end in zip(parts, ends[:-1], strict=True)]
        joined: dict[str, Any] = {
            name: torch.cat([getattr(part, name) for part in parts]) for name in parts[0]._tensors()
        }
        if parts[0].peaks is not None:
            joined["peaks"] = AccessiblePeaks.concatenate([part.peaks for part in parts if part.peaks is not None])
        return replace(parts[0], indptr=np.concatenate([*indptr, ends[-1:]]), **joined)

    def _tensors(self) -> dict[str, Tensor]:
        every = {name: getattr(self, name) for name in ("values", "gene_index", *COLUMNS)}
        return {name: tensor for name, tensor in every.items() if isinstance(tensor, Tensor)}

    @property
    def n_bytes(self) -> int:
        """Memory that the tensors take, in bytes."""
        return sum(tensor.nbytes for tensor in self._tensors().values()) + (self.peaks.nbytes if self.peaks else 0)

    def to(self, device: torch.device) -> Self:
        """Return a copy on another device; to a GPU it goes through locked memory, and nobody waits for it.

        Parameters
        ----------
        device
            The device.
        """
        sent: dict[str, Any] = {name: _send(tensor, device) for name, tensor in self._tensors().items()}
        if self.peaks is not None:
            sent["peaks"] = replace(self.peaks, peak_index=_send(self.peaks.peak_index, device))
        return replace(self, **sent)

    def gather(self, rows: Int[np.ndarray, "chosen"], batch_sizes: Sequence[int]) -> list[Minibatch]:
        """Cut some cells into minibatches, on the device and without waiting for it.

        Parameters
        ----------
        rows
            Which of these cells, in the order wanted.
        batch_sizes
            Numbers of cells in the minibatches; they sum to the number of rows.
        """
        lengths = self.indptr[rows + 1] - self.indptr[rows]
        ends = np.cumsum([0, *lengths])
        n_entries = int(ends[-1])
        place_in_minibatch = np.concatenate([np.arange(size) for size in batch_sizes])
        plan = torch.from_numpy(np.stack([rows, place_in_minibatch, lengths, self.indptr[rows] - ends[:-1]]))
        device = self.values.device
        chosen, place, length, shift = _send(plan, device)

        def of_each_entry(value: Tensor) -> Tensor:
            return torch.repeat_interleave(value, length, output_size=n_entries)

        entry = torch.arange(n_entries, device=device) + of_each_entry(shift)
        counts = SparseCounts(
            self.values.index_select(0, entry),
            of_each_entry(place),
            self.gene_index.index_select(0, entry).to(torch.int64),
            len(rows),
            self.n_genes,
        )
        columns: dict[str, Any] = {
            name: column.index_select(0, chosen) for name, column in self._tensors().items() if name in COLUMNS
        }
        if self.peaks is not None:
            columns["peaks"] = self.peaks[torch.from_numpy(rows)]
        return cut(Minibatch(counts, **columns), batch_sizes, ends)


def _send(tensor: Tensor, device: torch.device) -> Tensor:
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)


class ResidentCells:
    """Cells that stay on a device, from which minibatches are gathered there.

    Parameters
    ----------
    packed
        The cells.
    indices
        Their positions in the source, ascending.
    """

    def __init__(self, packed: PackedCells, indices: Int[np.ndarray, "resident"]) -> None:
        self.packed = packed
        self.indices = indices

    def block(self, indices: Integer[np.ndarray, "chosen"], batch_sizes: Sequence[int]) -> list[Minibatch]:
        """Gather cells and cut them into minibatches.

        Parameters
        ----------
        indices
            Positions in the source.
        batch_sizes
            Numbers of cells in the minibatches.
        """
        return self.packed.gather(np.searchsorted(self.indices, indices), batch_sizes)


class StreamedCells:
    """Cells that are read on the host and sent to a device, a block of minibatches at a time.

    Parameters
    ----------
    source
        Where to read.
    device
        Where to send them.
    """

    def __init__(self, source: CellSource, device: torch.device) -> None:
        self.source = source
        self.device = device

    def block(self, indices: Integer[np.ndarray, "chosen"], batch_sizes: Sequence[int]) -> list[Minibatch]:
        """Read and send cells, and cut them into minibatches.

        Parameters
        ----------
        indices
            Positions in the source.
        batch_sizes
            Numbers of cells in the minibatches.
        """
        return PackedCells.read(self.source, indices).to(self.device).gather(np.arange(len(indices)), batch_sizes)


class ReadAhead(IterableDataset[list[Minibatch]]):
    """Blocks of which the next is read in a thread of its own while the device works on the present one.

    Parameters
    ----------
    blocks
        What gives the blocks of an epoch at each iteration.
    n_blocks
        How many those are.
    """

    def __init__(self, blocks: Iterable[list[Minibatch]], n_blocks: int) -> None:
        super().__init__()
        self.blocks = blocks
        self.n_blocks = n_blocks

    def __len__(self) -> int:
        """Return the number of blocks in an epoch."""
        return self.n_blocks

    def __iter__(self) -> Iterator[list[Minibatch]]:
        """Iterate over one epoch."""
        return _read_ahead(iter(self.blocks))


def _read_ahead(blocks: Iterator[list[Minibatch]]) -> Iterator[list[Minibatch]]:
    with ThreadPoolExecutor(1, thread_name_prefix="scvae_ext-read-ahead") as thread:
        coming = thread.submit(next, blocks, None)
        while (block := coming.result()) is not None:
            coming = thread.submit(next, blocks, None)
            yield block


def load_cells(
    source: CellSource, indices: Int[np.ndarray, "resident"], device: torch.device, free_bytes: int
) -> ResidentCells | StreamedCells | CellSource:
    """Put cells on a device where 40% of its free memory holds them.

    Otherwise return what sends them there block by block, or the source itself where it streams from a disk.

    Parameters
    ----------
    source
        Where to read.
    indices
        Positions of the cells, ascending.
    device
        The device.
    free_bytes
        Its free memory, in bytes.
    """
    budget = SHARE_OF_FREE_MEMORY * free_bytes
    n_parts = max(1, -(-len(indices) // CELLS_PER_PART))
    parts: list[PackedCells] = []
    n_bytes = 0
    for chosen in np.array_split(indices, n_parts):
        part = PackedCells.read(source, chosen)
        n_bytes += part.n_bytes
        # The first part tells of the others: what will not fit need not be read to its end.
        if n_bytes * n_parts / (len(parts) + 1) > budget:
            return StreamedCells(source, device) if source.rows_per_block is None else source
        parts.append(part.to(device))
    return ResidentCells(PackedCells.concatenate(parts), indices)
