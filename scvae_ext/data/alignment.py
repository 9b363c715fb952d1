"""Matching an AnnData to a registry: genes, categories and covariates by name."""

import logging
import warnings

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from jaxtyping import Int

from scvae_ext.data.fields import CategoricalObs, Layer, NumericalObs, require_anndata
from scvae_ext.data.labels import known_labels, match_labels
from scvae_ext.data.loading import CellSource
from scvae_ext.data.names import shorten
from scvae_ext.data.opening import open_counts
from scvae_ext.data.peaks import match_peaks
from scvae_ext.data.proteins import match_proteins
from scvae_ext.data.registry import Registry
from scvae_ext.data.setup import require_filled_cells
from scvae_ext.data.validation import scan_counts

__all__ = ["align"]

logger = logging.getLogger("scvae_ext")


def align(
    adata: AnnData, registry: Registry, *, fill_missing_genes: bool = False, labels_matter: bool = True
) -> CellSource:
    """Read an AnnData as a registry describes it.

    Genes are matched by name and put in the registry's order; genes that the registry does not know are left out.
    Categories are matched by name, and continuous covariates standardised by the registry's means and standard
    deviations. The AnnData need not have been set up, and is not modified.

    Parameters
    ----------
    adata
        Cells by genes, with the layer and the columns of ``obs`` that the registry names.
    registry
        What ``setup_anndata`` found in the training data.
    fill_missing_genes
        Whether genes that ``adata`` lacks are taken as zero counts, with a warning, instead of an error.
    labels_matter
        Whether the model uses labels. Otherwise their column may be missing or hold labels that were not there at
        set-up; such cells get the position -1, or that of the category for labels that are not known, if there is one.

    Returns
    -------
    CellSource
        The cells in the order of ``adata``.

    Raises
    ------
    TypeError
        If ``adata`` is not an AnnData, or its matrix of a kind that cannot be read.
    ValueError
        If genes, a layer or a column are missing, a category was not there at set-up, or values are not allowed.

    Warns
    -----
    UserWarning
        If missing genes were filled with zeros.
    """
    require_anndata(adata)
    n_cells = adata.n_obs
    batch = label = np.zeros(n_cells, dtype=np.int64)
    if registry.batch_key is not None:
        batch = CategoricalObs(registry.batch_key, "batch_key").codes(adata, registry.batch_categories)
    if registry.labels_key is not None:
        label = _labels(adata, registry, labels_matter)
    size_factor = None
    if registry.size_factor_key is not None:
        size_factor = NumericalObs(registry.size_factor_key, "size_factor_key", positive=True).read(adata)
    categorical = np.zeros((n_cells, len(registry.categorical_covariates)), dtype=np.int64)
    for i, factor in enumerate(registry.categorical_covariates):
        field = CategoricalObs(factor.key, "categorical_covariate_keys")
        categorical[:, i] = field.codes(adata, factor.categories)
    continuous = np.zeros((n_cells, len(registry.continuous_covariates)), dtype=np.float32)
    for i, quantity in enumerate(registry.continuous_covariates):
        values = NumericalObs(quantity.key, "continuous_covariate_keys").read(adata)
        continuous[:, i] = (values - quantity.mean) / quantity.std
    proteins = None
    if registry.proteins is not None:
        proteins = match_proteins(adata, registry.proteins, batch, registry.batch_categories)
    peaks = None if registry.peaks is None else match_peaks(adata, registry.peaks, batch)
    layer = Layer(registry.layer)
    matrix = open_counts(adata, layer, _gene_positions(adata, registry, fill_missing_genes), registry.n_genes)
    facts = scan_counts(matrix.chunks(), adata.obs_names, pd.Index(registry.var_names), layer.where)
    require_filled_cells(facts, adata.obs_names, layer.where)
    names = adata.obs_names
    return CellSource(
        registry,
        # That is what a lazy AnnData calls an index without a name, from anndata 0.13 on.
        names.rename(None) if names.name == "_index" else names,
        matrix,
        facts,
        torch.from_numpy(batch),
        torch.from_numpy(label),
        torch.from_numpy(categorical),
        torch.from_numpy(continuous),
        None if size_factor is None else torch.from_numpy(size_factor.astype(np.float32)),
        None if proteins is None else torch.from_numpy(proteins),
        peaks,
    )


def _labels(adata: AnnData, registry: Registry, labels_matter: bool) -> Int[np.ndarray, "cells"]:
    assert registry.labels_key is not None
    may_lack = registry.unlabeled_category is not None
    if not labels_matter:
        otherwise = len(registry.label_categories) - 1 if may_lack else -1
        return known_labels(adata, registry.labels_key, registry.label_categories, otherwise)
    if may_lack:
        return match_labels(adata, registry.labels_key, registry.label_categories)
    return CategoricalObs(registry.labels_key, "labels_key").codes(adata, registry.label_categories)


def _gene_positions(adata: AnnData, registry: Registry, fill_missing_genes: bool) -> Int[np.ndarray, "columns"] | None:
    known = pd.Index(registry.var_names)
    here = adata.var_names.astype(str)
    if here.equals(known):
        return None
    missing = known.difference(here, sort=False)
    if len(missing) == len(known):
        raise ValueError(
            f"adata holds none of the {len(known)} genes that were set up: {shorten(known, 3)}; "
            f"its var_names are {shorten(here, 3)}. Are the two kinds of gene names different?"
        )
    if len(missing) and not fill_missing_genes:
        raise ValueError(
            f"adata lacks {len(missing)} of the {len(known)} genes that were set up: {shorten(missing)}. "
            "Add them, pass fill_missing_genes=True to take them as zero counts, or run setup_anndata again if "
            "genes of the same AnnData were filtered since."
        )
    if len(missing):
        warnings.warn(
            f"{len(missing)} of {len(known)} genes are missing and taken as zero counts: {shorten(missing, 3)}.",
            UserWarning,
            stacklevel=3,
        )
    positions = known.get_indexer(here).astype(np.int64)
    n_extra = int((positions < 0).sum())
    if n_extra:
        logger.info("%d genes of adata are not among the %d that were set up, and left out.", n_extra, len(known))
    return positions
