import anndata as ad
import h5py
import numpy as np
import pytest
import scipy.sparse as sp
import zarr
from anndata import read_h5ad
from stores import stored

from scvae_ext.data.fields import Layer
from scvae_ext.data.opening import open_counts
from scvae_ext.data.readers import DaskRows
from scvae_ext.data.stored import OnDiskCounts


@pytest.fixture
def sparse_reader(adata, tmp_path):
    with stored(adata, "backed", tmp_path) as opened:
        yield open_counts(opened, Layer()).reader


def test_neighbours_are_read_together_and_gaps_left_out(sparse_reader):
    rows = np.array([3, 5, 60, 200, 201, 500])
    assert sparse_reader.spans(rows) == [(3, 61), (200, 202), (500, 501)]


def test_no_read_is_long(sparse_reader, monkeypatch):
    monkeypatch.setattr("scvae_ext.data.matrix._ROWS_PER_CHUNK", 100)
    assert sparse_reader.spans(np.arange(7, 260)) == [(7, 107), (107, 207), (207, 260)]


def test_rows_of_a_dask_array_with_chunks_in_both_directions(counts):
    dask_array = pytest.importorskip("dask.array")
    reader = DaskRows(dask_array.from_array(counts, chunks=((7, 20, 33), (11, 29))), "adata.X")
    assert reader.spans(np.array([0, 6, 30, 59])) == [(0, 7), (27, 60)]
    order = np.random.default_rng(0).permutation(60)
    np.testing.assert_array_equal(OnDiskCounts(reader, None, 40).rows(order).toarray(), counts[order])


def test_a_dask_array_of_unknown_chunks(counts):
    dask_array = pytest.importorskip("dask.array")
    array = dask_array.from_array(counts, chunks=(20, 40))
    with pytest.raises(ValueError, match=r"chunks have no known sizes.*compute_chunk_sizes\(\)"):
        DaskRows(array[array[:, 0] > 1], "adata.X")


@pytest.mark.parametrize("kind", ["backed", "backed dense", "lazy h5ad"])
def test_a_file_that_was_closed(adata, kind, tmp_path):
    with stored(adata, kind, tmp_path) as opened:
        matrix = open_counts(opened, Layer())
        if kind == "lazy h5ad":
            (tmp_path / "stored.h5ad").rename(tmp_path / "elsewhere.h5ad")
        else:
            opened.file.close()
        with pytest.raises(OSError, match=r"adata.X, rows \d+ to \d+, could not be read: .*closed, moved"):
            matrix.rows(np.array([3, 4]))


def test_a_chunk_that_cannot_be_decompressed(adata, tmp_path):
    adata.write_h5ad(tmp_path / "damaged.h5ad", compression="gzip")
    with h5py.File(tmp_path / "damaged.h5ad") as file:
        chunk = file["X/data"].id.get_chunk_info(0)
    with (tmp_path / "damaged.h5ad").open("r+b") as file:
        file.seek(chunk.byte_offset)
        file.write(b"\xff" * chunk.size)
    opened = read_h5ad(tmp_path / "damaged.h5ad", backed="r")
    with pytest.raises(OSError, match=r"adata.X, rows 10 to 12, could not be read: OSError.*damaged"):
        open_counts(opened, Layer()).rows(np.array([10, 12]))
    opened.file.close()


def test_a_file_that_was_not_written_to_its_end(adata, tmp_path):
    adata.write_h5ad(tmp_path / "short.h5ad")
    with h5py.File(tmp_path / "short.h5ad", "r+") as file:
        values = file["X/data"][:-5]
        del file["X/data"]
        file["X/data"] = values
    opened = read_h5ad(tmp_path / "short.h5ad", backed="r")
    with pytest.raises(ValueError, match=r"adata.X is damaged: it holds \d+ values and \d+ columns for 60 cells"):
        open_counts(opened, Layer())
    opened.file.close()


def test_columns_that_do_not_exist(adata, tmp_path):
    adata.write_h5ad(tmp_path / "wrong.h5ad")
    with h5py.File(tmp_path / "wrong.h5ad", "r+") as file:
        file["X/indices"][100] = 1_000_000
    opened = read_h5ad(tmp_path / "wrong.h5ad", backed="r")
    with pytest.raises(ValueError, match=r"adata.X is damaged: rows 0 to 59 name a column outside of its 40 genes"):
        open_counts(opened, Layer()).rows(np.arange(60))
    opened.file.close()


def test_a_zarr_chunk_that_was_lost(adata, tmp_path):
    with stored(adata, "zarr", tmp_path) as opened:
        columns = zarr.open_group(tmp_path / "stored.zarr", mode="r+")["X/indices"]
        # zarr reads a chunk that is missing as zeros.
        columns[:] = np.zeros(columns.shape, dtype=columns.dtype)
        with pytest.raises(ValueError, match=r"adata.X is damaged: rows 0 to 5 hold a gene of a cell more than once"):
            open_counts(opened, Layer()).rows(np.arange(6))


def test_blocks_are_as_long_as_chunks_within_bounds(tmp_path):
    counts = sp.random(3000, 50, 0.1, format="csr", dtype=np.float32, random_state=0)
    for entries_per_chunk, expected in ((100, 64), (1000, 200), (15_000, 1024)):
        with h5py.File(tmp_path / f"{entries_per_chunk}.h5", "w") as file:
            ad.io.write_elem(file, "X", counts, dataset_kwargs={"chunks": (entries_per_chunk,)})
            matrix = open_counts(ad.AnnData(ad.io.sparse_dataset(file["X"])), Layer())
            assert matrix.reader.rows_per_block == pytest.approx(expected, rel=0.01)
