"""Training and held-out cells as Lightning wants them."""

from collections.abc import Iterable

import numpy as np
from jaxtyping import Int
from lightning import LightningDataModule
from torch.utils.data import DataLoader, Dataset

from scvae_ext.data import CellSource, TrainingBlocks
from scvae_ext.minibatch import Minibatch

__all__ = ["CellDataModule"]

EVALUATION_BATCH_SIZE = 512


class CellDataModule(LightningDataModule):
    """Blocks of training minibatches, and held-out minibatches in order, each process with its own share.

    Parameters
    ----------
    source
        Where cells are read from.
    train, validation
        Positions of the cells.
    batch_size, minibatches_per_block, seed
        As for :class:`~scvae_ext.data.TrainingBlocks`.
    first_epoch
        Number of epochs trained before, so that their orders are not repeated.
    """

    def __init__(
        self,
        source: CellSource,
        train: Int[np.ndarray, "train"],
        validation: Int[np.ndarray, "validation"],
        *,
        batch_size: int,
        minibatches_per_block: int,
        seed: int,
        first_epoch: int = 0,
    ) -> None:
        super().__init__()
        self.source = source
        self.train = train
        self.validation = validation
        self.batch_size = batch_size
        self.minibatches_per_block = minibatches_per_block
        self.seed = seed
        self.first_epoch = first_epoch

    def train_dataloader(self) -> Iterable[list[Minibatch]]:
        """Return the blocks of this process."""
        rank, world_size = self._place()
        blocks = TrainingBlocks(
            self.source,
            self.train,
            batch_size=self.batch_size,
            minibatches_per_block=self.minibatches_per_block,
            seed=self.seed,
            rank=rank,
            world_size=world_size,
        )
        blocks.set_epoch(self.first_epoch)
        return DataLoader(blocks, batch_size=None)

    def val_dataloader(self) -> Iterable[Minibatch]:
        """Return this process's share of the held-out cells."""
        rank, world_size = self._place()
        share = self.validation[rank::world_size]
        return DataLoader(_Slices(self.source, share, EVALUATION_BATCH_SIZE), batch_size=None)

    def _place(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer is not None else (0, 1)


class _Slices(Dataset[Minibatch]):
    """Consecutive minibatches of the given cells."""

    def __init__(self, source: CellSource, indices: Int[np.ndarray, "cells"], batch_size: int) -> None:
        self.source = source
        self.slices = [indices[start : start + batch_size] for start in range(0, len(indices), batch_size)]

    def __len__(self) -> int:
        return len(self.slices)

    def __getitem__(self, position: int) -> Minibatch:
        return self.source.minibatch(self.slices[position])
