import numpy as np
import pytest
import scipy.sparse as sp
from anndata import AnnData, read_h5ad
from stores import KINDS, stored

from scvae_ext.data import align, read_registry, setup_anndata
from scvae_ext.data.fields import Layer
from scvae_ext.data.opening import open_counts
from scvae_ext.data.stored import OnDiskCounts


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_any_store_come_in_the_order_asked_for(adata, counts, kind, tmp_path):
    with stored(adata, kind, tmp_path) as opened:
        matrix = open_counts(opened, Layer())
        assert isinstance(matrix, OnDiskCounts)
        assert matrix.shape == counts.shape
        for indices in ([5, 3, 59, 0], [4, 4, 1, 4], [7], list(range(60)), []):
            rows = matrix.rows(np.array(indices, dtype=np.int64))
            assert isinstance(rows, sp.csr_matrix)
            assert rows.dtype == np.float32
            assert rows.nnz == np.count_nonzero(counts[indices])
            np.testing.assert_array_equal(rows.toarray(), counts[indices])


@pytest.mark.parametrize("kind", KINDS)
def test_set_up_and_alignment_of_any_store(adata, counts, kind, tmp_path):
    keys = {
        "batch_key": "batch",
        "labels_key": "cell_type",
        "size_factor_key": "size",
        "categorical_covariate_keys": ["donor"],
        "continuous_covariate_keys": ["age"],
    }
    setup_anndata(adata, **keys)
    registry = read_registry(adata)
    in_memory = align(adata, registry)
    del adata.uns["scvae_ext"]
    with stored(adata, kind, tmp_path) as opened:
        setup_anndata(opened, **keys)
        assert read_registry(opened) == registry
        source = align(opened, registry)
        np.testing.assert_array_equal(source.library_size, counts.sum(1))
        assert source.facts.n_nonzero == np.count_nonzero(counts)
        for name in ("batch", "label", "categorical_covariates", "continuous_covariates", "size_factor"):
            np.testing.assert_array_equal(getattr(source, name), getattr(in_memory, name))


@pytest.mark.parametrize("kind", KINDS)
def test_genes_of_any_store_are_matched_by_name(adata, counts, kind, tmp_path):
    setup_anndata(adata)
    registry = read_registry(adata)
    shuffled = adata[:, np.random.default_rng(0).permutation(40)].copy()
    with stored(shuffled, kind, tmp_path) as opened:
        np.testing.assert_array_equal(align(opened, registry).read(np.array([9, 2])).toarray(), counts[[9, 2]])


@pytest.mark.parametrize("kind", ["lazy h5ad", "lazy zarr"])
def test_layers_of_a_lazy_anndata_stay_on_disk(adata, counts, kind, tmp_path):
    adata.layers["counts"] = adata.X
    adata.X = sp.csr_matrix(counts / 7)
    with stored(adata, kind, tmp_path) as opened:
        matrix = open_counts(opened, Layer("counts"))
        assert isinstance(matrix, OnDiskCounts)
        np.testing.assert_array_equal(matrix.rows(np.arange(60)).toarray(), counts)


@pytest.mark.parametrize("kind", ["backed", "zarr", "lazy h5ad", "lazy zarr"])
def test_an_entry_that_is_not_a_number_is_named(adata, kind, tmp_path):
    adata.X[47, 5] = np.nan
    with (
        stored(adata, kind, tmp_path) as opened,
        pytest.raises(ValueError, match=r"cell 'cell47', gene 'gene5' of adata.X is nan"),
    ):
        setup_anndata(opened)


def test_backed_view_is_read_in_its_order(adata, counts, tmp_path):
    with stored(adata, "backed", tmp_path) as opened:
        matrix = open_counts(opened[[9, 2, 30], 5:20], Layer())
        np.testing.assert_array_equal(matrix.rows(np.array([2, 0])).toarray(), counts[[30, 9], 5:20])


def test_backed_view_that_anndata_cannot_read(adata, tmp_path):
    with stored(adata, "backed dense", tmp_path) as opened:
        view = opened[[9, 2, 30], ::-1]
        with pytest.raises(ValueError, match=r"anndata cannot read this view.*adata\[cells\].*to_memory\(\)"):
            open_counts(view, Layer())


def test_csc_on_disk_is_loaded_and_says_so(adata, counts, tmp_path, caplog):
    adata.X = sp.csc_matrix(counts)
    adata.write_h5ad(tmp_path / "csc.h5ad")
    opened = read_h5ad(tmp_path / "csc.h5ad", backed="r")
    matrix = open_counts(opened, Layer())
    opened.file.close()
    np.testing.assert_array_equal(matrix.rows(np.array([3, 1])).toarray(), counts[[3, 1]])
    assert "adata.X is stored by genes (CSC)" in caplog.text


def test_matrices_of_other_kinds_are_refused_with_a_way_out(adata, counts):
    adata.layers["masked"] = np.ma.masked_less(counts, 1)
    with pytest.raises(TypeError, match=r"layers\['masked'\] is a numpy.ma.*MaskedArray, .*NumPy array or a SciPy CSR"):
        open_counts(adata, Layer("masked"))


def test_masked_chunks_of_a_dask_array_are_refused(counts):
    array = pytest.importorskip("dask.array", reason="Dask is in the extra 'scale'")
    lazy = AnnData(array.from_array(counts, chunks=(20, 40)).map_blocks(np.ma.masked_greater, 3))
    with pytest.raises(TypeError, match=r"MaskedArray, whose mask would be lost.*numpy.ma.filled\(matrix, 0\)"):
        setup_anndata(lazy)


def test_the_matrix_of_a_wrong_dtype_is_named():
    adata = AnnData(np.ones((2, 2), dtype=np.float32), layers={"c": np.ones((2, 2), dtype=complex)})
    with pytest.raises(TypeError, match=r"adata.layers\['c'\]: the matrix must hold real numbers.*complex128"):
        open_counts(adata, Layer("c"))
