import json

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from stores import stored

from scvae_ext import MultiomeVAE
from scvae_ext.data import Registry, align, read_registry
from scvae_ext.datasets import synthetic_counts
from scvae_ext.minibatch import SparseCounts

KEY = "accessibility"


@pytest.fixture
def adata():
    return synthetic_counts(60, 20, n_batches=2, n_peaks=12, seed=2)


def set_up(adata, **options):
    MultiomeVAE.setup_anndata(adata, batch_key="batch", accessibility_obsm_key=KEY, **options)
    return read_registry(adata)


def dense(peaks):
    return SparseCounts.of_peaks(peaks).dense().numpy()


def test_minibatches_hold_the_peaks_of_their_cells(adata):
    expected = adata.obsm[KEY].toarray()
    registry = set_up(adata, peak_names_uns_key="peaks")
    assert registry.peaks.names == tuple(f"peak_{i}" for i in range(12))
    assert registry.peaks.measured == (True, True)
    source = align(adata, registry)
    np.testing.assert_array_equal(dense(source.peaks), expected)
    np.testing.assert_array_equal(dense(source.minibatch(np.array([5, 3])).peaks), expected[[5, 3]])
    first, second = source.block(np.array([9, 1, 4, 4]), [3, 1])
    np.testing.assert_array_equal(dense(first.peaks), expected[[9, 1, 4]])
    np.testing.assert_array_equal(dense(second.peaks), expected[[4]])
    np.testing.assert_array_equal(dense(source.window(np.array([7, 2])).peaks), expected[[7, 2]])
    assert source.n_features == 32


@pytest.mark.parametrize("kind", ["counts", "integers", "dense", "frame", "csc", "array", "explicit zeros"])
def test_every_kind_of_matrix_and_of_count_is_the_same(adata, kind):
    expected = dense(align(adata, set_up(adata)).peaks)
    matrix = adata.obsm[KEY]
    if kind == "explicit zeros":
        rows, columns = np.indices(matrix.shape).reshape(2, -1)
        adata.obsm[KEY] = sp.csr_matrix((matrix.toarray()[rows, columns], (rows, columns)), shape=matrix.shape)
    else:
        adata.obsm[KEY] = {
            "counts": lambda: matrix * 3,
            "integers": lambda: matrix.astype(np.uint8),
            "dense": matrix.toarray,
            "frame": lambda: pd.DataFrame(matrix.toarray(), index=adata.obs_names),
            "csc": matrix.tocsc,
            "array": lambda: sp.csr_array(matrix),
        }[kind]()
    np.testing.assert_array_equal(dense(align(adata, set_up(adata)).peaks), expected)


@pytest.mark.parametrize("empty", [0.0, np.nan])
def test_a_batch_without_accessible_peaks_was_measured_for_genes_alone(adata, empty):
    there = (adata.obs["batch"] == "batch_1").to_numpy()
    matrix = adata.obsm[KEY].toarray()
    matrix[there] = empty
    adata.obsm[KEY] = matrix
    with pytest.warns(UserWarning, match="measured for genes alone: 'batch_1'"):
        registry = set_up(adata)
    assert registry.peaks.measured == (True, False)
    found = dense(align(adata, registry).peaks)
    assert (found[there] == 0).all()
    np.testing.assert_array_equal(found[~there], matrix[~there])
    # What other cells have there is not looked at.
    adata.obsm[KEY] = np.nan_to_num(matrix)
    adata.obsm[KEY][there] = 1
    np.testing.assert_array_equal(dense(align(adata, registry).peaks), found)


def test_peaks_are_matched_by_name(adata):
    registry = set_up(adata, peak_names_uns_key="peaks")
    expected = dense(align(adata, registry).peaks)
    other = adata.copy()
    order = np.random.default_rng(0).permutation(12)
    other.obsm[KEY] = sp.hstack([other.obsm[KEY][:, order], np.ones((60, 1))]).tocsr()
    other.uns["peaks"] = [*np.array(adata.uns["peaks"])[order], "another"]
    np.testing.assert_array_equal(dense(align(other, registry).peaks), expected)
    other.obsm[KEY], other.uns["peaks"] = adata.obsm[KEY][:, 3:], adata.uns["peaks"][3:]
    with pytest.raises(ValueError, match=r"lacks 3 of the 12 peaks that were set up: 'peak_0', 'peak_1', 'peak_2'"):
        align(other, registry)


def test_the_set_up_survives_json_and_a_file(adata, tmp_path):
    registry = set_up(adata, peak_names_uns_key="peaks")
    assert Registry.from_dict(json.loads(json.dumps(registry.to_dict()))) == registry
    adata.write_h5ad(tmp_path / "cells.h5ad")
    back = ad.read_h5ad(tmp_path / "cells.h5ad")
    assert read_registry(back) == registry
    np.testing.assert_array_equal(dense(align(back, registry).peaks), dense(align(adata, registry).peaks))


@pytest.mark.parametrize("kind", ["backed", "lazy h5ad", "lazy zarr"])
def test_peaks_of_stored_cells(adata, kind, tmp_path):
    registry = set_up(adata)
    with stored(adata, kind, tmp_path) as there:
        np.testing.assert_array_equal(dense(align(there, registry).peaks), adata.obsm[KEY].toarray())


def test_mistakes_say_what_to_type_instead(adata):
    with pytest.raises(ValueError, match="accessibility_obsm_key says where the peaks are"):
        MultiomeVAE.setup_anndata(adata)
    with pytest.raises(ValueError, match="Did you mean 'accessibility'"):
        MultiomeVAE.setup_anndata(adata, accessibility_obsm_key="accessibilty")
    adata.uns["few"] = ["a", "b"]
    with pytest.raises(ValueError, match=r"holds 2 names, but adata.obsm\['accessibility'\] has 12 columns"):
        set_up(adata, peak_names_uns_key="few")
    right = adata.obsm[KEY].copy()
    for value, message in ((-1.0, "has -1 of"), (0.5, "has 0.5 of"), (np.nan, "has nan of"), (np.inf, "has inf of")):
        adata.obsm[KEY] = right.copy()
        adata.obsm[KEY].data[3] = value
        with pytest.raises(ValueError, match=message):
            set_up(adata)
    dense_with_a_gap = right.toarray()
    dense_with_a_gap[4, 2] = np.nan
    adata.obsm[KEY] = dense_with_a_gap
    with pytest.raises(ValueError, match="cell 'cell_4' has nan of 'peak_2'"):
        set_up(adata)
    adata.obsm[KEY] = right * 0
    with pytest.raises(ValueError, match="holds zeros alone"):
        set_up(adata)
    without = right.toarray()
    without[7] = 0
    adata.obsm[KEY] = without
    with pytest.raises(ValueError, match=r"1 of 60 cells have no accessible peak .* 'cell_7'"):
        set_up(adata)
    closed = right.toarray()
    closed[:, 5] = 0
    closed[:, 0] = 1
    adata.obsm[KEY] = closed
    with pytest.warns(UserWarning, match="1 of 12 peaks are accessible in no cell .* 'peak_5'"):
        set_up(adata)
