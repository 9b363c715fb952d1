import tracemalloc

import numpy as np
import pytest
import scipy.sparse as sp
from anndata import AnnData

from scvae_ext.data import align, read_registry, setup_anndata


@pytest.fixture
def source(adata):
    setup_anndata(
        adata, batch_key="batch", size_factor_key="size", categorical_covariate_keys=["donor"],
        continuous_covariate_keys=["age"],
    )  # fmt: skip
    return align(adata, read_registry(adata))


def require_cells(minibatch, source, counts, chosen):
    np.testing.assert_array_equal(minibatch.counts.dense(), counts[chosen])
    np.testing.assert_array_equal(minibatch.library_size, counts[chosen].sum(1))
    np.testing.assert_array_equal(minibatch.batch, chosen % 3)
    np.testing.assert_array_equal(minibatch.categorical_covariates[:, 0], chosen % 4)
    np.testing.assert_array_equal(minibatch.continuous_covariates, source.continuous_covariates[chosen])
    np.testing.assert_array_equal(minibatch.size_factor, source.size_factor[chosen])
    assert minibatch.n_cells == len(chosen)


@pytest.mark.parametrize("chosen", [[0], [5, 4, 3], [7, 7, 2, 7], [59, 0], list(range(60)), []])
def test_rows_come_in_the_order_asked_for(source, counts, chosen):
    chosen = np.array(chosen, dtype=np.int64)
    rows = source.read(chosen)
    assert rows.dtype == np.float32
    np.testing.assert_array_equal(rows.toarray(), counts[chosen])
    require_cells(source.minibatch(chosen), source, counts, chosen)


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.uint8])
def test_positions_of_any_integer_dtype(source, counts, dtype):
    require_cells(source.minibatch(np.array([3, 1], dtype=dtype)), source, counts, np.array([3, 1]))


def test_a_mask_is_not_taken_for_positions(source):
    # The shape checker of the tests would refuse a mask before the check that users meet.
    read = type(source)._positions.__wrapped__
    with pytest.raises(IndexError, match=r"must be integers, but are bool.*numpy.flatnonzero\(mask\)"):
        read(source, np.ones(60, dtype=bool))


@pytest.mark.parametrize("wrong", [[60], [-1], [0, 100]])
def test_positions_out_of_range(source, wrong):
    with pytest.raises(IndexError, match="must lie between 0 and 59"):
        source.read(np.array(wrong))


@pytest.mark.parametrize("batch_size", [1, 7, 23, 100])
def test_minibatches_are_consecutive(source, counts, batch_size, monkeypatch):
    monkeypatch.setattr("scvae_ext.data.loading._CELLS_PER_BLOCK", 2 * batch_size)
    order = np.random.default_rng(0).permutation(60)[:53]
    minibatches = list(source.minibatches(order, batch_size))
    assert len(minibatches) == -(-53 // batch_size)
    for i, minibatch in enumerate(minibatches):
        require_cells(minibatch, source, counts, order[i * batch_size : (i + 1) * batch_size])


def test_block_is_cut_in_place(source, counts):
    order = np.random.default_rng(0).permutation(60)
    sizes = [1, 20, 9, 30]
    block = source.block(order, sizes)
    for minibatch, chosen in zip(block, np.split(order, np.cumsum(sizes)[:-1]), strict=True):
        require_cells(minibatch, source, counts, chosen)
        np.testing.assert_array_equal(minibatch.counts.cell_index, np.nonzero(counts[chosen])[0])
        np.testing.assert_array_equal(minibatch.counts.gene_index, np.nonzero(counts[chosen])[1])
    storages = {minibatch.counts.values.untyped_storage().data_ptr() for minibatch in block}
    assert len(storages) == 1


def test_block_sizes_must_cover_the_cells(source):
    with pytest.raises(ValueError, match="batch_sizes sum to 5, but there are 4 cells"):
        source.block(np.arange(4), [2, 3])


def test_changing_a_minibatch_does_not_reach_the_counts(source, counts, adata):
    source.minibatch(np.arange(60)).counts.values.mul_(0)
    np.testing.assert_array_equal(adata.X.toarray(), counts)


def test_counts_changed_in_place_are_noticed(source, adata):
    adata.X.data[:] = np.log1p(adata.X.data)
    with pytest.raises(RuntimeError, match=r"adata.X has changed since.*layers\['counts'\] = adata.X.copy\(\)"):
        source.minibatch(np.array([3, 4]))


def test_a_single_count_changed_in_place_is_noticed(source, adata):
    adata.X.data[adata.X.indptr[3]] += 1
    for read in (source.minibatch, source.read):
        with pytest.raises(RuntimeError, match=r"adata\.X has changed since"):
            read(np.array([3, 4]))


def test_counts_replaced_by_the_user_do_not_matter(source, adata, counts):
    adata.X = adata.X.log1p()
    require_cells(source.minibatch(np.arange(60)), source, counts, np.arange(60))


def test_sources_have_the_same_counts_or_not(source, adata, counts):
    def has_counts_of_source(changed):
        other = adata.copy()
        other.X = changed
        return align(other, source.registry).has_counts_of(source)

    assert has_counts_of_source(sp.csc_matrix(counts.astype(np.int64)))
    assert not has_counts_of_source(counts + 1)
    assert not source.window(np.arange(5)).has_counts_of(source)
    # Totals are the same, entries are not.
    counts[:2, :2] += [[1, -1], [-1, 1]]
    assert not has_counts_of_source(counts)
    # Entries of an array that both share are the same, totals are not.
    adata.X.data *= 2
    assert not align(adata, source.registry).has_counts_of(source)


@pytest.mark.parametrize("convert", [sp.csr_matrix, sp.csc_matrix])
def test_sparse_counts_never_become_dense(convert):
    counts = sp.random(4000, 5000, 0.002, format="csr", dtype=np.float32, random_state=0)
    counts.data[:] = 1
    counts = (counts + sp.csr_matrix((np.ones(4000), (np.arange(4000), np.arange(4000))), shape=counts.shape)).ceil()
    adata = AnnData(convert(counts.astype(np.float32)))
    dense_bytes = 4000 * 5000 * 4
    tracemalloc.start()
    setup_anndata(adata[:, np.asarray(counts.sum(0)).ravel() > 0].copy())
    registry_owner = adata[:, np.asarray(counts.sum(0)).ravel() > 0].copy()
    setup_anndata(registry_owner)
    source = align(adata, read_registry(registry_owner))
    source.block(np.arange(2048), [128] * 16)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < dense_bytes / 10


def test_a_window_is_a_source_of_its_own(source, counts):
    chosen = np.array([7, 2, 59])
    window = source.window(chosen)
    assert window.n_cells == 3
    assert window.rows_per_block is None
    assert window.obs_names.tolist() == ["cell7", "cell2", "cell59"]
    np.testing.assert_array_equal(window.facts.total_per_gene, counts[chosen].sum(0))
    assert window.facts.n_nonzero == np.count_nonzero(counts[chosen])
    minibatch = window.minibatch(np.array([2, 0]))
    require_cells(minibatch, source, counts, chosen[[2, 0]])


def test_covariates_are_copies(source):
    covariates = source.covariates(np.array([4, 1]))
    np.testing.assert_array_equal(covariates["batch"], [1, 1])
    np.testing.assert_array_equal(covariates["categorical_covariates"], [[0], [1]])
    covariates["size_factor"][:] = 0
    assert (source.size_factor > 0).all()
    # A slice would take the memory of all cells along wherever it is sent.
    registered = [values for values in covariates.values() if values is not None]
    assert all(values.untyped_storage().nbytes() == values.nbytes for values in registered)
