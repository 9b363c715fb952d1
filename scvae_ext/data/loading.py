"""From rows of a matrix to minibatches."""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from jaxtyping import Float, Int, Integer

from scvae_ext.data.fields import Layer
from scvae_ext.data.matrix import InMemoryCounts
from scvae_ext.data.opening import CountMatrix
from scvae_ext.data.registry import Registry
from scvae_ext.data.stored import OnDiskCounts
from scvae_ext.data.validation import CountFacts, changed_counts, require_counts, sum_rows
from scvae_ext.kernels import gathered_rows
from scvae_ext.minibatch import Minibatch, SparseCounts, cut
from scvae_ext.peaks import AccessiblePeaks
from scvae_ext.types import CellIndices, CellValues

__all__ = ["BlockReader", "CellSource"]

# Read at once: enough for reading to cost little, and no more, as two blocks are in memory at a time.
_CELLS_PER_BLOCK = 2048
_STORED_MINIBATCHES_PER_BLOCK = 16
_COVARIATES = ("batch", "label", "categorical_covariates", "continuous_covariates", "size_factor", "proteins", "peaks")


@runtime_checkable
class BlockReader(Protocol):
    """What minibatches are read from: a :class:`CellSource`, or its cells on another device."""

    def block(self, indices: Integer[np.ndarray, "chosen"], batch_sizes: Sequence[int]) -> list[Minibatch]:
        """Read cells at once, and cut them into minibatches.

        Parameters
        ----------
        indices
            Positions of the cells.
        batch_sizes
            Numbers of cells in the minibatches; they sum to the number of positions.
        """


