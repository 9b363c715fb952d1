"""Which files a matrix is read from."""

import io
from pathlib import Path
from typing import Any

import anndata.abc
import h5py
import numpy as np
import torch
import zarr
from anndata import AnnData
from anndata.compat import DaskArray
from zarr.abc.store import Store
from zarr.storage import MemoryStore

from scvae_ext.data.fields import Layer

__all__ = ["files_of", "files_of_anndata"]

_REMOTE = frozenset({"s3", "s3a", "gs", "gcs", "http", "https", "abfs", "az", "adl"})
_STORED = (anndata.abc.CSRDataset, anndata.abc.CSCDataset, h5py.Dataset, h5py.Group, zarr.Array, zarr.Group, Store)


def files_of_anndata(adata: AnnData, layer: str | None) -> tuple[set[Path], bool]:
    """Return the files that the matrices of an AnnData are read from.

    Parameters
    ----------
    adata
        The AnnData.
    layer
        Where its counts are; ``X`` where ``None``.

    Returns
    -------
    tuple
        The files, and folders in zarr stores; and whether they are all of those that counts are read from.
    """
    while adata.is_view:
        # Its matrices would be read to make those of the view.
        adata = adata._adata_ref
    counts = files_of(Layer(layer).read(adata))
    others = [files_of(matrix) or set() for matrix in (adata.X, *adata.layers.values(), *adata.obsm.values())]
    backing = set() if adata.filename is None else {Path(adata.filename)}
    return set().union(counts or (), backing, *others), counts is not None


def files_of(matrix: Any) -> set[Path] | None:
    """Return the files, or folders in zarr stores, that a matrix is read from, or ``None`` if that cannot be told.

    Parameters
    ----------
    matrix
        Any matrix of an AnnData.
    """
    if isinstance(matrix, DaskArray):
        return _files_of_graph(matrix)
    if not isinstance(matrix, _STORED):
        return set()
    if isinstance(matrix, anndata.abc.CSRDataset | anndata.abc.CSCDataset):
        matrix = matrix.group
    if isinstance(matrix, h5py.Dataset | h5py.Group):
        # A file that is closed has no name any more.
        return _existing([matrix.file.filename]) if matrix else None
    store = matrix if isinstance(matrix, Store) else matrix.store
    protocol = np.atleast_1d(getattr(getattr(store, "fs", None), "protocol", ()))
    if isinstance(store, MemoryStore) or _REMOTE.intersection(protocol):
        return set()
    roots = _existing([root for name in ("root", "path") if isinstance(root := getattr(store, name, None), str | Path)])
    # A store may hold other things as well.
    return roots and {root / getattr(matrix, "path", "") for root in roots}


def _existing(places: list[str | Path]) -> set[Path] | None:
    """Return the paths, or ``None`` where there is none, or one was relative to another working directory."""
    paths = {Path(place).absolute() for place in places}
    return paths if paths and all(path.exists() for path in paths) else None


def _files_of_graph(array: Any) -> set[Path] | None:
    """Look at everything that a Dask array is computed from, as it would be sent to another process."""
    import cloudpickle

    found: set[Path] = set()
    texts: set[str] = set()
    unknown = False

    class Finder(cloudpickle.Pickler):  # type: ignore[misc]
        def persistent_id(self, content: object) -> str | None:
            nonlocal unknown
            if isinstance(content, str):
                texts.add(content)
            elif isinstance(content, (*_STORED, Path)):
                files = _existing([content]) if isinstance(content, Path) else files_of(content)
                unknown |= files is None
                found.update(files or ())
            elif not isinstance(content, np.ndarray | torch.Tensor):
                return None
            return "seen"

    try:
        Finder(io.BytesIO()).dump(array.dask)
    except Exception:  # whatever cannot be sent raises an error of its own
        return None
    if unknown or not found:
        return None
    # Text may be a path as well.
    return found.union(*(_existing([text]) or () for text in texts if ".h5ad" in text or ".zarr" in text))
