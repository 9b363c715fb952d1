"""AnnData whose counts lie in a file, one for each way in which anndata can open them."""

import warnings
from contextlib import contextmanager

import anndata as ad
import h5py
import numpy as np
import pytest
import zarr

KINDS = ["backed", "backed dense", "zarr", "zarr dense", "lazy h5ad", "lazy zarr", "lazy dense"]


@contextmanager
def stored(adata, kind, folder):
    """Write an AnnData and open it in one of these ways; its counts are in ``X``."""
    if kind.startswith("lazy"):
        pytest.importorskip("dask", reason="a lazy AnnData needs the extra 'scale'")
        pytest.importorskip("xarray", reason="a lazy AnnData needs the extra 'scale'")
    adata = adata.copy()
    if kind.endswith("dense"):
        adata.X = adata.X.toarray().astype(np.int32)
    path = folder / ("stored.zarr" if "zarr" in kind or kind == "lazy dense" else "stored.h5ad")
    if path.suffix == ".h5ad":
        adata.write_h5ad(path)
    else:
        # anndata and zarr warn of the formats of their next releases, whatever is written.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            adata.write_zarr(path)
    if kind in ("backed", "backed dense"):
        opened = ad.read_h5ad(path, backed="r")
        yield opened
        opened.file.close()
    elif kind == "lazy h5ad":
        with h5py.File(path) as file:
            yield ad.experimental.read_lazy(file)
    elif kind.startswith("lazy"):
        yield ad.experimental.read_lazy(path)
    else:
        group = zarr.open_group(path, mode="r")
        counts = group["X"] if kind == "zarr dense" else ad.io.sparse_dataset(group["X"])
        rest = {slot: ad.io.read_elem(group[slot]) for slot in ("obs", "var", "uns")}
        yield ad.AnnData(counts, **rest)
