import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from scvae_ext.data import TrainingBlocks, align, read_registry, setup_anndata, split_indices


class Recorder:
    """Takes the place of a source, and gives positions where a source gives cells."""

    def block(self, indices, batch_sizes):
        return np.split(indices, np.cumsum(batch_sizes)[:-1])


@pytest.fixture
def blocks(monkeypatch):
    monkeypatch.setattr(TrainingBlocks, "__init__", TrainingBlocks.__init__.__wrapped__)
    monkeypatch.setattr(TrainingBlocks, "_blocks", TrainingBlocks._blocks.__wrapped__)
    return TrainingBlocks


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    n=st.integers(1, 400),
    batch_size=st.integers(1, 50),
    per_block=st.integers(1, 6),
    world_size=st.integers(1, 4),
    seed=st.integers(0, 2**32),
    epoch=st.integers(0, 1000),
)
def test_every_cell_once_an_epoch(blocks, n, batch_size, per_block, world_size, seed, epoch):
    cells = 3 * np.arange(n) + 1
    if n < world_size:
        with pytest.raises(ValueError, match=f"{n} training cells cannot be spread over {world_size} processes"):
            blocks(Recorder(), cells, world_size=world_size)
        return
    seen, lengths = [], set()
    for rank in range(world_size):
        shard = blocks(
            Recorder(), cells, batch_size=batch_size, minibatches_per_block=per_block, seed=seed, rank=rank,
            world_size=world_size,
        )  # fmt: skip
        shard.set_epoch(epoch)
        read = list(shard)
        assert len(read) == len(shard)
        assert all(len(block) == per_block for block in read[:-1])
        assert 1 <= len(read[-1]) <= per_block
        minibatches = [minibatch for block in read for minibatch in block]
        assert len(minibatches) == shard.n_minibatches
        lengths.add(len(minibatches))
        seen += minibatches
    assert len(lengths) == 1
    np.testing.assert_array_equal(np.sort(np.concatenate(seen)), cells)
    sizes = [len(minibatch) for minibatch in seen]
    assert max(sizes) - min(sizes) <= 1
    assert max(sizes) <= batch_size + (2 if batch_size > 1 else 0)
    if batch_size > 1 and n >= 2 * world_size:
        assert min(sizes) >= 2


def order_of(blocks, epoch, **kwargs):
    blocks = blocks(Recorder(), np.arange(200), batch_size=16, **kwargs)
    blocks.set_epoch(epoch)
    return np.concatenate([minibatch for block in blocks for minibatch in block]).tolist()


def test_the_order_depends_on_seed_and_epoch_alone(blocks):
    first = order_of(blocks, 0, seed=3)
    np.random.seed(5)
    torch.manual_seed(5)
    assert order_of(blocks, 0, seed=3) == first
    assert order_of(blocks, 0, seed=3, minibatches_per_block=5) == first
    assert order_of(blocks, 1, seed=3) != first
    assert order_of(blocks, 0, seed=4) != first
    assert first != sorted(first)


def test_counts_in_memory_are_shuffled_in_full(real_blocks, counts):
    real_blocks.set_epoch(4)
    order = np.random.default_rng([0, 4]).permutation(np.arange(10, 60))
    rows = [minibatch.counts.dense() for block in real_blocks for minibatch in block]
    for minibatch, expected in zip(rows, np.array_split(order, 7), strict=True):
        np.testing.assert_array_equal(minibatch, counts[expected])


def test_no_global_random_state_is_used(blocks):
    numpy_state, torch_state = np.random.get_state()[1].copy(), torch.get_rng_state()
    order_of(blocks, 0)
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_state)
    assert torch.equal(torch.get_rng_state(), torch_state)


def test_each_iteration_is_the_next_epoch(blocks):
    counted = blocks(Recorder(), np.arange(200), batch_size=16, seed=2)
    epochs = [np.concatenate([m for block in counted for m in block]).tolist() for _ in range(3)]
    assert counted.epoch == 3
    assert epochs == [order_of(blocks, epoch, seed=2) for epoch in range(3)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, but is 0"),
        ({"minibatches_per_block": 0}, "minibatches_per_block must be at least 1, but is 0"),
        ({"rank": 2, "world_size": 2}, "rank must lie between 0 and world_size - 1 = 1, but is 2"),
    ],
)
def test_impossible_arguments(blocks, arguments, message):
    with pytest.raises(ValueError, match=message):
        blocks(Recorder(), np.arange(10), **arguments)


