"""Tables of differential expression in the structure that scanpy keeps in ``adata.uns["rank_genes_groups"]``."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from scvae_ext.analysis.fdr import expected_fdr

__all__ = ["rank_genes_groups"]


def rank_genes_groups(tables: Mapping[str, pd.DataFrame], parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return genes of each group by descending score, as :func:`scanpy.tl.rank_genes_groups` stores them.

    Scores are ``lfc_mean / lfc_std``, ``pvals`` the posterior probability that a gene does not differ, and
    ``pvals_adj`` the false discovery rate to be expected of the genes down to it. In mode ``"vanilla"`` scores are
    Bayes factors, and the claim is that group one expresses more.

    Parameters
    ----------
    tables
        One row a gene for each group, with the names of genes as index.
    parameters
        What scanpy keeps as ``params``: ``groupby``, ``reference``, ``method``, ...
    """
    columns: dict[str, dict[str, np.ndarray]] = {}
    for group, table in tables.items():
        ranked = pd.DataFrame(_columns(table)).sort_values("scores", ascending=False, kind="stable")
        for name in ranked.columns:
            columns.setdefault(name, {})[group] = ranked[name].to_numpy()
    kinds = {"names": "O", "scores": "f4", "logfoldchanges": "f4", "pvals": "f8", "pvals_adj": "f8"}
    structure: dict[str, Any] = {"params": dict(parameters)}
    for name, kind in kinds.items():
        dtype = [(group, kind) for group in tables]
        structure[name] = np.rec.fromarrays(list(columns[name].values()), dtype=dtype)
    first = next(iter(tables.values()))
    if "non_zeros_proportion1" in first:
        for name, column in (("pts", "non_zeros_proportion1"), ("pts_rest", "non_zeros_proportion2")):
            structure[name] = pd.DataFrame({group: table[column] for group, table in tables.items()})
    return structure


def _columns(table: pd.DataFrame) -> dict[str, np.ndarray]:
    names = table.index.to_numpy(dtype=object)
    if "proba_de" in table:
        change, scale = table["lfc_mean"].to_numpy(), table["lfc_std"].to_numpy()
        scores = np.divide(change, scale, out=np.zeros(len(table)), where=scale > 0)
        # What was not measured comes last, with a probability of one that it does not differ.
        scores, probability = (np.nan_to_num(values) for values in (scores, table["proba_de"].to_numpy()))
    else:
        scores, probability = table["bayes_factor"].to_numpy(), table["proba_m1"].to_numpy()
        # A gene that nobody was seen to express has a mean of zero.
        tiny = np.finfo(np.float64).tiny
        change = np.log2((table["scale1"].to_numpy() + tiny) / (table["scale2"].to_numpy() + tiny))
    return {
        "names": names,
        "scores": scores,
        "logfoldchanges": change,
        "pvals": 1.0 - probability,
        "pvals_adj": expected_fdr(probability),
    }
