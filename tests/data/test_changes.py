import copy
import pickle

import numpy as np
import pytest
import scipy.sparse as sp
from anndata import AnnData
from stores import stored

from scvae_ext.data import changes
from scvae_ext.data.changes import SeenCounts
from scvae_ext.data.fields import Layer

X = Layer()
FORMATS = {
    "csr": lambda dense: sp.csr_matrix(dense),
    "csr int64": lambda dense: sp.csr_matrix(dense.astype(np.int64)),
    "csr array float64": lambda dense: sp.csr_array(dense.astype(np.float64)),
    "csc": lambda dense: sp.csc_matrix(dense),
    "dense": lambda dense: dense.copy(),
    "dense int16": lambda dense: dense.astype(np.int16),
    "dense by columns": lambda dense: np.asfortranarray(dense.astype(np.float64)),
}


@pytest.fixture(params=[False, True], ids=["all", "sample"])
def sampled(request, monkeypatch):
    if request.param:
        monkeypatch.setattr(changes, "_ALL_BELOW", 0)
    return request.param


@pytest.fixture(params=FORMATS)
def in_memory(request, adata, counts):
    adata.X = FORMATS[request.param](counts)
    return adata


@pytest.mark.usefixtures("sampled")
def test_what_is_left_alone_is_the_same(in_memory):
    seen = SeenCounts(in_memory, X)
    in_memory.obs["new"] = 1
    assert seen.state(in_memory) == "same"


@pytest.mark.usefixtures("sampled")
def test_values_changed_in_place_are_seen(in_memory):
    seen = SeenCounts(in_memory, X)
    (in_memory.X if isinstance(in_memory.X, np.ndarray) else in_memory.X.data)[...] *= 3
    assert seen.state(in_memory) == "changed"


def test_one_value_changed_in_place_is_seen(in_memory):
    seen = SeenCounts(in_memory, X)
    (in_memory.X if isinstance(in_memory.X, np.ndarray) else in_memory.X.data).flat[-1] += 1
    assert seen.state(in_memory) == "changed"


def test_equal_values_that_change_alike_are_seen(adata):
    """Words that all change by the same, and often, must not add up to nothing."""
    adata.X = sp.csr_matrix(np.ones(adata.shape))
    for power in range(4):
        seen = SeenCounts(adata, X)
        adata.X.data = adata.X.data * 2**power
        assert seen.state(adata) == ("changed" if power else "same")


@pytest.mark.parametrize("n_genes", [1024, 2048, 4096, 8192])
def test_rows_of_a_dense_matrix_that_change_places_are_seen(n_genes):
    adata = AnnData(np.random.default_rng(0).poisson(0.7, (40, n_genes)).astype(np.float64))
    seen = SeenCounts(adata, X)
    adata.X[...] = adata.X[::-1].copy()
    assert seen.state(adata) == "changed"


def test_another_object_is_another_matrix(in_memory):
    seen = SeenCounts(in_memory, X)
    in_memory.X = in_memory.X.copy()
    assert seen.state(in_memory) == "replaced"


def test_a_matrix_that_takes_the_place_in_memory_of_one_that_is_gone_is_another(adata, counts):
    for i in range(20):
        adata.layers["counts"] = sp.csr_matrix(counts)
        seen = SeenCounts(adata, Layer("counts"))
        del adata.layers["counts"]
        adata.layers["counts"] = sp.csr_matrix(counts + i)
        assert seen.state(adata) == "replaced"


@pytest.mark.usefixtures("sampled")
def test_parts_of_another_array(adata, counts):
    adata.X = np.repeat(counts, 2, axis=1)[:, ::2]
    seen = SeenCounts(adata, X)
    assert seen.state(adata) == "same"
    adata.X[...] += 1
    assert seen.state(adata) == "changed"


@pytest.mark.parametrize("chosen", [slice(5, 20), np.arange(5, 60)])
def test_a_view_changes_with_what_it_is_a_view_of(adata, chosen):
    view = adata[chosen]
    seen = SeenCounts(view, X)
    adata.obs["new"] = 1
    assert seen.state(view) == "same"
    before = adata.X.copy()
    adata.X.data[:] = 7
    assert seen.state(view) == "changed"
    adata.X = before
    assert seen.state(view) == "same"
    adata._inplace_subset_obs(np.arange(10))
    assert seen.state(view) == "changed"


def test_a_view_that_became_an_anndata_of_its_own_has_another_matrix(adata):
    view = adata[5:20]
    seen = SeenCounts(view, X)
    view._init_as_actual(view.copy())
    assert seen.state(view) == "replaced"


@pytest.mark.parametrize("kind", ["backed", "zarr", "lazy zarr"])
def test_a_matrix_on_disk_is_not_read_again(adata, tmp_path, kind):
    with stored(adata, kind, tmp_path) as opened:
        seen = SeenCounts(opened, X)
        assert seen.state(opened) == "same"
        if kind == "lazy zarr":
            view = opened[:30]
            assert SeenCounts(view, X).state(view) == "same"
            opened.X = opened.X + 1
            assert seen.state(opened) == "replaced"


@pytest.mark.parametrize("again", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_copies_go_with_the_copy_of_their_anndata(adata, again):
    seen, other = again((SeenCounts(adata, X), adata))
    assert seen.state(other) == "same"
    assert seen.state(adata) == "replaced"
