"""What comparisons of groups of cells have in common, whatever it is that is compared."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from jaxtyping import Bool

from scvae_ext.data.fields import in_pandas
from scvae_ext.models.cells import Cells, evaluating
from scvae_ext.models.compared_cells import GroupQuestion
from scvae_ext.models.differential_expression import (
    ChangeOptions,
    Draw,
    compare_groups,
    warn_of_unmeasured,
)
from scvae_ext.models.mixins.base import VAEModel
from scvae_ext.models.options import true_or_false
from scvae_ext.models.query import select_options

__all__ = ["GroupComparison"]


class GroupComparison(VAEModel):
    """What comparisons of groups of cells have in common, whatever it is that is compared."""

    def _compare_features(
        self,
        draw: Draw,
        what: str,
        names: Sequence[str],
        adata: AnnData,
        cells: Cells,
        asked: GroupQuestion,
        options: ChangeOptions,
        measured: Bool[np.ndarray, "batches features"],
    ) -> dict[str, pd.DataFrame]:
        """Return a table for each group, one row a protein or peak; cells of which none was measured are left out."""
        in_batch = np.asarray(measured.any(axis=1))
        batch = cells.source.batch.numpy()
        usable = in_batch[batch]
        groups, units = asked.units(in_pandas(adata.obs), usable, batch if options.batches else None)
        try:
            with evaluating(self.module):
                tables = compare_groups(draw, len(names), cells, groups, units, options)
        except ValueError as error:
            if usable.all():
                raise
            left_out = f"{np.count_nonzero(~usable)} cells in whose batch no {what} was measured are left out."
            raise ValueError(f"{error} {left_out}") from error
        tables = {group: table.set_axis(list(names)) for group, table in tables.items()}
        warn_of_unmeasured(tables, what)
        return tables

    def _batches_to_compare(
        self, correction: bool, batchid1: Sequence[str] | None, batchid2: Sequence[str] | None
    ) -> list[int]:
        """Return the batches to decode all cells in, none for the observed ones."""
        true_or_false("batch_correction", correction)
        chosen = [
            select_options(name, asked, self.registry.batch_categories, self.registry.batch_key)
            for name, asked in (("batchid1", batchid1), ("batchid2", batchid2))
        ]
        if not correction:
            if chosen[0] or chosen[1]:
                raise ValueError("batchid1 and batchid2 need batch_correction=True.")
            return []
        if batchid1 is not None and batchid2 is not None and sorted(chosen[0]) != sorted(chosen[1]):
            raise ValueError(
                f"batchid1={list(batchid1)!r} and batchid2={list(batchid2)!r} differ: groups decoded in different "
                "batches would differ by batch. Name the same ones."
            )
        return chosen[0] or chosen[1] or list(range(len(self.registry.batch_categories)))

    def _asked(
        self, asked: GroupQuestion, options: ChangeOptions, tables: Mapping[str, pd.DataFrame]
    ) -> dict[str, Any]:
        """Return what provenance says of a comparison."""
        second = None if asked.group2 is None else str(next(iter(tables.values()))["group2"].iloc[0])
        return {
            "groupby": asked.groupby,
            "group1": list(tables),
            "group2": second,
            "mode": options.mode,
            "delta": options.delta,
            "batches": [self.registry.batch_categories[batch] for batch in options.batches] or None,
            "fdr_target": options.fdr_target,
            "sample_key": asked.sample_key,
            "n_samples": options.n_samples,
            "seed": options.seed,
        }
