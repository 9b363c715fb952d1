"""From rows of a matrix to minibatches."""

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from jaxtyping import Int, Integer

from scvae_ext.data.fields import Layer
from scvae_ext.data.matrix import CountMatrix
from scvae_ext.data.registry import Registry
from scvae_ext.data.validation import CountFacts, require_counts, sum_rows
from scvae_ext.minibatch import Minibatch, SparseCounts
from scvae_ext.types import CellIndices, CellValues

__all__ = ["CellSource"]

_MINIBATCHES_PER_BLOCK = 16


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
        self._matrix = matrix

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return self._matrix.shape[0]

    @property
    def n_genes(self) -> int:
        """Number of registered genes."""
        return self._matrix.shape[1]

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
        # In-place changes by the user reach an array that is shared, and would be learned from silently.
        if not np.allclose(sum_rows(rows), self.facts.total_per_cell[indices], rtol=1e-4, atol=0):
            raise RuntimeError(
                f"{Layer(self.registry.layer).where} has changed since it was read first. Keep the counts in a layer, "
                "adata.layers['counts'] = adata.X.copy(), before scanpy normalises adata.X, and set up with "
                "layer='counts'."
            )
        return rows

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
        per_block = batch_size * _MINIBATCHES_PER_BLOCK
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
        rows = self.read(indices)
        values = torch.from_numpy(rows.data)
        gene_index = torch.from_numpy(rows.indices).to(torch.int64)
        place_in_minibatch = np.concatenate([np.arange(size) for size in batch_sizes])
        cell_index = torch.from_numpy(np.repeat(place_in_minibatch, np.diff(rows.indptr)))
        chosen = torch.from_numpy(indices)
        library_size = self.library_size[chosen]
        batch, label = self.batch[chosen], self.label[chosen]
        categorical, continuous = self.categorical_covariates[chosen], self.continuous_covariates[chosen]
        size_factor = None if self.size_factor is None else self.size_factor[chosen]
        minibatches = []
        end = 0
        for size in batch_sizes:
            start, end = end, end + size
            cells = slice(start, end)
            entries = slice(int(rows.indptr[start]), int(rows.indptr[end]))
            minibatches.append(
                Minibatch(
                    SparseCounts(values[entries], cell_index[entries], gene_index[entries], size, self.n_genes),
                    library_size[cells],
                    batch[cells],
                    label[cells],
                    categorical[cells],
                    continuous[cells],
                    None if size_factor is None else size_factor[cells],
                )
            )
        return minibatches

    def _positions(self, indices: Integer[np.ndarray, "chosen"]) -> Int[np.ndarray, "chosen"]:
        if indices.dtype.kind not in "iu":
            raise IndexError(
                f"positions of cells must be integers, but are {indices.dtype}. Turn a mask into positions by "
                "numpy.flatnonzero(mask)."
            )
        if len(indices) and not (indices.min() >= 0 and indices.max() < self.n_cells):
            raise IndexError(f"positions of cells must lie between 0 and {self.n_cells - 1}.")
        return indices.astype(np.int64, copy=False)
