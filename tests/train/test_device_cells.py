import threading
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scvae_ext.data import TrainingBlocks, align, read_registry, setup_anndata, synthetic_counts
from scvae_ext.peaks import AccessiblePeaks
from scvae_ext.train import device_cells
from scvae_ext.train.device_cells import PackedCells, ReadAhead, ResidentCells, StreamedCells, load_cells

CPU = torch.device("cpu")
N_CELLS = 90


@pytest.fixture(scope="module")
def rich():
    """Cells with every kind of column, one with a single count in the middle of the others."""
    adata = synthetic_counts(N_CELLS, 25, n_batches=3, library_size=20, n_proteins=3, n_peaks=30, seed=1)
    counts = adata.X.tolil()
    counts[40] = 0
    counts[40, 7] = 3
    adata.X = counts.tocsr()
    rng = np.random.default_rng(0)
    adata.obs["donor"] = rng.choice(["a", "b", "c"], N_CELLS)
    adata.obs["age"] = rng.normal(size=N_CELLS)
    adata.obs["size"] = rng.gamma(5, 0.2, size=N_CELLS)
    setup_anndata(
        adata,
        batch_key="batch",
        labels_key="cell_type",
        size_factor_key="size",
        categorical_covariate_keys=["donor"],
        continuous_covariate_keys=["age"],
        protein_expression_obsm_key="protein",
        accessibility_obsm_key="accessibility",
    )
    return align(adata, read_registry(adata))


def _assert_same(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert (one.counts.n_cells, one.counts.n_genes) == (other.counts.n_cells, other.counts.n_genes)
        for name in ("values", "cell_index", "gene_index"):
            assert torch.equal(getattr(one.counts, name), getattr(other.counts, name)), name
            assert getattr(one.counts, name).dtype == getattr(other.counts, name).dtype
        for name in device_cells.COLUMNS:
            ours, theirs = getattr(one, name), getattr(other, name)
            assert (ours is None) == (theirs is None)
            if isinstance(ours, AccessiblePeaks):
                ours, theirs = (torch.cat([peaks.peak_index, peaks.offsets]) for peaks in (ours, theirs))
            assert ours is None or torch.equal(ours, theirs), name


@settings(max_examples=40, deadline=None)
@given(sizes=st.lists(st.integers(0, 12), min_size=1, max_size=5), seed=st.integers(0, 2**16))
def test_minibatches_are_those_of_the_host(rich, sizes, seed):
    chosen = np.random.default_rng(seed).integers(0, N_CELLS, sum(sizes))
    resident = ResidentCells(PackedCells.read(rich, np.arange(N_CELLS)), np.arange(N_CELLS))
    expected = rich.block(chosen, sizes)
    _assert_same(resident.block(chosen, sizes), expected)
    _assert_same(StreamedCells(rich, CPU).block(chosen, sizes), expected)


def test_some_cells_are_found_by_their_position_in_the_source(rich):
    kept = np.array([2, 3, 40, 41, 89])
    resident = load_cells(rich, kept, CPU, free_bytes=10**9)
    chosen = np.array([89, 2, 40, 3])
    _assert_same(resident.block(chosen, [1, 3]), rich.block(chosen, [1, 3]))


def test_cells_without_size_factors(source):
    packed = PackedCells.read(source, np.arange(30))
    assert packed.size_factor is None
    joined = PackedCells.concatenate([packed, PackedCells.read(source, np.arange(30, 50))])
    _assert_same(joined.gather(np.arange(49, -1, -1), [20, 30]), source.block(np.arange(49, -1, -1), [20, 30]))


def test_parts_join_to_the_whole(rich, monkeypatch):
    monkeypatch.setattr(device_cells, "CELLS_PER_PART", 7)
    everything = np.arange(N_CELLS)
    resident = load_cells(rich, everything, CPU, free_bytes=10**9)
    assert isinstance(resident, ResidentCells)
    whole = PackedCells.read(rich, everything)
    np.testing.assert_array_equal(resident.packed.indptr, whole.indptr)
    assert torch.equal(resident.packed.values, whole.values)
    _assert_same(resident.block(everything[::-1].copy(), [N_CELLS]), rich.block(everything[::-1].copy(), [N_CELLS]))


def test_a_count_takes_eight_bytes(rich):
    packed = PackedCells.read(rich, np.arange(N_CELLS))
    of_columns = sum(getattr(rich, name).nbytes for name in device_cells.COLUMNS)
    assert packed.n_bytes == 8 * len(packed.values) + of_columns


def test_what_does_not_fit_is_streamed_and_not_read_to_its_end(rich, monkeypatch):
    monkeypatch.setattr(device_cells, "CELLS_PER_PART", 9)
    read, parts = PackedCells.read.__func__, []
    monkeypatch.setattr(PackedCells, "read", classmethod(lambda *args: parts.append(args) or read(*args)))
    needed = read(PackedCells, rich, np.arange(N_CELLS)).n_bytes
    free = needed / device_cells.SHARE_OF_FREE_MEMORY
    assert isinstance(load_cells(rich, np.arange(N_CELLS), CPU, int(0.5 * free)), StreamedCells)
    assert len(parts) == 1
    assert isinstance(load_cells(rich, np.arange(N_CELLS), CPU, int(1.5 * free)), ResidentCells)


def test_an_epoch_on_the_device_is_that_of_the_host(rich):
    options = {"batch_size": 8, "minibatches_per_block": 3, "seed": 4}
    train = np.arange(0, N_CELLS, 2)
    for reader in (load_cells(rich, train, CPU, 10**9), StreamedCells(rich, CPU)):
        blocks = zip(TrainingBlocks(reader, train, **options), TrainingBlocks(rich, train, **options), strict=True)
        for found, expected in blocks:
            _assert_same(found, expected)


class _Slow:
    """Three blocks, and when and where each was read."""

    def __init__(self, error=None):
        self.error, self.read = error, []

    def __iter__(self):
        for block in range(3):
            self.read.append((block, threading.current_thread().name))
            if block == 1 and self.error is not None:
                raise self.error
            yield [block]


@pytest.mark.usefixtures("unchecked")
def test_the_next_block_is_read_while_the_present_one_is_used():
    slow = _Slow()
    ahead = ReadAhead(slow, 3)
    assert len(ahead) == 3
    blocks = iter(ahead)
    assert next(blocks) == [0]
    deadline = time.monotonic() + 20
    while len(slow.read) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert [block for block, _ in slow.read] == [0, 1]
    assert {thread for _, thread in slow.read}.isdisjoint({threading.current_thread().name})
    assert list(blocks) == [[1], [2]]
    assert list(ahead) == [[0], [1], [2]]


@pytest.mark.usefixtures("unchecked")
def test_errors_of_reading_reach_the_reader_and_no_thread_is_left():
    blocks = iter(ReadAhead(_Slow(OSError("disk")), 3))
    assert next(blocks) == [0]
    with pytest.raises(OSError, match="disk"):
        next(blocks)
    abandoned = iter(ReadAhead(_Slow(), 3))
    next(abandoned)
    abandoned.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("scvae_ext-read-ahead")]