class CellSource:
    """The cells of one AnnData as a model sees them: registered genes, categories by position.

    Made by :func:`scvae_ext.data.align`.

    Parameters
    ----------
    registry
        The registry that the values were matched to.
    obs_names
        Names of the cells.
    matrix
        Counts of cells by registered genes.
    facts
        Totals of that matrix, and its first fraction.
    batch, label
        Position of each cell's batch and label.
    categorical_covariates
        Position of each cell's category, one column a covariate.
    continuous_covariates
        Standardised values, one column a covariate.
    size_factor
        Size factors, or ``None``.
    proteins
        Counts of proteins, zero where they were not measured, or ``None``.
    peaks
        Accessible peaks, none where they were not measured, or ``None``.
    """

    def __init__(
        self,
        registry: Registry,
        obs_names: pd.Index,
        matrix: CountMatrix,
        facts: CountFacts,
        batch: CellIndices,
        label: CellIndices,
        categorical_covariates: torch.Tensor,
        continuous_covariates: torch.Tensor,
        size_factor: CellValues | None,
        proteins: Float[torch.Tensor, "cells proteins"] | None = None,
        peaks: AccessiblePeaks | None = None,
    ) -> None:
        self.registry = registry
        self.obs_names = obs_names
        self.facts = facts
        self.library_size: CellValues = torch.from_numpy(facts.total_per_cell.astype(np.float32))
        self.batch = batch
        self.label = label
        self.categorical_covariates = categorical_covariates
        self.continuous_covariates = continuous_covariates
        self.size_factor = size_factor
        self.proteins = proteins
        self.peaks = peaks
        self._matrix = matrix

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return self._matrix.shape[0]

    @property
    def n_genes(self) -> int:
        """Number of registered genes."""
        return self._matrix.shape[1]

    @property
    def n_features(self) -> int:
        """Number of registered genes and peaks: of the values that a model has for a cell."""
        return self.n_genes + (0 if self.peaks is None else self.peaks.n_peaks)

    @property
    def rows_per_block(self) -> int | None:
        """Number of consecutive cells that are best read together; ``None`` for counts in memory."""
        return None if self.stored is None else self.stored.reader.rows_per_block

    @property
    def stored(self) -> OnDiskCounts | None:
        """The matrix, where it is not in memory."""
        return self._matrix if isinstance(self._matrix, OnDiskCounts) else None

    def require_counts(self, gene_likelihood: str) -> None:
        """Raise if the matrix does not hold counts.

        Parameters
        ----------
        gene_likelihood
            Name of the count likelihood that asks, for the message.

        Raises
        ------
        ValueError
            If an entry is not a whole number.
        """
        require_counts(self.facts.first_fraction, Layer(self.registry.layer).where, gene_likelihood)

    def read(self, indices: Integer[np.ndarray, "chosen"]) -> sp.csr_matrix:
        """Read the counts of some cells.

        Parameters
        ----------
        indices
            Positions of the cells; one may occur more than once.

        Returns
        -------
        scipy.sparse.csr_matrix
            float32 counts in the order asked for, indices sorted, without explicit zeros.

        Raises
        ------
        IndexError
            If a position is not a whole number between 0 and ``n_cells - 1``.
        RuntimeError
            If the counts were changed since the source was made.
        """
        indices = self._positions(indices)
        rows = self._matrix.rows(indices)
        self._require_unchanged(sum_rows(rows), indices)
        return rows

    def _require_unchanged(self, totals: Float[np.ndarray, "chosen"], indices: Int[np.ndarray, "chosen"]) -> None:
        # In-place changes by the user reach an array that is shared, and would be learned from silently.
        if not np.allclose(totals, self.facts.total_per_cell[indices], rtol=1e-4, atol=0):
            raise changed_counts(Layer(self.registry.layer).where)

    def has_counts_of(self, other: "CellSource") -> bool:
        """Return whether cells and genes have the totals of another source, and its entries where both are in memory.

        Entries of an array that is shared, and was changed in place, are the same by now; totals are those of before.

        Parameters
        ----------
        other
            The other.
        """
        mine, others = self.facts, other.facts
        pairs = (mine.total_per_cell, others.total_per_cell), (mine.total_per_gene, others.total_per_gene)
        if any(len(one) != len(two) or not np.allclose(one, two, rtol=1e-4, atol=0) for one, two in pairs):
            return False
        if isinstance(self._matrix, InMemoryCounts) and isinstance(other._matrix, InMemoryCounts):
            return self._matrix.equals(other._matrix)
        return True

    def keep(self, indices: Integer[np.ndarray, "chosen"]) -> None:
        """Hold some cells of a matrix on disk in memory from now on, in place of those held before.

        Parameters
        ----------
        indices
            Positions of the cells; none to hold nothing.
        """
        if self.stored is not None:
            self.stored.keep(self._positions(indices))

    def window(self, indices: Integer[np.ndarray, "chosen"]) -> "CellSource":
        """Read some cells into memory, as a source of their own.

        Parameters
        ----------
        indices
            Positions of the cells, which become the cells 0, 1, ... of the result.
        """
        return self.with_rows(indices, self.read(indices))

    def with_rows(self, indices: Integer[np.ndarray, "chosen"], rows: sp.csr_matrix) -> "CellSource":
        """Return a source of some cells whose counts were read before.

        Parameters
        ----------
        indices
            Positions of the cells.
        rows
            Their counts, as :meth:`read` returns them.
        """
        indices = self._positions(indices)
        totals = self.facts.total_per_cell[indices], np.ones(rows.shape[0]) @ rows
        return CellSource(
            self.registry,
            self.obs_names[indices],
            InMemoryCounts(rows),
            CountFacts(*totals, self.facts.first_fraction, rows.nnz),
            **self.covariates(indices),
        )

    def covariates(self, indices: Integer[np.ndarray, "chosen"]) -> dict[str, Any]:
        """Return a copy of what is known about some cells besides their counts, by the names of the attributes.

        Parameters
        ----------
        indices
            Positions of the cells.
        """
        chosen = torch.from_numpy(self._positions(indices))
        return {name: None if (values := getattr(self, name)) is None else values[chosen] for name in _COVARIATES}

    def minibatch(self, indices: Integer[np.ndarray, "chosen"]) -> Minibatch:
        """Read some cells as one minibatch.

        Parameters
        ----------
        indices
            Positions of the cells, in the order wanted.
        """
        return self.block(indices, [len(indices)])[0]

    def minibatches(self, indices: Integer[np.ndarray, "chosen"], batch_size: int) -> Iterator[Minibatch]:
        """Read cells in the order asked for, minibatch by minibatch.

        Parameters
        ----------
        indices
            Positions of the cells.
        batch_size
            Number of cells in each minibatch; the last may hold fewer.
        """
        n_at_once = max(1, _CELLS_PER_BLOCK // batch_size) if self.stored is None else _STORED_MINIBATCHES_PER_BLOCK
        per_block = batch_size * n_at_once
        for start in range(0, len(indices), per_block):
            chosen = indices[start : start + per_block]
            full, rest = divmod(len(chosen), batch_size)
            yield from self.block(chosen, [batch_size] * full + [rest] * (rest > 0))

    def block(self, indices: Integer[np.ndarray, "chosen"], batch_sizes: Sequence[int]) -> list[Minibatch]:
        """Read cells at once, and cut them into minibatches that share the memory.

        Parameters
        ----------
        indices
            Positions of the cells.
        batch_sizes
            Numbers of cells in the minibatches; they sum to the number of positions.

        Raises
        ------
        ValueError
            If they do not.
        """
        if sum(batch_sizes) != len(indices):
            raise ValueError(f"batch_sizes sum to {sum(batch_sizes)}, but there are {len(indices)} cells.")
        indices = self._positions(indices)
        if isinstance(self._matrix, InMemoryCounts):
            csr, positions = self._matrix.csr, indices
        else:
            csr, positions = self._matrix.rows(indices), np.arange(len(indices))
        place_in_minibatch = np.concatenate([np.arange(size) for size in batch_sizes])
        *entries, offsets, totals = gathered_rows(csr.data, csr.indices, csr.indptr, positions, place_in_minibatch)
        self._require_unchanged(totals, indices)
        values, cell_index, gene_index = map(torch.from_numpy, entries)
        counts = SparseCounts(values, cell_index, gene_index, len(indices), self.n_genes)
        chosen = torch.from_numpy(indices)
        block = Minibatch(
            counts,
            self.library_size[chosen],
            self.batch[chosen],
            self.label[chosen],
            self.categorical_covariates[chosen],
            self.continuous_covariates[chosen],
            None if self.size_factor is None else self.size_factor[chosen],
            None if self.proteins is None else self.proteins[chosen],
            None if self.peaks is None else self.peaks[chosen],
        )
        return cut(block, batch_sizes, offsets)

    def _positions(self, indices: Integer[np.ndarray, "chosen"]) -> Int[np.ndarray, "chosen"]:
        if indices.dtype.kind not in "iu":
            raise IndexError(
                f"positions of cells must be integers, but are {indices.dtype}. Turn a mask into positions by "
                "numpy.flatnonzero(mask)."
            )
        if len(indices) and not (indices.min() >= 0 and indices.max() < self.n_cells):
            raise IndexError(f"positions of cells must lie between 0 and {self.n_cells - 1}.")
        return indices.astype(np.int64, copy=False)
