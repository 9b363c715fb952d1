"""What one step of training sees: the counts of some cells and what is known about them."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, Self

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from scvae_ext.kernels import cell_offsets, log1p_of
from scvae_ext.peaks import AccessiblePeaks
from scvae_ext.types import CellIndices, CellValues

__all__ = ["Minibatch", "SparseCounts", "cut"]


@dataclass(frozen=True)
class SparseCounts:
    """Counts of some cells by coordinates, row by row, entries equal to zero left out.

    Parameters
    ----------
    values
        The entries that are not zero, in counts.
    cell_index, gene_index
        Row and column of each value. Rows ascend; no pair occurs twice.
    n_cells, n_genes
        Shape of the matrix.
    """

    values: Float[Tensor, "nonzero"]
    cell_index: Int[Tensor, "nonzero"]
    gene_index: Int[Tensor, "nonzero"]
    n_cells: int
    n_genes: int

    @classmethod
    def with_offsets(
        cls,
        values: Float[Tensor, "nonzero"],
        cell_index: Int[Tensor, "nonzero"],
        gene_index: Int[Tensor, "nonzero"],
        offsets: Int[Tensor, "offsets"],
        n_genes: int,
    ) -> Self:
        """Build from coordinates of which it is known where each cell begins.

        Parameters
        ----------
        values, cell_index, gene_index, n_genes
            As of the class.
        offsets
            :attr:`cell_offsets`.
        """
        counts = cls(values, cell_index, gene_index, len(offsets) - 1, n_genes)
        counts.__dict__["cell_offsets"] = offsets
        return counts

    @classmethod
    def from_dense(cls, counts: Float[Tensor, "cells genes"]) -> Self:
        """Build from a dense matrix.

        Parameters
        ----------
        counts
            Counts of each cell and gene.
        """
        cell_index, gene_index = counts.nonzero(as_tuple=True)
        return cls(counts[cell_index, gene_index], cell_index, gene_index, *counts.shape)

    @classmethod
    def of_peaks(cls, peaks: AccessiblePeaks) -> Self:
        """Build from accessible peaks, a one for each, as layers and likelihoods of counts read them.

        Parameters
        ----------
        peaks
            The peaks, which take the place of genes.
        """
        device = peaks.peak_index.device
        cell_index = torch.repeat_interleave(peaks.lengths, output_size=len(peaks.peak_index))
        values = torch.ones(len(cell_index), device=device)
        counts = cls(values, cell_index, peaks.peak_index.long(), len(peaks), peaks.n_peaks)
        if device.type == "cpu":
            counts.__dict__["cell_offsets"] = peaks.offsets
        return counts

    @cached_property
    def flat_index(self) -> Int[Tensor, "nonzero"]:
        """Position of each value in the flattened dense matrix."""
        return self.cell_index * self.n_genes + self.gene_index

    @cached_property
    def cell_offsets(self) -> Int[Tensor, "offsets"]:
        """Position of each cell's first value, and behind them the number of values."""
        if self.cell_index.device.type == "cpu":
            return torch.from_numpy(cell_offsets(self.cell_index.numpy(), self.n_cells))
        cells = torch.arange(self.n_cells + 1, dtype=self.cell_index.dtype, device=self.cell_index.device)
        return torch.searchsorted(self.cell_index, cells)

    @cached_property
    def by_cell(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Values, genes and :attr:`cell_offsets`, as compiled kernels take them."""
        return self.values.numpy(), self.gene_index.numpy(), self.cell_offsets.numpy()

    def log1p(self) -> Self:
        """Return the logarithm of one plus each count, at the same places."""
        fits = self.values.device.type == "cpu" and self.values.dtype == torch.float32
        return self.with_values(torch.from_numpy(log1p_of(self.values.numpy())) if fits else self.values.log1p())

    def with_values(self, values: Float[Tensor, "nonzero"]) -> Self:
        """Return a matrix with other values at the same places.

        Parameters
        ----------
        values
            One value for each entry, for example ``counts.values.log1p()``.
        """
        other = replace(self, values=values)
        if values.device.type == "cpu":  # where kernels read them, of both
            other.__dict__["cell_offsets"] = self.cell_offsets
        return other

    def dense(self) -> Float[Tensor, "cells genes"]:
        """Return the same counts as a dense matrix."""
        return self.scatter(self.values)

    def scatter(self, values: Float[Tensor, "nonzero"]) -> Float[Tensor, "cells genes"]:
        """Return a dense matrix with other values at the same places, zero elsewhere.

        Parameters
        ----------
        values
            One value for each entry, for example ``values.log1p()``.
        """
        # scatter_ takes half the time of index_copy_.
        flat = values.new_zeros(self.n_cells * self.n_genes)
        return flat.scatter_(0, self.flat_index, values).view(self.n_cells, self.n_genes)

    def sum_per_cell(self, values: Float[Tensor, "nonzero"]) -> CellValues:
        """Sum one value for each entry over the genes of each cell.

        Parameters
        ----------
        values
            One value for each entry.
        """
        return values.new_zeros(self.n_cells).index_add(0, self.cell_index, values)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        """Return the same counts on a device: a copy, or themselves where they are there.

        Parameters
        ----------
        device, non_blocking
            As for :meth:`torch.Tensor.to`.
        """
        if self.values.device == torch.device(device):
            return self  # with the offsets that it knows
        return type(self)(
            self.values.to(device, non_blocking=non_blocking),
            self.cell_index.to(device, non_blocking=non_blocking),
            self.gene_index.to(device, non_blocking=non_blocking),
            self.n_cells,
            self.n_genes,
        )


@dataclass(frozen=True)
class Minibatch:
    """The cells of one step. Where a field was not registered, its tensor is zero or has no columns.

    Parameters
    ----------
    counts
        Observed counts.
    library_size
        Total counts of each cell over the registered genes, in counts.
    size_factor
        Size factors of the user, or ``None`` where none are registered.
    batch, label
        Position of each cell's batch and label in the registry's list of categories.
    categorical_covariates
        Position of each cell's category, one column a covariate.
    continuous_covariates
        Values of the continuous covariates, standardised, one column a covariate.
    proteins
        Counts of proteins, zero where they were not measured, or ``None`` where none are registered.
    peaks
        Accessible peaks of chromatin, none where they were not measured, or ``None`` where none are registered.
    """

    counts: SparseCounts
    library_size: CellValues
    batch: CellIndices
    label: CellIndices
    categorical_covariates: Int[Tensor, "cells categorical"]
    continuous_covariates: Float[Tensor, "cells continuous"]
    size_factor: CellValues | None = None
    proteins: Float[Tensor, "cells proteins"] | None = None
    peaks: AccessiblePeaks | None = None

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return self.counts.n_cells

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        """Return a copy on another device (Lightning calls this).

        Parameters
        ----------
        device, non_blocking
            As for :meth:`torch.Tensor.to`.
        """
        moved: dict[str, Any] = {
            field.name: value.to(device, non_blocking=non_blocking)
            for field in fields(self)
            if (value := getattr(self, field.name)) is not None
        }
        return replace(self, **moved)


def cut(block: Minibatch, batch_sizes: Sequence[int], offsets: Int[np.ndarray, "offsets"]) -> list[Minibatch]:
    """Cut cells that were read at once into consecutive minibatches that share their memory.

    Parameters
    ----------
    block
        The cells. Unlike elsewhere, ``counts.cell_index`` starts from zero in each of the minibatches to be.
    batch_sizes
        Number of cells in each minibatch.
    offsets
        Position of each cell's first value in the block, and behind them the number of values.
    """
    counts, on_host = block.counts, block.counts.values.device.type == "cpu"
    minibatches = []
    cell = 0
    for size in batch_sizes:
        cells = slice(cell, cell + size)
        cell += size
        first = int(offsets[cells.start])
        values = slice(first, int(offsets[cells.stop]))
        entries = counts.values[values], counts.cell_index[values], counts.gene_index[values]
        minibatches.append(
            Minibatch(
                SparseCounts.with_offsets(
                    *entries, torch.from_numpy(offsets[cells.start : cells.stop + 1] - first), counts.n_genes
                )
                if on_host
                else SparseCounts(*entries, size, counts.n_genes),
                block.library_size[cells],
                block.batch[cells],
                block.label[cells],
                block.categorical_covariates[cells],
                block.continuous_covariates[cells],
                None if block.size_factor is None else block.size_factor[cells],
                None if block.proteins is None else block.proteins[cells],
                None if block.peaks is None else block.peaks[cells],
            )
        )
    return minibatches
