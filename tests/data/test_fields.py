import re

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from scvae_ext.data.fields import CategoricalObs, Layer, NumericalObs, require_anndata


def test_require_anndata_returns_the_same_object(adata):
    assert require_anndata(adata) is adata


@pytest.mark.parametrize("wrong", [np.ones((2, 2)), pd.DataFrame([[1.0]]), None, "file.h5ad"])
def test_anything_else_than_anndata_is_named(wrong):
    with pytest.raises(
        TypeError, match=rf"must be an anndata.AnnData, but is .*{type(wrong).__name__}.*AnnData\(matrix\)"
    ):
        require_anndata(wrong)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
def test_empty_anndata(shape):
    with pytest.raises(ValueError, match=f"empty: {shape[0]} cells by {shape[1]} genes"):
        require_anndata(AnnData(np.ones(shape, dtype=np.float32)))


def test_duplicate_genes(adata):
    adata.var.index = ["CD3D", "CD3D", "MS4A1", "MS4A1", *adata.var_names[4:]]
    with pytest.raises(ValueError, match=r"2 names more than once: 'CD3D', 'MS4A1'.*var_names_make_unique\(\)"):
        require_anndata(adata)


def test_layer_reads_x_and_layers(adata, counts):
    adata.layers["counts"] = 2 * counts
    assert Layer().read(adata) is adata.X
    np.testing.assert_array_equal(Layer("counts").read(adata), 2 * counts)
    assert Layer("counts").where == "adata.layers['counts']"
    assert Layer().where == "adata.X"


def test_missing_layer_names_the_nearest(adata):
    adata.layers["counts"] = adata.X
    with pytest.raises(ValueError, match=r"layers\['Count'\] was not found. Did you mean 'counts'\?"):
        Layer("Count").read(adata)
    with pytest.raises(ValueError, match=r"There are: 'counts'."):
        Layer("zzz").read(adata)


def test_missing_layer_without_any(adata):
    with pytest.raises(ValueError, match=r"There are none. To use adata.X, pass layer=None."):
        Layer("counts").read(adata)


def test_no_matrix(adata):
    adata.layers["raw"] = adata.X
    adata.X = None
    with pytest.raises(ValueError, match=r"adata.X is None.*there are: 'raw'"):
        Layer().read(adata)


@pytest.mark.parametrize(
    ("values", "names", "codes"),
    [
        (["b", "a", "b"], ("a", "b"), [1, 0, 1]),
        (pd.Categorical(["b", "a", "b"], categories=["z", "b", "a"]), ("b", "a"), [0, 1, 0]),
        ([10, 9, 10], ("9", "10"), [1, 0, 1]),
        ([10.0, 9.0, 10.0], ("9", "10"), [1, 0, 1]),
        ([0.5, 0.1, 0.5], ("0.1", "0.5"), [1, 0, 1]),
        ([True, False, True], ("False", "True"), [1, 0, 1]),
        (pd.array([3, 1, 3], dtype="Int64"), ("1", "3"), [1, 0, 1]),
        (pd.array(["x", "y", "x"], dtype="string"), ("x", "y"), [0, 1, 0]),
    ],
)
def test_categories_by_name(values, names, codes):
    adata = AnnData(np.ones((3, 1), dtype=np.float32), obs=pd.DataFrame({"k": values}, index=["0", "1", "2"]))
    read, found = CategoricalObs("k", "batch_key").read(adata)
    assert found == names
    assert read.dtype == np.int64
    np.testing.assert_array_equal(read, codes)


def test_codes_follow_the_given_list(adata):
    codes = CategoricalObs("cell_type", "labels_key").codes(adata, ("B", "NK", "T"))
    np.testing.assert_array_equal(codes, np.where(adata.obs["cell_type"] == "T", 2, 0))


@pytest.mark.parametrize("dtype", [int, float, "float32", "Float64", str])
def test_whole_numbers_are_the_same_categories_in_any_type(adata, dtype):
    adata.obs["k"] = np.array([1, 3, 2] * 20).astype(dtype) if dtype != "Float64" else pd.array([1, 3, 2] * 20, dtype)
    for known in (("1", "2", "3"), ("1.0", "2.0", "2.5", "3.0")):
        codes = CategoricalObs("k", "batch_key").codes(adata, known)
        assert codes[:3].tolist() == [0, len(known) - 1, 1]


