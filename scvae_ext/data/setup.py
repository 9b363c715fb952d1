"""Registration of an AnnData: find the fields, validate them, write the registry."""

import warnings
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pandas as pd
from anndata import AnnData

from scvae_ext.data.fields import CategoricalObs, Layer, NumericalObs, require_anndata
from scvae_ext.data.labels import register_labels
from scvae_ext.data.names import find_category, shorten
from scvae_ext.data.opening import open_counts
from scvae_ext.data.peaks import register_peaks
from scvae_ext.data.proteins import register_proteins
from scvae_ext.data.provenance import make_actual, write_registry
from scvae_ext.data.registry import CategoricalCovariate, ContinuousCovariate, Registry
from scvae_ext.data.validation import CountFacts, scan_counts

__all__ = ["register_batches", "require_filled_cells", "setup_anndata"]


def setup_anndata(
    adata: AnnData,
    *,
    layer: str | None = None,
    batch_key: str | None = None,
    labels_key: str | None = None,
    size_factor_key: str | None = None,
    categorical_covariate_keys: Sequence[str] | None = None,
    continuous_covariate_keys: Sequence[str] | None = None,
    protein_expression_obsm_key: str | None = None,
    protein_names_uns_key: str | None = None,
    accessibility_obsm_key: str | None = None,
    peak_names_uns_key: str | None = None,
    unlabeled_category: str | None = None,
) -> None:
    """Register where an AnnData holds the counts and what is known about the cells.

    All entries of the matrix are looked at. Values that are not whole numbers are noted, and refused when a model with
    a likelihood of counts is built. The registry is written as JSON to ``adata.uns["scvae_ext"]``; calling again
    replaces it. A view becomes an AnnData of its own first.

    Parameters
    ----------
    adata
        Cells by genes. The matrix may be dense, CSR or CSC, of any real dtype, in memory, in an h5ad or zarr store, or
        a Dask array; only a matrix stored by genes (CSC) has to fit into memory.
    layer
        Key in ``adata.layers`` of the raw counts; ``None`` for ``adata.X``.
    batch_key
        Column of ``adata.obs`` with the experimental batch of each cell.
    labels_key
        Column of ``adata.obs`` with the label of each cell.
    size_factor_key
        Column of ``adata.obs`` with a factor greater than zero for each cell, used instead of its library size.
    categorical_covariate_keys, continuous_covariate_keys
        Columns of ``adata.obs`` with further covariates.
    protein_expression_obsm_key
        Key of ``adata.obsm`` with raw counts of proteins, as for
        :func:`~scvae_ext.data.proteins.register_proteins`.
    protein_names_uns_key
        Key of ``adata.uns`` with the names of the proteins, where they are not columns of a data frame.
    accessibility_obsm_key, peak_names_uns_key
        The same for peaks of chromatin, as for :func:`~scvae_ext.data.peaks.register_peaks`.
    unlabeled_category
        Category of ``labels_key`` of cells whose label is not known; ``None`` if all are known.

    Raises
    ------
    TypeError
        If ``adata`` is not an AnnData, or its matrix of a kind that cannot be read.
    ValueError
        If a key is missing or named twice, or values are missing, not finite, not allowed, or without information.

    Warns
    -----
    UserWarning
        If a gene has no counts in any cell.
    """
    require_anndata(adata)
    categorical_keys = _as_list(categorical_covariate_keys, "categorical_covariate_keys")
    continuous_keys = _as_list(continuous_covariate_keys, "continuous_covariate_keys")
    _require_distinct([batch_key, labels_key, size_factor_key, *categorical_keys, *continuous_keys])
    batches = () if batch_key is None else register_batches(adata, batch_key)
    labels: tuple[str, ...] = ()
    if labels_key is not None and unlabeled_category is not None:
        labels = register_labels(adata, labels_key, unlabeled_category)
    elif labels_key is not None:
        labels = CategoricalObs(labels_key, "labels_key").register(adata)[1]
    if size_factor_key is not None:
        NumericalObs(size_factor_key, "size_factor_key", positive=True).read(adata)
    categorical = tuple(_categorical_covariate(adata, key) for key in categorical_keys)
    continuous = tuple(_continuous_covariate(adata, key) for key in continuous_keys)
    proteins = peaks = None
    of_cell = np.zeros(adata.n_obs, dtype=np.int64)
    if batch_key is not None:
        of_cell = CategoricalObs(batch_key, "batch_key").codes(adata, batches)
    if accessibility_obsm_key is not None:
        peaks = register_peaks(adata, accessibility_obsm_key, peak_names_uns_key, of_cell, batches)
    if protein_expression_obsm_key is not None:
        proteins = register_proteins(adata, protein_expression_obsm_key, protein_names_uns_key, of_cell, batches)
    elif protein_names_uns_key is not None:
        raise ValueError(
            f"protein_names_uns_key={protein_names_uns_key!r} names proteins, but protein_expression_obsm_key does not "
            "say where their counts are: pass it as well."
        )
    make_actual(adata)
    counts = Layer(layer)
    facts = scan_counts(open_counts(adata, counts).chunks(), adata.obs_names, adata.var_names, counts.where)
    require_filled_cells(facts, adata.obs_names, counts.where)
    _warn_of_empty_genes(facts, adata, counts.where)
    write_registry(
        adata,
        Registry(
            layer=layer,
            var_names=tuple(map(str, adata.var_names)),
            batch_key=batch_key,
            batch_categories=batches,
            labels_key=labels_key,
            label_categories=labels,
            size_factor_key=size_factor_key,
            categorical_covariates=categorical,
            continuous_covariates=continuous,
            first_fraction=facts.first_fraction,
            proteins=proteins,
            peaks=peaks,
            unlabeled_category=unlabeled_category,
        ),
    )


