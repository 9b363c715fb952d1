"""Proteins that differ between groups of cells."""

from collections.abc import Sequence
from functools import partial

import numpy as np
import pandas as pd
from anndata import AnnData

from scvae_ext.analysis import TestMode
from scvae_ext.models.compared_cells import GroupQuestion
from scvae_ext.models.differential_expression import ChangeOptions, sorted_table, write_ranking
from scvae_ext.models.mixins.group_comparison import GroupComparison
from scvae_ext.models.modality_draws import protein_draws
from scvae_ext.models.options import true_or_false, whole_number
from scvae_ext.models.query import CellSelection

__all__ = ["DifferentialProteinMixin"]


class DifferentialProteinMixin(GroupComparison):
    """Proteins that differ between groups of cells."""

    def differential_protein_expression(
        self,
        adata: AnnData | None = None,
        groupby: str | None = None,
        group1: str | Sequence[str] | None = None,
        group2: str | None = None,
        idx1: CellSelection | str | None = None,
        idx2: CellSelection | str | None = None,
        delta: float | None = 0.25,
        batch_size: int | None = None,
        batch_correction: bool = False,
        batchid1: Sequence[str] | None = None,
        batchid2: Sequence[str] | None = None,
        fdr_target: float = 0.05,
        *,
        per_background: bool = True,
        sample_key: str | None = None,
        n_samples: int = 1,
        test_mode: TestMode = "three",
        cred_interval_lvls: Sequence[float] | None = None,
        seed: int = 0,
        fill_missing_genes: bool = False,
        key_added: str | None = "scvae_rank_proteins",
    ) -> pd.DataFrame:
        r"""Find the proteins that differ between groups of cells.

        As :meth:`differential_expression` in mode ``"change"`` does for genes, with the counts of proteins and their
        mean under the model, and a prior that all proteins share. Expression is what is counted of a protein over its
        background in the cell,

        .. math:: \rho_{np} = \pi_{np} + (1 - \pi_{np})\, \alpha_{np},

        one where there is background alone: cells of one group may bind more of every antibody than those of another,
        because they are larger for example, and background, which stands where the library size does for genes, takes
        that out. Of a protein that few cells have the fold change is small, as background is most of its counts.

        What the median protein of a group has more than the model expects is taken for such a difference as well, where
        there are five proteins at least. Cells in whose batch a protein was not measured say nothing about how much of
        it there is; one that was measured in none of ``batchid1`` is compared in the batches in which it was.

        Parameters
        ----------
        adata, groupby, group1, group2, idx1, idx2, delta, batch_size, batch_correction, batchid1, batchid2, fdr_target
            As for :meth:`differential_expression`.
        per_background
            ``False`` compares mean counts as they are, background and all.
        sample_key, n_samples, test_mode, cred_interval_lvls, seed, fill_missing_genes
            As for :meth:`differential_expression`. With samples as the replicates a protein has to be measured in all.
        key_added
            Key of ``adata.uns`` for the structure of :func:`scanpy.tl.rank_genes_groups`, with proteins as names, so
            that ``scanpy.get.rank_genes_groups_df(adata, group, key="scvae_rank_proteins")`` reads it; ``None`` writes
            nothing.

        Returns
        -------
        pandas.DataFrame
            Proteins of each comparison by descending probability, with the columns of :meth:`differential_expression`
            but for counts per 10,000: ``scale1`` and ``scale2`` are means over background (or counts), ``raw_mean1``
            and ``raw_mean2`` counts of a cell in which the protein was measured. Missing values: proteins that were
            not measured in three cells of both groups.

        Raises
        ------
        RuntimeError, ValueError
            As for :meth:`differential_expression`, and if no protein was measured in both groups.

        Warns
        -----
        UserWarning
            If groups are left out, or proteins have no result, which it names.
        """
        self._require_free("uns", key_added)
        adata, cells = self._cells(adata, None, batch_size, fill_missing_genes)
        options = ChangeOptions(
            "change",
            delta,
            fdr_target,
            test_mode,
            () if cred_interval_lvls is None else tuple(cred_interval_lvls),
            self._batches_to_compare(batch_correction, batchid1, batchid2),
            True,
            idx1 is None and group1 is None,
            whole_number("n_samples", n_samples),
            0,
            whole_number("seed", seed, least=0),
            true_or_false("per_background", per_background),
        )
        asked = GroupQuestion(groupby, group1, group2, idx1, idx2, sample_key, key_added is not None)
        draw = partial(protein_draws, self.module, per_background=per_background)
        panel = self.registry.proteins
        assert panel is not None
        measured = np.array(panel.measured)
        tables = self._compare_features(draw, "protein", panel.names, adata, cells, asked, options, measured)
        tables = {
            group: table.drop(columns=["raw_normalized_mean1", "raw_normalized_mean2"])
            for group, table in tables.items()
        }
        if key_added is not None:
            arguments = self._asked(asked, options, tables) | {"per_background": per_background}
            write_ranking(adata, key_added, tables, self._provenance(arguments))
        return sorted_table(tables)
