"""A getter's result some cells at a time, through Dask where the AnnData is lazy."""

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Float32, Int
from torch import nn

from scvae_ext.data import CellSource, CountFacts, Registry
from scvae_ext.data.matrix import InMemoryCounts
from scvae_ext.data.readers import DaskRows
from scvae_ext.data.stored import registered_csr
from scvae_ext.models.cells import Cells, evaluating

__all__ = ["Compute", "Pieces"]

# 64 MB in single precision for a piece, 256 MB for those that Dask computes together.
_ENTRIES_OF_A_PIECE = 1 << 24
_ENTRIES_AT_ONCE = 1 << 26
_MOST_CELLS = 1 << 13

Compute: TypeAlias = Callable[[Any, Cells], np.ndarray]


@dataclass(frozen=True)
class Pieces:
    """One row of values for each cell, which need not all be in memory at once.

    Parameters
    ----------
    module
        A trained module.
    cells
        Which cells.
    compute
        Function of module and cells that returns their rows in float32. A row depends on its own cell alone.
    n_columns
        Number of values in a row.
    """

    module: nn.Module
    cells: Cells
    compute: Compute
    n_columns: int

    @property
    def is_lazy(self) -> bool:
        """Whether Dask computes it: the counts are a Dask array, and the cells are asked for in their order."""
        return self._reader is not None and bool((np.diff(self.cells.positions) > 0).all())

    @property
    def _reader(self) -> DaskRows | None:
        stored = self.cells.source.stored
        return stored.reader if stored is not None and isinstance(stored.reader, DaskRows) else None

    def places(self) -> list[tuple[int, int]]:
        """Return first row and row after the last of each piece."""
        n_cells = len(self.cells)
        if self._reader is not None and self.is_lazy:
            starts = np.flatnonzero(np.diff(self._reader.chunk_of(self.cells.positions), prepend=-1))
        else:
            starts = np.arange(0, n_cells, max(1, min(_MOST_CELLS, _ENTRIES_OF_A_PIECE // max(1, self.n_columns))))
        return list(zip(starts.tolist(), [*starts[1:].tolist(), n_cells], strict=True))

    def __iter__(self) -> Iterator[tuple[slice, Float32[np.ndarray, "piece columns"]]]:
        """Iterate over the pieces in order: their rows, and the values."""
        places = self.places()
        if not self.is_lazy:
            for start, stop in places:
                part = replace(self.cells, positions=self.cells.positions[start:stop])
                with evaluating(self.module):
                    values = self.compute(self.module, part)
                yield slice(start, stop), values
            return
        import dask

        delayed = self._delayed()
        longest = max(stop - start for start, stop in places)
        together = max(1, _ENTRIES_AT_ONCE // max(1, longest * self.n_columns))
        for first in range(0, len(places), together):
            computed = dask.compute(*delayed[first : first + together])
            for (start, stop), values in zip(places[first : first + together], computed, strict=True):
                yield slice(start, stop), values

    def in_memory(self) -> Float32[np.ndarray, "cells columns"]:
        """Return all rows as one array."""
        if not self.is_lazy:
            with evaluating(self.module):
                return self.compute(self.module, self.cells)
        rows = np.empty((len(self.cells), self.n_columns), dtype=np.float32)
        for place, values in self:
            rows[place] = values
        return rows

    def dask_array(self) -> Any:
        """Return all rows as a Dask array, which computes with the weights of now when it is asked to."""
        import dask.array as da

        parts = [
            da.from_delayed(piece, (stop - start, self.n_columns), dtype=np.float32)
            for piece, (start, stop) in zip(self._delayed(), self.places(), strict=True)
        ]
        return da.concatenate(parts)

    def _delayed(self) -> list[Any]:
        import dask

        source, reader, stored = self.cells.source, self._reader, self.cells.source.stored
        assert reader is not None
        assert stored is not None
        recipe = dask.delayed(
            _Recipe(
                copy.deepcopy(self.module).eval(),
                self.compute,
                source.registry,
                stored.position,
                self.cells.device,
                self.cells.batch_size,
            ),
            traverse=False,
        )
        blocks = reader.array.rechunk({1: -1}).to_delayed().ravel()
        run = dask.delayed(_compute_piece)
        pieces = []
        for start, stop in self.places():
            positions = self.cells.positions[start:stop]
            chunk = int(reader.chunk_of(positions[:1])[0])
            totals = source.facts.total_per_cell[positions]
            inside = positions - reader.bounds[chunk]
            pieces.append(run(recipe, blocks[chunk], inside, totals, source.covariates(positions)))
        return pieces


@dataclass(frozen=True)
class _Recipe:
    """What every piece needs, sent to a worker once."""

    module: nn.Module
    compute: Compute
    registry: Registry
    position: Int[np.ndarray, "genes_in_file"] | None
    device: torch.device
    batch_size: int | None


def _compute_piece(
    recipe: _Recipe,
    block: Any,
    inside: Int[np.ndarray, "piece"],
    totals: Float[np.ndarray, "piece"],
    covariates: Mapping[str, Any],
) -> Float32[np.ndarray, "piece columns"]:
    """Compute the rows of some cells of a chunk of counts; this is what a Dask worker runs."""
    rows = block if len(inside) == block.shape[0] else block[inside]
    counts = registered_csr(rows, recipe.position, recipe.registry.n_genes)
    source = CellSource(
        recipe.registry,
        pd.RangeIndex(len(inside)),
        InMemoryCounts(counts),
        CountFacts(totals, np.ones(len(inside)) @ counts, None, counts.nnz),
        **covariates,
    )
    with evaluating(recipe.module):
        return recipe.compute(recipe.module, Cells(source, np.arange(len(inside)), recipe.device, recipe.batch_size))
