"""What a registry has to learn of an AnnData with batches that were not there at set-up."""

import warnings
from dataclasses import replace

import numpy as np
import pandas as pd
from anndata import AnnData
from jaxtyping import Int

from scvae_ext.data.fields import CategoricalObs, require_anndata
from scvae_ext.data.names import find_category, shorten
from scvae_ext.data.peaks import measure_new_batches as measure_peaks
from scvae_ext.data.proteins import measure_new_batches as measure_proteins
from scvae_ext.data.registry import Registry
from scvae_ext.data.setup import register_batches

__all__ = ["add_batches", "keep_shared_genes"]


def add_batches(adata: AnnData, registry: Registry) -> Registry:
    """Return the registry with the batches of an AnnData that it does not know behind those that it does.

    Parameters
    ----------
    adata
        Cells by genes, with the column of batches that the registry names.
    registry
        What ``setup_anndata`` found in the data that a model was trained on.

    Raises
    ------
    ValueError
        If the registry has no column of batches, the AnnData no new batches, or its column cannot be used.
    """
    require_anndata(adata)
    key = registry.batch_key
    if key is None:
        raise ValueError(
            "The reference was set up without batches, so that there is no column to find new ones in: run "
            "setup_anndata(..., batch_key=...) on its cells and train it again; one batch is enough."
        )
    names = register_batches(adata, key, registry.batch_categories)
    new = tuple(name for name in names if find_category(name, registry.batch_categories) is None)
    if not new:
        raise ValueError(
            f"adata.obs[{key!r}] holds no batch that the reference does not know: {shorten(names)}. Nothing has to be "
            "learned of them: pass the cells to the reference, get_latent_representation(adata)."
        )
    categories = (*registry.batch_categories, *new)
    proteins, peaks = registry.proteins, registry.peaks
    if proteins is not None or peaks is not None:
        of_cell = CategoricalObs(key, "batch_key").codes(adata, categories)
        proteins = None if proteins is None else measure_proteins(adata, proteins, of_cell, categories)
        peaks = None if peaks is None else measure_peaks(adata, peaks, of_cell, categories)
    return replace(registry, batch_categories=categories, proteins=proteins, peaks=peaks)


def keep_shared_genes(
    adata: AnnData, registry: Registry, *, drop_missing: bool
) -> tuple[Registry, Int[np.ndarray, "genes"]]:
    """Return the registry of those genes that an AnnData has, and their positions among all.

    Parameters
    ----------
    adata
        Cells by genes.
    registry
        What ``setup_anndata`` found in the data that a model was trained on.
    drop_missing
        Whether genes that the AnnData lacks are left out, with a warning, instead of an error.

    Raises
    ------
    ValueError
        If genes are missing and are not to be left out, or all are missing.

    Warns
    -----
    UserWarning
        If genes were left out.
    """
    known = pd.Index(registry.var_names)
    present = known.isin(adata.var_names.astype(str))
    lacking = known[~present]
    if not present.any():
        raise ValueError(
            f"adata holds none of the {len(known)} genes of the reference: {shorten(known, 3)}; its var_names are "
            f"{shorten(adata.var_names, 3)}. Are the two kinds of gene names different?"
        )
    if len(lacking) and not drop_missing:
        raise ValueError(
            f"adata lacks {len(lacking)} of the {len(known)} genes of the reference: {shorten(lacking)}. Add them, or "
            "pass drop_missing_genes=True to go on without them."
        )
    if len(lacking):
        warnings.warn(
            f"{len(lacking)} of the {len(known)} genes of the reference are missing, and the model goes on without "
            f"them: {shorten(lacking, 3)}.",
            UserWarning,
            stacklevel=3,
        )
    return replace(registry, var_names=tuple(known[present])), np.flatnonzero(present)
