import warnings

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData, read_h5ad, read_zarr

from scvae_ext.data import read_registry, setup_anndata
from scvae_ext.data.registry import CategoricalCovariate, Registry
from scvae_ext.data.validation import Entry

EVERYTHING = {
    "batch_key": "batch",
    "labels_key": "cell_type",
    "size_factor_key": "size",
    "categorical_covariate_keys": ["donor"],
    "continuous_covariate_keys": ["age"],
}


def test_plain(adata):
    setup_anndata(adata)
    assert read_registry(adata) == Registry(layer=None, var_names=tuple(adata.var_names))


def test_everything(adata):
    adata.layers["counts"] = adata.X
    setup_anndata(adata, layer="counts", **EVERYTHING)
    registry = read_registry(adata)
    assert registry.layer == "counts"
    assert (registry.batch_key, registry.batch_categories) == ("batch", ("b10x", "smart", "drop"))
    assert (registry.labels_key, registry.label_categories) == ("cell_type", ("B", "T"))
    assert registry.size_factor_key == "size"
    assert registry.categorical_covariates == (CategoricalCovariate("donor", ("1", "2", "3", "4")),)
    (age,) = registry.continuous_covariates
    # 60 evenly spaced values, one year apart.
    assert (age.key, age.mean) == ("age", pytest.approx(49.5, abs=1e-12))
    assert age.std == pytest.approx(np.sqrt((60**2 - 1) / 12), rel=1e-12)


def test_standard_deviation_beside_a_large_offset(adata):
    adata.obs["time"] = 1e9 + np.arange(60) % 2
    setup_anndata(adata, continuous_covariate_keys=["time"])
    (time,) = read_registry(adata).continuous_covariates
    assert time.std == pytest.approx(0.5, rel=1e-12)


def test_nothing_but_uns_is_written(adata, counts):
    before = adata.copy()
    setup_anndata(adata, **EVERYTHING)
    pd.testing.assert_frame_equal(adata.obs, before.obs)
    pd.testing.assert_frame_equal(adata.var, before.var)
    np.testing.assert_array_equal(adata.X.toarray(), counts)
    assert set(adata.uns) == {"scvae_ext"}


def test_a_failed_call_leaves_the_earlier_set_up(adata):
    setup_anndata(adata, batch_key="batch")
    with pytest.raises(ValueError, match="not found"):
        setup_anndata(adata, batch_key="donor", labels_key="nothing")
    assert read_registry(adata).batch_key == "batch"


def test_a_second_call_replaces_the_first(adata):
    setup_anndata(adata, batch_key="batch")
    setup_anndata(adata, labels_key="cell_type")
    registry = read_registry(adata)
    assert (registry.batch_key, registry.labels_key) == (None, "cell_type")


def test_view_becomes_actual_without_a_warning(adata):
    view = adata[10:40, 5:]
    setup_anndata(view, batch_key="batch")
    assert not view.is_view
    assert read_registry(view).n_genes == 35
    assert "scvae_ext" not in adata.uns


@pytest.mark.parametrize("mode", ["r", "r+"])
@pytest.mark.parametrize("convert", [sp.csr_matrix, np.array, sp.csc_matrix])
def test_backed(adata, counts, tmp_path, mode, convert):
    setup_anndata(adata, **EVERYTHING)
    expected = read_registry(adata)
    del adata.uns["scvae_ext"]
    adata.X = convert(counts)
    adata.write_h5ad(tmp_path / "a.h5ad")
    backed = read_h5ad(tmp_path / "a.h5ad", backed=mode)
    setup_anndata(backed, **EVERYTHING)
    assert read_registry(backed) == expected
    backed.file.close()


# anndata announces which zarr format it will write next.
@pytest.mark.filterwarnings("ignore:(Writing )?zarr v:UserWarning")
def test_round_trip_through_files(adata, tmp_path):
    setup_anndata(adata, **EVERYTHING)
    expected = read_registry(adata)
    adata.write_h5ad(tmp_path / "a.h5ad")
    adata.write_zarr(tmp_path / "a.zarr")
    for again in (read_h5ad(tmp_path / "a.h5ad"), read_zarr(tmp_path / "a.zarr")):
        assert read_registry(again) == expected
        setup_anndata(again, **EVERYTHING)
        assert read_registry(again) == expected


