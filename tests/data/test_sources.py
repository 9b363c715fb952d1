from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pytest
import scipy.sparse as sp
import zarr
from stores import KINDS, stored

from scvae_ext.data.sources import files_of, files_of_anndata


@pytest.mark.parametrize("kind", KINDS)
def test_every_way_to_open_a_file_knows_it(adata, tmp_path, kind):
    with stored(adata, kind, tmp_path) as opened:
        # anndata makes no view of a view of a backed AnnData.
        views = [opened[:9]] if opened.isbacked else [opened[:9], opened[:9][:, :5]]
        for cells in (opened, *views):
            files, is_known = files_of_anndata(cells, None)
            (path,) = tmp_path.iterdir()
            assert {file for file in files if file not in (path, path / "X")} == set()
            assert files
            assert is_known


@pytest.mark.parametrize("matrix", [np.ones((2, 2)), sp.eye(2, format="csr"), sp.eye(2, format="csc")])
def test_what_is_in_memory_has_no_file(matrix):
    assert files_of(matrix) == set()
    assert files_of(zarr.array(np.ones((2, 2)))) == set()


@pytest.mark.parametrize("kind", ["lazy h5ad", "lazy zarr", "lazy dense"])
def test_what_dask_computes_from_a_file_is_read_from_it(adata, tmp_path, kind):
    with stored(adata, kind, tmp_path) as opened:
        factor = 2
        computed = opened.X.rechunk((7, 40)).map_blocks(lambda block: block * factor)[3:30]
        (path,) = tmp_path.iterdir()
        assert files_of(computed) == {path / "X" if "h5ad" not in kind else path}


def test_a_reader_of_ones_own_is_looked_into(tmp_path):
    array = pytest.importorskip("dask.array", reason="Dask is in the extra 'scale'")
    path = tmp_path / "counts.npy"
    np.save(path, np.ones((4, 3)))
    read = array.map_blocks(lambda block_info=None: np.load(path), chunks=((4,), (3,)), dtype=float)
    assert files_of(read) == {path}


def test_what_cannot_be_told(tmp_path):
    array = pytest.importorskip("dask.array", reason="Dask is in the extra 'scale'")
    assert files_of(array.ones((4, 3))) is None
    with h5py.File(tmp_path / "counts.h5", "w") as file:
        dataset = file.create_dataset("X", data=np.ones((2, 2)))
        assert files_of(dataset) == {tmp_path / "counts.h5"}
    assert files_of(dataset) is None


def test_a_relative_path_of_another_folder(adata, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    adata.write_h5ad("counts.h5ad")
    with h5py.File("counts.h5ad") as file:
        matrix = ad.io.sparse_dataset(file["X"])
        assert files_of(matrix) == {Path("counts.h5ad").absolute()}
        monkeypatch.chdir("/")
        assert files_of(matrix) is None
