from dataclasses import FrozenInstanceError, fields, replace

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from minibatches import make_minibatch

from scvae_ext.minibatch import SparseCounts, cut
from scvae_ext.peaks import AccessiblePeaks

DENSE = torch.tensor([[0.0, 2.0, 0.0], [0.0, 0.0, 0.0], [1.0, 0.0, 5.0]])


def test_sparse_counts_hold_the_entries_that_are_not_zero_row_by_row():
    counts = SparseCounts.from_dense(DENSE)
    expected = sp.csr_matrix(DENSE.numpy()).tocoo()
    np.testing.assert_array_equal(counts.values, expected.data)
    np.testing.assert_array_equal(counts.cell_index, expected.row)
    np.testing.assert_array_equal(counts.gene_index, expected.col)
    assert (counts.n_cells, counts.n_genes) == (3, 3)


def test_dense_undoes_from_dense():
    assert torch.equal(SparseCounts.from_dense(DENSE).dense(), DENSE)


def test_flat_index_addresses_the_flattened_matrix():
    counts = SparseCounts.from_dense(DENSE)
    assert torch.equal(DENSE.flatten()[counts.flat_index], counts.values)


def test_scatter_puts_other_values_at_the_same_places():
    counts = SparseCounts.from_dense(DENSE)
    assert torch.equal(counts.scatter(counts.values.log1p()), DENSE.log1p())


def test_scatter_is_differentiable_in_the_values():
    values = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    weights = torch.arange(9.0).view(3, 3)
    (SparseCounts.from_dense(DENSE).scatter(values) * weights).sum().backward()
    assert torch.equal(values.grad, torch.tensor([1.0, 6.0, 8.0]))


def test_sum_per_cell_gives_empty_cells_zero():
    counts = SparseCounts.from_dense(DENSE)
    assert torch.equal(counts.sum_per_cell(counts.values), torch.tensor([2.0, 0.0, 6.0]))


def test_counts_without_any_entry():
    counts = SparseCounts.from_dense(torch.zeros(2, 3))
    assert torch.equal(counts.dense(), torch.zeros(2, 3))
    assert torch.equal(counts.sum_per_cell(counts.values), torch.zeros(2))


def test_minibatch_knows_its_number_of_cells():
    assert make_minibatch(n_cells=5).n_cells == 5


def test_minibatch_is_frozen():
    minibatch = make_minibatch()
    with pytest.raises(FrozenInstanceError):
        minibatch.library_size = torch.ones(12)


@pytest.mark.parametrize("size_factor", [True, False])
def test_to_moves_every_tensor(size_factor):
    # The meta device is another device that every machine has.
    minibatch = make_minibatch(n_categories=(2,), n_continuous=1, size_factor=size_factor)
    peaks = AccessiblePeaks(torch.arange(12, dtype=torch.int32), torch.arange(13), 20)
    minibatch = replace(
        minibatch, proteins=torch.ones(12, 3) if size_factor else None, peaks=peaks if size_factor else None
    ).to("meta")
    assert minibatch.n_cells == 12
    for field in fields(minibatch):
        value = getattr(minibatch, field.name)
        if field.name == "counts":
            assert {value.values.device.type, value.cell_index.device.type, value.gene_index.device.type} == {"meta"}
            assert (value.n_cells, value.n_genes) == (12, 7)
        elif field.name in ("size_factor", "proteins", "peaks") and not size_factor:
            assert value is None
        elif field.name == "peaks":
            assert (value.peak_index.device.type, value.offsets.device.type) == ("meta", "cpu")
        else:
            assert value.device.type == "meta"


def test_to_leaves_the_original_where_it_was():
    minibatch = make_minibatch()
    minibatch.to("meta")
    assert minibatch.library_size.device.type == "cpu"


def test_tensors_of_different_numbers_of_cells_are_found_by_the_shape_checks():
    minibatch = make_minibatch()
    with pytest.raises(Exception, match="library_size"):
        replace(minibatch, batch=torch.zeros(3, dtype=torch.int64))


def test_cell_offsets_are_where_each_cell_begins_and_where_the_last_ends():
    counts = SparseCounts.from_dense(torch.tensor([[0.0, 2.0, 1.0], [0.0, 0.0, 0.0], [3.0, 0.0, 0.0], [0.0, 0.0, 0.0]]))
    assert counts.cell_offsets.tolist() == [0, 2, 2, 3, 3]


def test_with_values_keeps_the_places():
    counts = SparseCounts.from_dense(DENSE)
    logs = counts.with_values(counts.values.log1p())
    assert torch.equal(logs.dense(), DENSE.log1p())
    assert logs.cell_offsets.tolist() == counts.cell_offsets.tolist()


def test_minibatches_that_are_cut_know_where_their_cells_begin():
    block = make_minibatch(n_cells=9)
    dense = block.counts.dense()
    offsets = block.counts.cell_offsets.numpy()
    sizes = [4, 1, 4]
    places = torch.cat([torch.arange(size) for size in sizes])
    counts = replace(block.counts, cell_index=places[block.counts.cell_index])
    parts = cut(replace(block, counts=counts), sizes, offsets)
    for part, rows in zip(parts, dense.split(sizes), strict=True):
        assert torch.equal(part.counts.dense(), rows)
        assert torch.equal(part.counts.cell_offsets, SparseCounts.from_dense(rows).cell_offsets)
