"""Training and held-out cells as Lightning wants them."""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from lightning import LightningDataModule
from torch.utils.data import DataLoader, Dataset

from scvae_ext.data import BlockReader, CellSource, TrainingBlocks
from scvae_ext.minibatch import Minibatch
from scvae_ext.train.device_cells import ReadAhead, ResidentCells, StreamedCells, load_cells

__all__ = ["CellDataModule"]

EVALUATION_BATCH_SIZE = 512


class CellDataModule(LightningDataModule):
    """Blocks of training minibatches, and held-out minibatches in order, each process with its own share.

    Each epoch spreads the cells over the processes anew: every cell goes to one of them, and all make equally many
    updates. On a CUDA device the counts are put there once where they fit, and minibatches are gathered on it;
    otherwise a thread reads the next block, and sends counts that are in memory, while the device works.

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
        self._reader: BlockReader | None = None

    def train_dataloader(self) -> Iterable[list[Minibatch]]:
        """Return the blocks of this process."""
        rank, world_size = self._place()
        reader = self.reader()
        blocks = TrainingBlocks(
            reader,
            self.train,
            batch_size=self.batch_size,
            minibatches_per_block=self.minibatches_per_block,
            seed=self.seed,
            rank=rank,
            world_size=world_size,
        )
        blocks.set_epoch(self.first_epoch)
        on_host = self._device().type == "cuda" and not isinstance(reader, ResidentCells)
        return DataLoader(ReadAhead(blocks, len(blocks)) if on_host else blocks, batch_size=None)

    def val_dataloader(self) -> Iterable[Minibatch]:
        """Return this process's share of the held-out cells, in as many minibatches as the other processes have."""
        rank, world_size = self._place()
        n_minibatches = math.ceil(math.ceil(len(self.validation) / world_size) / EVALUATION_BATCH_SIZE)
        share = self.validation[rank::world_size]
        return DataLoader(_Slices(self.reader(), share, EVALUATION_BATCH_SIZE, n_minibatches), batch_size=None)

    def reader(self) -> BlockReader:
        """Return what minibatches are read from, on the device that trains if that is a GPU of CUDA."""
        device = self._device()
        if self._reader is None:
            self._reader = self.source
            if device.type == "cuda":
                cells = np.union1d(self.train, self.validation)
                self._reader = load_cells(self.source, cells, device, torch.cuda.mem_get_info(device)[0])
        return self._reader

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Move what is not on the device yet.

        Parameters
        ----------
        batch, device, dataloader_idx
            As for :meth:`lightning.LightningDataModule.transfer_batch_to_device`.
        """
        if isinstance(self._reader, ResidentCells | StreamedCells):
            return batch
        return super().transfer_batch_to_device(batch, device, dataloader_idx)

    def teardown(self, stage: str) -> None:
        """Free the memory of the device.

        Parameters
        ----------
        stage
            What has ended.
        """
        self._reader = None

    def _device(self) -> torch.device:
        return torch.device("cpu") if self.trainer is None else self.trainer.strategy.root_device

    def _place(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer is not None else (0, 1)


class _Slices(Dataset[Minibatch]):
    """Consecutive minibatches of the given cells; the last may be empty, where other processes have one more cell."""

    def __init__(
        self, reader: BlockReader, indices: Int[np.ndarray, "cells"], batch_size: int, n_minibatches: int
    ) -> None:
        self.reader = reader
        self.slices = [indices[start * batch_size : (start + 1) * batch_size] for start in range(n_minibatches)]

    def __len__(self) -> int:
        return len(self.slices)

    def __getitem__(self, position: int) -> Minibatch:
        chosen = self.slices[position]
        return self.reader.block(chosen, [len(chosen)])[0]
