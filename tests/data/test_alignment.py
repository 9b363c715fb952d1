import logging

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from anndata import AnnData, read_h5ad

from scvae_ext.data import align, read_registry, setup_anndata

EVERYTHING = {
    "batch_key": "batch",
    "labels_key": "cell_type",
    "size_factor_key": "size",
    "categorical_covariate_keys": ["donor"],
    "continuous_covariate_keys": ["age"],
}


@pytest.fixture
def registry(adata):
    setup_anndata(adata, **EVERYTHING)
    return read_registry(adata)


def require_same(source, counts, adata):
    """All that a source says about all its cells, against the AnnData that it was made of."""
    minibatch = source.minibatch(np.arange(len(counts)))
    np.testing.assert_array_equal(minibatch.counts.dense(), counts)
    np.testing.assert_array_equal(minibatch.library_size, counts.sum(1))
    batches = {"b10x": 0, "smart": 1, "drop": 2}
    assert minibatch.batch.tolist() == [batches[name] for name in adata.obs["batch"]]
    assert minibatch.label.tolist() == [int(name == "T") for name in adata.obs["cell_type"]]
    np.testing.assert_array_equal(minibatch.categorical_covariates[:, 0], adata.obs["donor"].to_numpy() - 1)
    expected = (adata.obs["age"].to_numpy() - 49.5) / np.sqrt((60**2 - 1) / 12)
    np.testing.assert_allclose(minibatch.continuous_covariates[:, 0], expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(minibatch.size_factor, adata.obs["size"], rtol=1e-6)
    assert list(source.obs_names) == list(adata.obs_names)
    assert (source.n_cells, source.n_genes) == counts.shape


def test_the_training_data(adata, counts, registry):
    require_same(align(adata, registry), counts, adata)


def test_types_of_the_tensors(adata, registry):
    minibatch = align(adata, registry).minibatch(np.arange(5))
    assert {minibatch.batch.dtype, minibatch.label.dtype, minibatch.categorical_covariates.dtype} == {torch.int64}
    assert minibatch.counts.cell_index.dtype == minibatch.counts.gene_index.dtype == torch.int64
    floats = (minibatch.counts.values, minibatch.library_size, minibatch.continuous_covariates, minibatch.size_factor)
    assert {values.dtype for values in floats} == {torch.float32}


def test_nothing_registered(adata):
    setup_anndata(adata)
    minibatch = align(adata, read_registry(adata)).minibatch(np.arange(5))
    assert minibatch.batch.tolist() == minibatch.label.tolist() == [0] * 5
    assert minibatch.categorical_covariates.shape == minibatch.continuous_covariates.shape == (5, 0)
    assert minibatch.size_factor is None


def test_counts_in_csr_float32_are_not_copied(adata, registry):
    source = align(adata, registry)
    assert np.shares_memory(source._matrix.csr.data, adata.X.data)


@pytest.mark.parametrize("convert", [np.array, sp.csr_matrix, sp.csc_matrix, sp.csr_array, sp.csc_array])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32])
@pytest.mark.parametrize("permuted", [False, True])
def test_every_kind_of_matrix_and_permuted_genes(adata, counts, registry, convert, dtype, permuted):
    order = np.random.default_rng(0).permutation(40) if permuted else np.arange(40)
    other = AnnData(convert(counts[:, order].astype(dtype)), obs=adata.obs, var=adata.var.iloc[order])
    before = other.X.copy()
    require_same(align(other, registry), counts, adata)
    difference = before != other.X
    assert not (difference.sum() if sp.issparse(difference) else difference.any())


@pytest.mark.parametrize("mode", ["r", "r+"])
@pytest.mark.parametrize("convert", [np.array, sp.csr_matrix, sp.csc_matrix])
@pytest.mark.parametrize("permuted", [False, True])
def test_backed(adata, counts, registry, convert, mode, permuted, tmp_path):
    order = np.random.default_rng(0).permutation(40) if permuted else np.arange(40)
    AnnData(convert(counts[:, order]), obs=adata.obs, var=adata.var.iloc[order]).write_h5ad(tmp_path / "a.h5ad")
    backed = read_h5ad(tmp_path / "a.h5ad", backed=mode)
    source = align(backed, registry)
    require_same(source, counts, adata)
    chosen = np.array([50, 3, 3, 17, 0])
    np.testing.assert_array_equal(source.minibatch(chosen).counts.dense(), counts[chosen])
    backed.file.close()


def test_view_in_its_own_order(adata, counts, registry):
    cells, genes = np.array([9, 2, 33, 4]), np.random.default_rng(0).permutation(40)
    view = adata[cells][:, genes]
    require_same(align(view, registry), counts[cells], adata[cells].copy())
    assert view.is_view


def test_the_registered_layer_is_read(adata, counts):
    adata.layers["counts"] = adata.X.copy()
    adata.X = adata.X.log1p()
    setup_anndata(adata, layer="counts")
    registry = read_registry(adata)
    np.testing.assert_array_equal(align(adata, registry).read(np.arange(60)).toarray(), counts)
    del adata.layers["counts"]
    with pytest.raises(ValueError, match=r"layers\['counts'\] was not found. There are none."):
        align(adata, registry)


