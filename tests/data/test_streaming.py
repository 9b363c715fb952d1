import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stores import stored

from scvae_ext.data import TrainingBlocks, align, read_registry, setup_anndata
from scvae_ext.data.streaming import cells_per_window, shuffle_blocks


@settings(max_examples=100, deadline=None)
@given(n=st.integers(1, 300), share=st.floats(0.1, 1), rows=st.integers(1, 70), seed=st.integers(0, 99))
def test_blocks_stay_together_and_no_cell_is_lost(n, share, rows, seed):
    generator = np.random.default_rng(seed)
    indices = np.flatnonzero(generator.random(n) < share)
    order = shuffle_blocks(indices, rows, generator)
    np.testing.assert_array_equal(np.sort(order), indices)
    block = order // rows
    borders = np.flatnonzero(np.diff(block))
    assert len(borders) + (len(block) > 0) == len(np.unique(block))
    assert (np.diff(order)[np.diff(block) == 0] > 0).all()


def test_every_order_of_blocks_is_equally_likely():
    generator = np.random.default_rng(0)
    first = [shuffle_blocks(np.arange(12), 4, generator)[::4].tolist() for _ in range(3000)]
    orders, times = np.unique(first, axis=0, return_counts=True)
    assert len(orders) == 6
    # Chi-squared with five degrees of freedom: above 20.5 once in a thousand times.
    assert ((times - 500) ** 2 / 500).sum() < 20.5


@pytest.fixture(params=["backed", "backed dense", "zarr", "lazy h5ad"])
def source(request, adata, tmp_path):
    setup_anndata(adata, batch_key="batch")
    registry = read_registry(adata)
    with stored(adata, request.param, tmp_path) as opened:
        yield align(opened, registry)


def test_the_window_holds_many_blocks_but_little_memory(source, monkeypatch):
    assert cells_per_window(source, 64) == 16384
    assert cells_per_window(source, 1000) == 64000
    monkeypatch.setattr("scvae_ext.data.streaming._ENTRIES_PER_WINDOW", 1000)
    per_cell = source.facts.n_nonzero / 60
    assert cells_per_window(source, 64) == int(1000 / per_cell)


@pytest.mark.parametrize("window", [1, 20, 16384])
@pytest.mark.parametrize("world_size", [1, 2])
def test_every_cell_once_an_epoch_with_its_counts(source, counts, window, world_size, monkeypatch):
    monkeypatch.setattr("scvae_ext.data.streaming._CELLS_PER_WINDOW", window)
    monkeypatch.setattr("scvae_ext.data.streaming._BLOCKS_PER_WINDOW", 0)
    train = np.arange(4, 57)
    seen, numbers = [], set()
    for rank in range(world_size):
        blocks = TrainingBlocks(
            source, train, batch_size=8, minibatches_per_block=2, seed=3, rank=rank, world_size=world_size
        )
        read = list(blocks)
        assert len(read) == len(blocks)
        assert all(len(block) == 2 for block in read[:-1])
        minibatches = [minibatch for block in read for minibatch in block]
        numbers.add(len(minibatches))
        assert all(6 <= minibatch.n_cells <= 8 for minibatch in minibatches)
        seen += [
            (row.numpy(), int(batch)) for m in minibatches for row, batch in zip(m.counts.dense(), m.batch, strict=True)
        ]
    assert len(numbers) == 1
    rows, batches = np.stack([row for row, _ in seen]), np.array([batch for _, batch in seen])
    expected = counts[train]
    order, expected_order = np.lexsort(rows.T), np.lexsort(expected.T)
    np.testing.assert_array_equal(rows[order], expected[expected_order])
    np.testing.assert_array_equal(batches[order], (train % 3)[expected_order])


@pytest.mark.parametrize("source", ["backed", "lazy zarr"], indirect=True)
def test_the_order_depends_on_seed_and_epoch_alone(source):
    def order(seed, epoch):
        blocks = TrainingBlocks(source, np.arange(60), batch_size=8, seed=seed)
        blocks.set_epoch(epoch)
        return [minibatch.counts.dense().numpy().tolist() for block in blocks for minibatch in block]

    first = order(1, 0)
    np.random.seed(5)
    assert order(1, 0) == first
    assert order(1, 1) != first
    assert order(2, 0) != first


@pytest.mark.parametrize("source", ["backed"], indirect=True)
def test_cells_of_a_window_are_mixed(source, counts, monkeypatch):
    monkeypatch.setattr("scvae_ext.data.streaming._CELLS_PER_WINDOW", 60)
    together = np.zeros((60, 60))
    position = {tuple(row): cell for cell, row in enumerate(counts)}
    assert len(position) == 60
    blocks = TrainingBlocks(source, np.arange(60), batch_size=20, seed=0)
    for _ in range(60):
        for block in blocks:
            for minibatch in block:
                cells = [position[tuple(row)] for row in minibatch.counts.dense().numpy()]
                together[np.ix_(cells, cells)] += 1
    pairs = together[np.triu_indices(60, 1)]
    # Two cells share one of three minibatches of 20 with probability 19/59, in each of 60 epochs.
    p = 19 / 59
    assert pairs.mean() == pytest.approx(60 * p, rel=1e-6)
    assert pairs.var() == pytest.approx(60 * p * (1 - p), rel=0.15)