@pytest.fixture
def real_blocks(adata):
    setup_anndata(adata)
    return TrainingBlocks(align(adata, read_registry(adata)), np.arange(10, 60), batch_size=8, minibatches_per_block=3)


def test_with_a_data_loader(real_blocks, counts):
    loader = DataLoader(real_blocks, batch_size=None)
    assert len(loader) == 3
    read = list(loader)
    assert [len(block) for block in read] == [3, 3, 1]
    rows = np.vstack([minibatch.counts.dense() for block in read for minibatch in block])
    assert sorted(map(tuple, rows)) == sorted(map(tuple, counts[10:]))


def test_worker_processes_are_refused(real_blocks):
    with pytest.raises(RuntimeError, match="Pass num_workers=0"):
        next(iter(DataLoader(real_blocks, batch_size=None, num_workers=1)))


@pytest.mark.parametrize(
    ("arguments", "sizes"),
    [
        ({}, (90, 10, 0)),
        ({"train_size": 1.0}, (100, 0, 0)),
        ({"train_size": 0.7, "validation_size": 0.1}, (70, 10, 20)),
        ({"train_size": 0.7, "validation_size": 0.3}, (70, 30, 0)),
        ({"train_size": 0.5, "validation_size": 0.0}, (50, 0, 50)),
        ({"train_size": 0.001}, (1, 99, 0)),
        ({"train_size": 0.999}, (99, 1, 0)),
        ({"train_size": 0.5, "validation_size": 0.0001}, (50, 1, 49)),
    ],
)
def test_sizes_of_a_split(arguments, sizes):
    split = split_indices(100, **arguments)
    assert tuple(len(part) for part in split) == sizes
    np.testing.assert_array_equal(np.sort(np.concatenate(split)), np.arange(100))
    for part in split:
        assert part.dtype == np.int64
        assert (np.diff(part) > 0).all()


@settings(max_examples=100, deadline=None)
@given(n=st.integers(3, 500), train=st.floats(0.01, 0.99), share=st.floats(0.01, 1), seed=st.integers(0, 99))
def test_no_set_that_was_asked_for_is_empty(n, train, share, seed):
    # Types of what is returned are checked above; here, each new length would be a check of its own.
    split = split_indices.__wrapped__(n, train, share * (1 - train), seed=seed)
    np.testing.assert_array_equal(np.sort(np.concatenate(split)), np.arange(n))
    assert len(split[0]) >= 1
    assert len(split[1]) >= 1


def test_a_split_depends_on_the_seed_alone():
    first = split_indices(100, seed=1)[1].tolist()
    np.random.seed(7)
    assert split_indices(100, seed=1)[1].tolist() == first
    assert split_indices(100, seed=2)[1].tolist() != first


def test_without_shuffling_cells_keep_their_order():
    train, validation, test = split_indices(10, 0.5, 0.3, shuffle=False)
    assert (train.tolist(), validation.tolist(), test.tolist()) == ([0, 1, 2, 3, 4], [5, 6, 7], [8, 9])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"train_size": 0.0}, "train_size must be above 0 and at most 1, but is 0.0"),
        ({"train_size": 1.2}, "train_size must be above 0 and at most 1, but is 1.2"),
        ({"train_size": float("nan")}, "train_size must be above 0 and at most 1, but is nan"),
        ({"train_size": 0.8, "validation_size": 0.3}, "between 0 and 1 - train_size = 0.2, but is 0.3"),
        ({"validation_size": -0.1}, "between 0 and 1 - train_size = 0.1, but is -0.1"),
    ],
)
def test_impossible_shares(arguments, message):
    with pytest.raises(ValueError, match=message):
        split_indices(10, **arguments)


def test_too_few_cells():
    assert [len(part) for part in split_indices(1, train_size=1.0)] == [1, 0, 0]
    with pytest.raises(ValueError, match=r"1 cells cannot be split into 2 sets.*train_size=1"):
        split_indices(1)