def test_unseen_category_is_named(adata):
    with pytest.raises(ValueError, match=r"labels_key.*not there at set-up: 'T' \(30 cells\). Known are: 'B', 'NK'"):
        CategoricalObs("cell_type", "labels_key").codes(adata, ("B", "NK"))


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("Batch", "Did you mean 'batch'?"),
        ("celltype", "Did you mean 'cell_type'?"),
        ("q", "There are: 'batch', 'cell_type'"),
    ],
)
def test_missing_column_names_the_nearest(adata, key, hint):
    for field in (CategoricalObs(key, "batch_key"), NumericalObs(key, "batch_key")):
        with pytest.raises(ValueError, match=re.escape(f"column {key!r} of adata.obs was not found. {hint}")):
            field.read(adata)


def test_error_of_a_missing_column_prints_as_a_sentence(adata):
    with pytest.raises(ValueError, match="not found") as caught:
        CategoricalObs("Batch", "batch_key").read(adata)
    assert str(caught.value) == "batch_key: the column 'Batch' of adata.obs was not found. Did you mean 'batch'?"


def test_column_twice(adata):
    adata.obs = pd.concat([adata.obs, adata.obs[["batch"]]], axis=1)
    with pytest.raises(ValueError, match="has 2 columns called 'batch'"):
        CategoricalObs("batch", "batch_key").read(adata)


@pytest.mark.parametrize("dtype", ["category", object])
def test_missing_values_in_a_category_are_counted(adata, dtype):
    values = adata.obs["cell_type"].astype(object)
    values.iloc[[3, 7]] = None
    adata.obs["cell_type"] = values.astype(dtype)
    with pytest.raises(ValueError, match=r"no value for 2 of 60 cells, the first of them 'cell3'.*notna\(\)"):
        CategoricalObs("cell_type", "labels_key").read(adata)


def test_values_that_read_the_same(adata):
    adata.obs["mixed"] = pd.Categorical.from_codes(np.arange(60) % 3, pd.Index([1, "1", "2"], dtype=object))
    with pytest.raises(ValueError, match=r"read the same: '1'.*astype\(str\)"):
        CategoricalObs("mixed", "batch_key").read(adata)


def test_measured_quantities_are_no_categories(adata):
    adata.obs["score"] = np.linspace(0, 1, 60).repeat(2)[:60]
    with pytest.raises(ValueError, match=r"30 different values in 60 cells .*continuous_covariate_keys"):
        CategoricalObs("score", "batch_key").register(adata)
    adata.obs["barcode"] = adata.obs_names
    with pytest.raises(ValueError, match="60 different values in 60 cells"):
        CategoricalObs("barcode", "batch_key").register(adata)
    # Cells to be matched to known categories may be few.
    codes = CategoricalObs("barcode", "batch_key").codes(adata, tuple(adata.obs_names))
    np.testing.assert_array_equal(codes, np.arange(60))


def test_many_categories_of_many_cells_are_fine(adata):
    adata.obs["guide"] = [f"guide{i // 2}" for i in range(60)]
    assert len(CategoricalObs("guide", "batch_key").register(adata)[1]) == 30


@pytest.mark.parametrize("dtype", ["float32", "int8", "Int64", "Float64", "bool"])
def test_numbers_of_any_dtype(adata, dtype):
    adata.obs["n"] = pd.array(np.arange(60) % 2, dtype=dtype)
    values = NumericalObs("n", "continuous_covariate_keys").read(adata)
    assert values.dtype == np.float64
    np.testing.assert_array_equal(values, np.arange(60) % 2)


@pytest.mark.parametrize("column", ["batch", "cell_type"])
def test_text_is_no_number(adata, column):
    with pytest.raises(ValueError, match=rf"obs\['{column}'\] must hold numbers.*astype\(float\)"):
        NumericalObs(column, "size_factor_key").read(adata)


@pytest.mark.parametrize(("value", "shown"), [(np.nan, "nan"), (np.inf, "inf"), (-np.inf, "-inf")])
def test_number_that_is_not_finite(adata, value, shown):
    adata.obs.loc["cell5", "age"] = value
    with pytest.raises(ValueError, match=rf"must be finite, but is not in 1 of 60 cells; cell 'cell5' has {shown}"):
        NumericalObs("age", "continuous_covariate_keys").read(adata)


def test_missing_number_of_a_nullable_column(adata):
    adata.obs["n"] = pd.array([None, *range(59)], dtype="Int64")
    with pytest.raises(ValueError, match="cell 'cell0' has nan"):
        NumericalObs("n", "continuous_covariate_keys").read(adata)


@pytest.mark.parametrize("value", [0.0, -1.0, np.nan])
def test_size_factor_must_be_positive(adata, value):
    adata.obs.loc["cell9", "size"] = value
    with pytest.raises(ValueError, match=rf"greater than zero, but is not in 1 .*'cell9' has {value:g}"):
        NumericalObs("size", "size_factor_key", positive=True).read(adata)
