"""The matrix of counts of an AnnData, in memory or not."""

import logging
from typing import Any, TypeAlias

import anndata.abc
import h5py
import numpy as np
import scipy.sparse as sp
import zarr
from anndata import AnnData
from anndata.compat import DaskArray
from jaxtyping import Int

from scvae_ext.data.fields import Layer
from scvae_ext.data.matrix import InMemoryCounts, as_csr, select_genes
from scvae_ext.data.readers import DaskRows, DenseFileRows, SparseFileRows
from scvae_ext.data.stored import OnDiskCounts

__all__ = ["CountMatrix", "open_counts"]

logger = logging.getLogger("scvae_ext")

CountMatrix: TypeAlias = InMemoryCounts | OnDiskCounts
"""A matrix of cells by genes whose rows can be read as canonical float32 CSR."""


def open_counts(
    adata: AnnData, layer: Layer, position: Int[np.ndarray, "columns"] | None = None, n_genes: int | None = None
) -> CountMatrix:
    """Open the counts of an AnnData.

    A matrix in memory is converted to float32 CSR once, without a copy if it is one. A matrix in an h5ad or zarr store
    stays there if it is dense or stored by rows, and so does a Dask array; one that is stored by columns is read into
    memory, as is a view of a backed AnnData.

    Parameters
    ----------
    adata
        Where to read.
    layer
        Which matrix.
    position, n_genes
        As for :func:`~scvae_ext.data.matrix.select_genes`; ``None`` keeps the columns as they are.

    Raises
    ------
    TypeError
        If the matrix is of a kind that cannot be read.
    ValueError
        If a file is damaged, or anndata cannot read a view of it.
    """
    try:
        matrix: Any = layer.read(adata)
    except (IndexError, TypeError, ValueError) as error:
        if not (adata.isbacked and adata.is_view and layer.key is None):
            raise
        raise ValueError(
            f"anndata cannot read this view of a backed matrix ({error}). Select cells alone, adata[cells], or load "
            "the AnnData before selecting from it: adata = adata.to_memory()."
        ) from error
    n_columns = adata.n_vars if n_genes is None else n_genes
    if isinstance(matrix, anndata.abc.CSCDataset):
        logger.warning(
            "%s is stored by genes (CSC), which cannot be read by cells: all of it is loaded into memory. "
            "Store it as CSR to read it from disk.",
            layer.where,
        )
        matrix = matrix.to_memory()
    for kind, reader in (
        (anndata.abc.CSRDataset, SparseFileRows),
        (h5py.Dataset | zarr.Array, DenseFileRows),
        (DaskArray, DaskRows),
    ):
        if isinstance(matrix, kind):
            _require_numbers(matrix.dtype, layer)
            return OnDiskCounts(reader(matrix, layer.where), position, n_columns)
    is_array = isinstance(matrix, np.ndarray) and not isinstance(matrix, np.ma.MaskedArray)
    if not is_array and not sp.issparse(matrix):
        raise TypeError(
            f"{layer.where} is a {type(matrix).__module__}.{type(matrix).__qualname__}, which cannot be read as "
            "counts. Convert it to a NumPy array or a SciPy CSR matrix, for example by adata = adata.to_memory()."
        )
    _require_numbers(matrix.dtype, layer)
    csr = as_csr(matrix)
    return InMemoryCounts(csr if position is None else select_genes(csr, position, n_columns))


def _require_numbers(dtype: np.dtype, layer: Layer) -> None:
    if dtype.kind not in "buif":
        raise TypeError(
            f"{layer.where}: the matrix must hold real numbers, but its dtype is {dtype}. Convert it to float32."
        )
