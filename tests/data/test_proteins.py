import json

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from scvae_ext.data import Registry, align, read_registry, setup_anndata, synthetic_counts

KEY = "protein_expression_obsm_key"


@pytest.fixture
def adata():
    return synthetic_counts(60, 20, n_batches=2, n_proteins=4, seed=1)


def set_up(adata, **options):
    setup_anndata(adata, **{KEY: "protein", "batch_key": "batch", **options})
    return read_registry(adata)


def test_names_and_batches_are_registered_and_survive_json(adata):
    registry = set_up(adata)
    assert registry.proteins.names == ("protein_0", "protein_1", "protein_2", "protein_3")
    assert registry.proteins.measured == ((True,) * 4,) * 2
    assert Registry.from_dict(json.loads(json.dumps(registry.to_dict()))) == registry


def test_a_registry_without_proteins_is_written_as_it_was_before_there_were_any(adata):
    setup_anndata(adata, batch_key="batch")
    assert "proteins" not in read_registry(adata).to_dict()


@pytest.mark.parametrize("missing", [0, np.nan])
def test_what_a_batch_lacks_is_taken_as_not_measured_there(adata, missing):
    there = (adata.obs["batch"] == "batch_1").to_numpy()
    adata.obsm["protein"].loc[there, "protein_2"] = missing
    with pytest.warns(UserWarning, match=r"not measured there; 'batch_1': 'protein_2'"):
        registry = set_up(adata)
    assert registry.proteins.measured == ((True, True, True, True), (True, True, False, True))
    source = align(adata, registry)
    assert (source.proteins[there, 2] == 0).all()
    np.testing.assert_array_equal(source.proteins[~there], adata.obsm["protein"].to_numpy()[~there])


@pytest.mark.parametrize("kind", ["frame", "array", "sparse", "whole numbers"])
def test_every_kind_of_matrix_gives_the_same_numbers(adata, kind):
    frame = adata.obsm["protein"]
    adata.obsm["protein"] = {
        "frame": frame,
        "array": frame.to_numpy(),
        "sparse": sp.csr_matrix(frame.to_numpy()),
        "whole numbers": frame.astype("Int64"),
    }[kind]
    source = align(adata, set_up(adata))
    np.testing.assert_array_equal(source.proteins, frame.to_numpy())
    minibatch = source.minibatch(np.array([5, 3]))
    np.testing.assert_array_equal(minibatch.proteins, frame.to_numpy()[[5, 3]])
    np.testing.assert_array_equal(source.window(np.array([7, 2])).proteins, frame.to_numpy()[[7, 2]])


def test_proteins_are_matched_by_name(adata):
    registry = set_up(adata)
    expected = align(adata, registry).proteins
    adata.obsm["protein"] = adata.obsm["protein"][["protein_3", "protein_0", "protein_2", "protein_1"]].assign(more=1.5)
    np.testing.assert_array_equal(align(adata, registry).proteins, expected)
    adata.obsm["protein"] = adata.obsm["protein"].drop(columns="protein_2")
    with pytest.raises(ValueError, match=r"lacks 1 of the 4 proteins that were set up: 'protein_2'"):
        align(adata, registry)


def test_a_protein_that_no_batch_of_the_cells_has_needs_no_column(adata):
    there = (adata.obs["batch"] == "batch_1").to_numpy()
    adata.obsm["protein"].loc[there, "protein_2"] = np.nan
    with pytest.warns(UserWarning, match="not measured there"):
        registry = set_up(adata)
    expected = align(adata, registry).proteins
    one, both = adata[there].copy(), adata.copy()
    for other in (one, both):
        other.obsm["protein"] = other.obsm["protein"].drop(columns="protein_2")
    with pytest.raises(ValueError, match=r"lacks 1 of the 4 proteins that were set up.*'protein_2'"):
        align(both, registry)
    np.testing.assert_array_equal(align(one, registry).proteins, expected[there])


def test_names_of_an_array_come_from_uns(adata):
    adata.obsm["protein"] = adata.obsm["protein"].to_numpy()
    adata.uns["panel"] = np.array(["CD3", "CD4", "CD8", "CD19"])
    assert set_up(adata, protein_names_uns_key="panel").proteins.names == ("CD3", "CD4", "CD8", "CD19")
    adata.uns["panel"] = ["CD3"]
    with pytest.raises(ValueError, match=r"holds 1 names, but adata\.obsm\['protein'\] has 4 columns"):
        set_up(adata, protein_names_uns_key="panel")
    with pytest.raises(ValueError, match="Did you mean 'panel'"):
        set_up(adata, protein_names_uns_key="panels")


def test_values_that_are_no_counts_are_refused_by_name(adata):
    for wrong, shown in ((0.5, "0.5"), (-1, "-1"), (np.inf, "inf")):
        changed = adata.copy()
        changed.obsm["protein"].iloc[7, 1] = wrong
        with pytest.raises(ValueError, match=rf"1 of its 240 values.*cell 'cell_7' has {shown} of 'protein_1'.*CLR"):
            set_up(changed)


def test_a_value_that_is_missing_within_a_batch_is_refused(adata):
    cell = np.flatnonzero(adata.obs["batch"] == "batch_0")[0]
    adata.obsm["protein"].iloc[cell, 3] = np.nan
    with pytest.raises(ValueError, match=r"no value of 'protein_3' for 1 of 30 cells of batch 'batch_0'"):
        set_up(adata)


def test_mistakes_name_the_key_and_what_there_is(adata):
    with pytest.raises(ValueError, match=r"adata.obsm\['proteins'\] was not found. Did you mean 'protein'"):
        set_up(adata, **{KEY: "proteins"})
    with pytest.raises(ValueError, match="protein_expression_obsm_key does not say"):
        setup_anndata(adata, protein_names_uns_key="panel")
    empty = adata.copy()
    empty.obsm["protein"]["protein_0"] = 0
    with pytest.raises(ValueError, match=r"1 of 4 proteins .* have no counts in any cell: 'protein_0'"):
        set_up(empty)
    twice = adata.copy()
    twice.obsm["protein"] = twice.obsm["protein"].set_axis(["a", "b", "a", "c"], axis=1)
    with pytest.raises(ValueError, match=r"more than once: 'a'"):
        set_up(twice)
    text = adata.copy()
    text.obsm["protein"] = pd.DataFrame({"a": ["x"] * 60}, index=text.obs_names)
    with pytest.raises(ValueError, match="do not hold numbers: 'a'"):
        set_up(text)


def test_it_survives_h5ad(adata, tmp_path):
    registry = set_up(adata)
    adata.write_h5ad(tmp_path / "cells.h5ad")
    backed = ad.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    assert read_registry(backed) == registry
    np.testing.assert_array_equal(align(backed, registry).proteins, adata.obsm["protein"].to_numpy())