def test_fractions_are_noted(adata):
    adata.X = adata.X.log1p()
    setup_anndata(adata)
    first = read_registry(adata).first_fraction
    assert first == Entry("cell0", "gene0", float(adata.X[0, 0]))
    with pytest.raises(
        ValueError, match=r"gene_likelihood='nb' needs raw counts.*cell 'cell0', gene 'gene0' of adata.X"
    ):
        read_registry(adata).require_counts("nb")


@pytest.mark.parametrize("value", [-1.0, np.nan, np.inf])
@pytest.mark.parametrize("convert", [sp.csr_matrix, np.array, sp.csc_matrix, sp.csr_array])
def test_invalid_entries(counts, value, convert):
    counts[41, 7] = value
    with pytest.raises(ValueError, match=rf"cell '41', gene '7' of adata.X is {value:g}: counts"):
        setup_anndata(AnnData(convert(counts)))


def test_cells_without_counts_are_named(adata, counts):
    counts[[4, 8]] = 0
    adata.X = sp.csr_matrix(counts)
    with pytest.raises(
        ValueError, match=r"2 of 60 cells have no counts.*'cell4', 'cell8'.*filter_cells\(adata, min_counts=1\)"
    ):
        setup_anndata(adata)


def test_genes_without_counts_are_allowed_with_a_warning(adata, counts):
    counts[:, [1, 2]] = 0
    adata.X = sp.csr_matrix(counts)
    with pytest.warns(UserWarning, match=r"2 of 40 genes have no counts in adata.X: 'gene1', 'gene2'"):
        setup_anndata(adata)
    assert read_registry(adata).n_genes == 40


def test_batch_of_one_cell(adata):
    adata.obs["batch"] = ["lonely"] + ["a", "b"] * 29 + ["alone"]
    with pytest.raises(ValueError, match=r"obs\['batch'\] hold a single cell: 'alone', 'lonely'"):
        setup_anndata(adata, batch_key="batch")


def test_one_batch_is_fine(adata):
    adata.obs["batch"] = "only"
    setup_anndata(adata, batch_key="batch")
    assert read_registry(adata).batch_categories == ("only",)


@pytest.mark.parametrize(("key", "value"), [("categorical_covariate_keys", "same"), ("continuous_covariate_keys", 0.1)])
def test_constant_covariate(adata, key, value):
    adata.obs["constant"] = value
    with pytest.raises(ValueError, match=rf"{key}: adata.obs\['constant'\] is '?{value}'? in all cells.*Leave it out"):
        setup_anndata(adata, **{key: ["constant"]})


@pytest.mark.parametrize(
    "keys",
    [
        {"batch_key": "batch", "categorical_covariate_keys": ["batch"]},
        {"batch_key": "batch", "labels_key": "batch"},
        {"categorical_covariate_keys": ["donor", "batch", "batch"]},
        {"labels_key": "batch", "continuous_covariate_keys": ["batch"]},
    ],
)
def test_a_key_used_twice(adata, keys):
    with pytest.raises(ValueError, match=r"columns 'batch' of adata.obs are named more than once"):
        setup_anndata(adata, **keys)


@pytest.mark.parametrize("argument", ["categorical_covariate_keys", "continuous_covariate_keys"])
def test_one_key_in_place_of_a_list(adata, argument):
    with pytest.raises(ValueError, match=rf"must be a list of keys. Write {argument}=\['batch'\]"):
        setup_anndata(adata, **{argument: "batch"})


@pytest.mark.parametrize("argument", [*EVERYTHING, "layer"])
def test_every_missing_key_names_its_argument(adata, argument):
    value = ["nowhere"] if argument.endswith("keys") else "nowhere"
    with pytest.raises(ValueError, match=f"^{argument}: .*'nowhere'.* not found"):
        setup_anndata(adata, **{argument: value})


def test_no_warning_filters_are_changed(adata):
    before = list(warnings.filters)
    setup_anndata(adata, **EVERYTHING)
    assert warnings.filters == before
