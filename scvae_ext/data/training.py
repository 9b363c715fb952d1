"""Which cells a model trains on, and in which order it sees them."""

import math
from collections.abc import Iterator

import numpy as np
from jaxtyping import Int
from torch.utils.data import IterableDataset, get_worker_info

from scvae_ext.data.loading import BlockReader, CellSource
from scvae_ext.data.streaming import cells_per_window, shuffle_blocks
from scvae_ext.minibatch import Minibatch

__all__ = ["TrainingBlocks", "split_indices"]


def split_indices(
    n_cells: int,
    train_size: float = 0.9,
    validation_size: float | None = None,
    shuffle: bool = True,
    seed: int = 0,
) -> tuple[Int[np.ndarray, "train"], Int[np.ndarray, "validation"], Int[np.ndarray, "test"]]:
    """Split cells into training, validation and test sets.

    Sizes are rounded to the nearest number of cells; a set whose share is not zero holds at least one cell.

    Parameters
    ----------
    n_cells
        Number of cells.
    train_size
        Share of the cells to train on, above 0 and at most 1.
    validation_size
        Share of the cells to validate on; ``None`` takes all that are not trained on.
    shuffle
        Whether cells are drawn at random; otherwise the first are trained on, the next validated on.
    seed
        Seed of the draw.

    Returns
    -------
    tuple of numpy.ndarray
        Positions of the training, validation and test cells, ascending.

    Raises
    ------
    ValueError
        If the shares are impossible, or there are too few cells for them.
    """
    if not 0 < train_size <= 1:
        raise ValueError(f"train_size must be above 0 and at most 1, but is {train_size}.")
    if validation_size is not None and not (validation_size >= 0 and train_size + validation_size <= 1 + 1e-9):
        raise ValueError(
            f"validation_size must lie between 0 and 1 - train_size = {1 - train_size:g}, but is {validation_size}."
        )
    n_sets = 1 + (train_size < 1 if validation_size is None else validation_size > 0)
    if n_cells < n_sets:
        raise ValueError(
            f"{n_cells} cells cannot be split into {n_sets} sets that are not empty. Pass train_size=1 to train on all."
        )
    n_train = min(max(1, round(train_size * n_cells)), n_cells - n_sets + 1)
    n_rest = n_cells - n_train
    n_validation = n_rest if validation_size is None else min(round(validation_size * n_cells), n_rest)
    n_validation = max(n_validation, n_sets - 1)
    order = np.random.default_rng(seed).permutation(n_cells) if shuffle else np.arange(n_cells)
    train, validation, test = np.split(order, [n_train, n_train + n_validation])
    return np.sort(train), np.sort(validation), np.sort(test)


class TrainingBlocks(IterableDataset[list[Minibatch]]):
    """Training cells in a new order each epoch, as blocks of minibatches that are read at once.

    Each iteration is one epoch, which holds every cell once. The cells are spread evenly: minibatches differ in size
    by at most one cell, so that none is left with a single one. The order depends on ``seed`` and ``epoch`` alone; no
    global random state is used.

    Counts in memory are shuffled in full. Those on disk are shuffled in two steps, so that reading stays in order:
    blocks of consecutive cells come in random order (:func:`~scvae_ext.data.streaming.shuffle_blocks`), and the cells
    of many blocks, read together into a buffer, are shuffled before they are cut into minibatches. The page on data
    larger than memory says how random that is. Pass it to ``DataLoader(blocks, batch_size=None)``, or iterate over it.

    Parameters
    ----------
    source
        Where to read.
    indices
        Positions of the training cells.
    batch_size
        Most cells in a minibatch, exceeded by one or two where a cell would be left alone.
    minibatches_per_block
        Most minibatches in a block.
    seed
        Seed of the order.
    rank, world_size
        Number of this process, and how many there are. Each reads a share of its own, of equally many minibatches.

    Attributes
    ----------
    epoch
        The epoch that the next iteration gives, counted up by each one.

    Raises
    ------
    ValueError
        If a size is not positive, or there are fewer cells than processes.
    """

    def __init__(
        self,
        source: BlockReader,
        indices: Int[np.ndarray, "train"],
        *,
        batch_size: int = 128,
        minibatches_per_block: int = 16,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        super().__init__()
        for name, value in {"batch_size": batch_size, "minibatches_per_block": minibatches_per_block}.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, but is {value}.")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must lie between 0 and world_size - 1 = {world_size - 1}, but is {rank}.")
        if len(indices) < world_size:
            raise ValueError(f"{len(indices)} training cells cannot be spread over {world_size} processes.")
        self.source = source
        self.indices = np.asarray(indices, dtype=np.int64)
        self.minibatches_per_block = minibatches_per_block
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0
        self.n_minibatches = math.ceil(len(indices) / (batch_size * world_size))
        if batch_size > 1:
            self.n_minibatches = max(1, min(self.n_minibatches, len(indices) // (2 * world_size)))

    def __len__(self) -> int:
        """Return the number of blocks in an epoch of this process."""
        return math.ceil(self.n_minibatches / self.minibatches_per_block)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration gives.

        Parameters
        ----------
        epoch
            Number of the epoch, from 0.
        """
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[Minibatch]]:
        """Iterate over one epoch."""
        if get_worker_info() is not None:
            raise RuntimeError("TrainingBlocks reads in the process that trains. Pass num_workers=0 to the DataLoader.")
        epoch, self.epoch = self.epoch, self.epoch + 1
        return self._blocks(epoch)

    def _blocks(self, epoch: int) -> Iterator[list[Minibatch]]:
        if isinstance(self.source, CellSource) and self.source.rows_per_block is not None:
            yield from self._streamed_blocks(self.source, self.source.rows_per_block, epoch)
            return
        order = np.random.default_rng([self.seed, epoch]).permutation(self.indices)
        minibatches = np.array_split(order, self.n_minibatches * self.world_size)[self.rank :: self.world_size]
        for start in range(0, self.n_minibatches, self.minibatches_per_block):
            block = minibatches[start : start + self.minibatches_per_block]
            yield self.source.block(np.concatenate(block), [len(minibatch) for minibatch in block])

    def _streamed_blocks(self, source: CellSource, rows_per_block: int, epoch: int) -> Iterator[list[Minibatch]]:
        order = shuffle_blocks(self.indices, rows_per_block, np.random.default_rng([self.seed, epoch]))
        share = slice(self.rank * self.n_minibatches, (self.rank + 1) * self.n_minibatches)
        minibatches = np.array_split(order, self.n_minibatches * self.world_size)[share]
        generator = np.random.default_rng([self.seed, epoch, 1 + self.rank])
        # Whole blocks of minibatches, so that only the last one of an epoch may be smaller.
        per_block = len(minibatches[0]) * self.minibatches_per_block
        per_window = max(1, cells_per_window(source, rows_per_block) // per_block) * self.minibatches_per_block
        for first in range(0, self.n_minibatches, per_window):
            sizes = [len(minibatch) for minibatch in minibatches[first : first + per_window]]
            cells = np.sort(np.concatenate(minibatches[first : first + per_window]))
            window = source.window(cells)
            shuffled = np.split(generator.permutation(len(cells)), np.cumsum(sizes)[:-1])
            for start in range(0, len(sizes), self.minibatches_per_block):
                stop = start + self.minibatches_per_block
                yield window.block(np.concatenate(shuffled[start:stop]), sizes[start:stop])
