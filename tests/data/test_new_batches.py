"""Batches and genes of new cells, beside those that a registry knows."""

import numpy as np
import pytest

from scvae_ext import SCVAE
from scvae_ext.data import add_batches, keep_shared_genes, read_registry
from scvae_ext.datasets import synthetic_counts


@pytest.fixture
def known():
    adata = synthetic_counts(60, 12, n_batches=2)
    SCVAE.setup_anndata(adata, batch_key="batch")
    return read_registry(adata)


def query(*batches):
    adata = synthetic_counts(30, 12)
    adata.obs["batch"] = np.resize(np.array(batches), 30)
    return adata


def test_new_batches_come_behind_known_ones(known):
    assert known.batch_categories == ("batch_0", "batch_1")
    registry = add_batches(query("later", "batch_1", "another"), known)
    assert registry.batch_categories == ("batch_0", "batch_1", "another", "later")
    assert known.batch_categories == ("batch_0", "batch_1")


def test_numbers_are_the_batches_of_the_same_name():
    adata = synthetic_counts(60, 12)
    adata.obs["batch"] = np.resize([1, 2], 60)
    SCVAE.setup_anndata(adata, batch_key="batch")
    registry = add_batches(query(2.0, 3.0), read_registry(adata))
    assert registry.batch_categories == ("1", "2", "3")


def test_a_registry_without_batches_has_no_column_for_new_ones():
    adata = synthetic_counts(60, 12)
    SCVAE.setup_anndata(adata)
    with pytest.raises(ValueError, match=r"set up without batches.*setup_anndata\(\.\.\., batch_key=\.\.\.\)"):
        add_batches(query("new"), read_registry(adata))


def test_known_batches_alone_need_no_mapping(known):
    with pytest.raises(ValueError, match=r"holds no batch that the reference does not know: 'batch_1'.*latent"):
        add_batches(query("batch_1"), known)


def test_a_batch_of_one_cell_is_refused(known):
    adata = query("new")
    adata.obs.loc[adata.obs_names[3], "batch"] = "alone"
    with pytest.raises(ValueError, match=r"hold a single cell: 'alone'"):
        add_batches(adata, known)


def test_one_cell_of_a_known_batch_does_not_matter(known):
    adata = query("new")
    adata.obs.loc[adata.obs_names[3], "batch"] = "batch_1"
    assert add_batches(adata, known).batch_categories == ("batch_0", "batch_1", "new")


def test_a_missing_column_is_named(known):
    adata = query("new")
    del adata.obs["batch"]
    with pytest.raises(ValueError, match=r"batch_key: the column 'batch' of adata.obs was not found"):
        add_batches(adata, known)


@pytest.mark.usefixtures("unchecked")
def test_what_is_no_anndata_is_refused(known):
    with pytest.raises(TypeError, match=r"must be an anndata\.AnnData"):
        add_batches(np.ones((3, 12)), known)


def test_missing_genes_are_listed(known):
    adata = query("new")[:, 2:].copy()
    with pytest.raises(ValueError, match=r"lacks 2 of the 12 genes of the reference: 'gene_0', 'gene_1'.*drop_missing"):
        keep_shared_genes(adata, known, drop_missing=False)


def test_missing_genes_are_left_out_where_that_is_asked_for(known):
    adata = query("new")[:, [5, 3, 11]].copy()
    with pytest.warns(UserWarning, match=r"9 of the 12 genes of the reference are missing"):
        registry, positions = keep_shared_genes(adata, known, drop_missing=True)
    assert registry.var_names == ("gene_3", "gene_5", "gene_11")
    np.testing.assert_array_equal(positions, [3, 5, 11])


def test_all_genes_and_more_change_nothing(known):
    adata = synthetic_counts(30, 20)
    registry, positions = keep_shared_genes(adata, known, drop_missing=False)
    assert registry == known
    np.testing.assert_array_equal(positions, np.arange(12))


@pytest.mark.parametrize("drop", [True, False])
def test_genes_of_another_kind_are_told(known, drop):
    adata = query("new")
    adata.var_names = [f"ENSG{i}" for i in range(12)]
    with pytest.raises(ValueError, match=r"none of the 12 genes of the reference: 'gene_0'.*ENSG0.*different"):
        keep_shared_genes(adata, known, drop_missing=drop)