def require_filled_cells(facts: CountFacts, cell_names: pd.Index, where: str) -> None:
    """Raise if a cell has no counts.

    Parameters
    ----------
    facts
        Totals of the matrix.
    cell_names
        Names of the cells.
    where
        Name of the matrix for the message.

    Raises
    ------
    ValueError
        If there is such a cell.
    """
    empty = np.flatnonzero(facts.total_per_cell == 0)
    if len(empty):
        raise ValueError(
            f"{len(empty)} of {len(cell_names)} cells have no counts in the {len(facts.total_per_gene)} genes of "
            f"{where}: {shorten(cell_names[empty])}. Leave them out: "
            "scanpy.pp.filter_cells(adata, min_counts=1)."
        )


def _warn_of_empty_genes(facts: CountFacts, adata: AnnData, where: str) -> None:
    empty = np.flatnonzero(facts.total_per_gene == 0)
    if len(empty):
        warnings.warn(
            f"{len(empty)} of {adata.n_vars} genes have no counts in {where}: {shorten(adata.var_names[empty], 3)}. "
            "A model learns nothing about them; scanpy.pp.filter_genes(adata, min_cells=1) leaves them out.",
            UserWarning,
            stacklevel=3,
        )


def _as_list(keys: Sequence[str] | None, argument: str) -> list[str]:
    if isinstance(keys, str):
        raise ValueError(f"{argument} must be a list of keys. Write {argument}=[{keys!r}].")
    return [] if keys is None else list(keys)


def _require_distinct(keys: list[str | None]) -> None:
    repeated = [key for key, times in Counter(key for key in keys if key is not None).items() if times > 1]
    if repeated:
        raise ValueError(f"the columns {shorten(repeated)} of adata.obs are named more than once. Name each only once.")


def register_batches(adata: AnnData, key: str, known: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the names of the batches that occur.

    Parameters
    ----------
    adata
        Cells by genes.
    key
        Column of ``adata.obs``.
    known
        Batches of which nothing has to be learned.

    Raises
    ------
    ValueError
        If the column cannot be used, or a batch that is not known has a single cell.
    """
    codes, names = CategoricalObs(key, "batch_key").register(adata)
    n_cells = np.bincount(codes, minlength=len(names))
    single = [name for name, n in zip(names, n_cells, strict=True) if n == 1 and find_category(name, known) is None]
    if single and adata.n_obs > 1:
        raise ValueError(
            f"batch_key: these batches of adata.obs[{key!r}] hold a single cell: {shorten(single)}. "
            "An effect of a batch cannot be told from one cell: leave them out, or merge them with other batches."
        )
    return names


def _categorical_covariate(adata: AnnData, key: str) -> CategoricalCovariate:
    _, names = CategoricalObs(key, "categorical_covariate_keys").register(adata)
    if len(names) == 1:
        raise ValueError(
            f"categorical_covariate_keys: adata.obs[{key!r}] is {names[0]!r} in all cells, "
            "so that it tells nothing. Leave it out."
        )
    return CategoricalCovariate(key, names)


def _continuous_covariate(adata: AnnData, key: str) -> ContinuousCovariate:
    values = NumericalObs(key, "continuous_covariate_keys").read(adata)
    if values.min() == values.max():
        raise ValueError(
            f"continuous_covariate_keys: adata.obs[{key!r}] is {values[0]:g} in all cells, "
            "so that it tells nothing. Leave it out."
        )
    # Differences to one value first, so that a large offset costs no digits.
    shifted = values - values[0]
    return ContinuousCovariate(key, float(values[0] + shifted.mean()), float(shifted.std()))