def test_extra_genes_are_dropped_with_a_note(adata, counts, registry, caplog):
    extra = np.full((60, 3), -5.0, dtype=np.float32)
    both = np.hstack([extra[:, :1], counts, extra[:, 1:]])
    other = AnnData(sp.csr_matrix(both), obs=adata.obs)
    other.var_names = ["new1", *adata.var_names, "new2", "new3"]
    with caplog.at_level(logging.INFO, logger="scvae_ext"):
        require_same(align(other, registry), counts, adata)
    assert "3 genes of adata are not among the 40 that were set up, and left out." in caplog.text


def test_missing_genes_are_listed(adata, registry):
    with pytest.raises(
        ValueError, match=r"lacks 12 of the 40 genes.*'gene0', .*'gene9' and 2 more.*fill_missing_genes=True"
    ):
        align(adata[:, 12:], registry)


def test_missing_genes_are_filled_with_zeros_when_asked(adata, counts, registry):
    order = np.random.default_rng(0).permutation(np.arange(3, 40))
    with pytest.warns(
        UserWarning, match="3 of 40 genes are missing and taken as zero counts: 'gene0', 'gene1', 'gene2'"
    ):
        source = align(adata[:, order], registry, fill_missing_genes=True)
    counts[:, :3] = 0
    require_same(source, counts, adata)


@pytest.mark.parametrize("fill", [False, True])
def test_no_gene_in_common(adata, registry, fill):
    adata.var_names = [f"ENSG{i}" for i in range(40)]
    with pytest.raises(ValueError, match=r"none of the 40 genes.*'gene0'.*'ENSG0'.*kinds of gene names different"):
        align(adata, registry, fill_missing_genes=fill)


def test_unseen_category(adata, registry):
    adata.obs["batch"] = adata.obs["batch"].cat.rename_categories({"smart": "new"})
    with pytest.raises(ValueError, match=r"batch_key.*set-up: 'new' \(20 cells\). Known are: 'b10x', 'smart', 'drop'"):
        align(adata, registry)


def test_other_order_and_subset_of_categories(adata, counts, registry):
    adata.obs["batch"] = adata.obs["batch"].cat.reorder_categories(["drop", "b10x", "smart"])
    require_same(align(adata, registry), counts, adata)
    subset = adata[adata.obs["batch"] == "drop"]
    assert set(align(subset, registry).batch.tolist()) == {2}


@pytest.mark.parametrize("key", ["batch", "cell_type", "size", "donor", "age"])
def test_missing_column(adata, registry, key):
    del adata.obs[key]
    with pytest.raises(ValueError, match=rf"column '{key}' of adata.obs was not found"):
        align(adata, registry)


def test_labels_that_do_not_matter(adata, registry):
    expected = align(adata, registry).label
    assert align(adata, registry, labels_matter=False).label.tolist() == expected.tolist()
    adata.obs["cell_type"] = pd.Categorical(adata.obs["cell_type"]).rename_categories({"T": "novel"})
    adata.obs.loc["cell1", "cell_type"] = np.nan
    found = align(adata, registry, labels_matter=False).label
    assert found[:4].tolist() == [-1, -1, -1, expected[3]]
    del adata.obs["cell_type"]
    assert (align(adata, registry, labels_matter=False).label == -1).all()


def test_training_mean_and_deviation_are_used(adata, registry):
    subset = adata[:2]
    values = align(subset, registry).continuous_covariates[:, 0]
    expected = (subset.obs["age"].to_numpy() - 49.5) / np.sqrt((60**2 - 1) / 12)
    np.testing.assert_allclose(values, expected, rtol=1e-6)


@pytest.mark.parametrize("value", [-1.0, np.nan, np.inf])
def test_invalid_entries_of_permuted_genes_are_named(adata, counts, registry, value):
    counts[3, 5] = value
    other = AnnData(counts[:, ::-1], obs=adata.obs, var=adata.var[::-1])
    with pytest.raises(ValueError, match=rf"cell 'cell3', gene 'gene5' of adata.X is {value:g}"):
        align(other, registry)


def test_fractions_are_an_error_for_those_that_need_counts(adata, registry):
    adata.X = adata.X * 0.5
    source = align(adata, registry)
    with pytest.raises(ValueError, match="gene_likelihood='poisson' needs raw counts"):
        source.require_counts("poisson")


def test_cells_without_counts_in_the_registered_genes(adata, counts):
    part = adata[:, :2].copy()
    setup_anndata(part)
    counts[6, :2] = 0
    with pytest.raises(ValueError, match=r"1 of 60 cells have no counts in the 2 genes of adata.X: 'cell6'"):
        align(AnnData(counts, obs=adata.obs, var=adata.var), read_registry(part))


def test_the_argument_is_not_modified(adata, registry):
    fresh = adata.copy()
    del fresh.uns["scvae_ext"]
    align(fresh, registry)
    assert not fresh.uns
    assert set(fresh.obs) == set(adata.obs)
