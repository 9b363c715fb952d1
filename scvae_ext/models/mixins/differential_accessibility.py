"""Peaks that differ between groups of cells."""

from collections.abc import Sequence
from functools import partial

import numpy as np
import pandas as pd
from anndata import AnnData

from scvae_ext.analysis import TestMode
from scvae_ext.models.compared_cells import GroupQuestion
from scvae_ext.models.differential_expression import ChangeOptions, sorted_table, write_ranking
from scvae_ext.models.mixins.group_comparison import GroupComparison
from scvae_ext.models.modality_draws import peak_draws
from scvae_ext.models.options import whole_number
from scvae_ext.models.query import CellSelection

__all__ = ["DifferentialAccessibilityMixin"]


class DifferentialAccessibilityMixin(GroupComparison):
    """Peaks that differ between groups of cells."""

    def differential_accessibility(
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
        sample_key: str | None = None,
        n_samples: int = 1,
        test_mode: TestMode = "three",
        cred_interval_lvls: Sequence[float] | None = None,
        seed: int = 0,
        fill_missing_genes: bool = False,
        key_added: str | None = "scvae_rank_peaks",
    ) -> pd.DataFrame:
        r"""Find the peaks whose accessibility differs between groups of cells.

        As :meth:`differential_expression` in mode ``"change"`` does for genes: the mean accessibility of a group is
        that of the model at the mean depth, times the ratio of the cells in which the peak was found accessible to
        those in which the model expects it at their own depth,

        .. math:: \hat m_p = \frac1N \sum_n (1 - e^{-\lambda_{np}}) \;
                  \frac{\sum_n a_{np}}{\sum_n (1 - e^{-d_n \lambda_{np}})}

        with the depth at which the model expects as many accessible peaks in a cell as were found, so that a group
        whose cells were sequenced more deeply does not seem more accessible. The error comes from the
        spread between cells, or between samples, and a prior that all peaks share shrinks fold changes.

        Cells in whose batch accessibility was not measured are left out.

        Parameters
        ----------
        adata, groupby, group1, group2, idx1, idx2, batch_size, batch_correction, batchid1, batchid2, fdr_target
            As for :meth:`differential_expression`.
        delta
            Log2 fold change of accessibility above which a peak counts as different, as for
            :meth:`differential_expression`. (In MultiVI it is a difference of probabilities.)
        sample_key, n_samples, test_mode, cred_interval_lvls, seed, fill_missing_genes
            As for :meth:`differential_expression`.
        key_added
            Key of ``adata.uns`` for the structure of :func:`scanpy.tl.rank_genes_groups`, with peaks as names, so that
            ``scanpy.get.rank_genes_groups_df(adata, group, key="scvae_rank_peaks")`` reads it; ``None`` writes nothing.

        Returns
        -------
        pandas.DataFrame
            Peaks of each comparison by descending probability. Named as in MultiVI: ``prob_da``, ``bayes_factor``,
            ``est_prob1`` and ``est_prob2`` (accessibility of the groups at the mean depth), ``effect_size`` (the
            second less the first), ``emp_prob1`` and ``emp_prob2`` (share of cells found accessible), ``emp_effect``
            and ``is_da_fdr``; as in :meth:`differential_expression` ``delta``, ``lfc_mean``, ``lfc_median``,
            ``lfc_std``, ``lfc_min``, ``lfc_max`` (log2 fold change of group one over group two), ``expected_fdr``,
            ``comparison``, ``group1`` and ``group2``.

        Raises
        ------
        RuntimeError, ValueError
            As for :meth:`differential_expression`.

        Warns
        -----
        UserWarning
            If groups are left out.
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
        )
        asked = GroupQuestion(groupby, group1, group2, idx1, idx2, sample_key, key_added is not None)
        peaks = self.registry.peaks
        assert peaks is not None
        measured = np.array(peaks.measured)[:, None]
        draw = partial(peak_draws, self.module)
        tables = self._compare_features(draw, "peak", peaks.names, adata, cells, asked, options, measured)
        if key_added is not None:
            write_ranking(adata, key_added, tables, self._provenance(self._asked(asked, options, tables)))
        return _named_as_in_multivi(sorted_table(tables))


def _named_as_in_multivi(table: pd.DataFrame) -> pd.DataFrame:
    flag = next(str(name) for name in table if str(name).startswith("is_de_fdr"))
    names = {
        "proba_de": "prob_da",
        "bayes_factor": "bayes_factor",
        "scale1": "est_prob1",
        "scale2": "est_prob2",
        "non_zeros_proportion1": "emp_prob1",
        "non_zeros_proportion2": "emp_prob2",
        flag: "is_da_fdr",
    }
    dropped = [f"{name}{side}" for name in ("raw_mean", "raw_normalized_mean") for side in (1, 2)]
    named = table.drop(columns=["proba_not_de", *dropped]).rename(columns=names)
    effect = {
        "effect_size": named["est_prob2"] - named["est_prob1"],
        "emp_effect": named["emp_prob2"] - named["emp_prob1"],
    }
    first = ["prob_da", "bayes_factor", *effect, "est_prob1", "est_prob2", "emp_prob1", "emp_prob2"]
    with_effect = named.assign(**effect)
    return with_effect[[*first, *(name for name in with_effect if name not in first)]]
