"""Cells that a getter asks for, read in minibatches, and what all getters do around them."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from scvae_ext.data import CellSource
from scvae_ext.heap import keep_freed_memory
from scvae_ext.minibatch import Minibatch
from scvae_ext.nn.precision import single_precision

__all__ = ["BATCH_SIZE", "MAX_ENTRIES", "Cells", "evaluating", "shared_noise", "target_batches"]

# Entries of (samples, cells, genes) held at once: 128 MB in single precision.
MAX_ENTRIES = 2**25
BATCH_SIZE = 512
# Where what is computed of a cell does not go by the size of its minibatch, a fifth faster for expression.
MANY = 2048


@dataclass(frozen=True)
class Cells:
    """Cells of a source, in the order asked for, read in minibatches onto a device.

    Parameters
    ----------
    source
        Where they are read from.
    positions
        Which.
    device
        Where the module is.
    batch_size
        Cells read at once; chosen by the number of genes where ``None``.
    """

    source: CellSource
    positions: Int[np.ndarray, "chosen"]
    device: torch.device
    batch_size: int | None = None

    def __iter__(self) -> Iterator[tuple[slice, Minibatch]]:
        """Iterate over rows of the result and their minibatch."""
        start, size = 0, self.batch_size or self._fitting(BATCH_SIZE)
        for minibatch in self.source.minibatches(self.positions, size):
            yield slice(start, start + minibatch.n_cells), minibatch.to(self.device)
            start += minibatch.n_cells

    def __len__(self) -> int:
        return len(self.positions)

    def many_at_once(self) -> Self:
        """Return the same cells in larger minibatches, unless the user asked for a size."""
        return replace(self, batch_size=self.batch_size or self._fitting(MANY))

    def _fitting(self, n_cells: int) -> int:
        return max(1, min(n_cells, MAX_ENTRIES // max(self.source.n_features, 1)))

    def limited(self, n_entries: int) -> Self:
        """Return the same cells in minibatches small enough that all of their values fit into memory.

        Parameters
        ----------
        n_entries
            Values of a cell that are held at once.
        """
        most = max(1, MAX_ENTRIES // max(1, n_entries))
        return replace(self, batch_size=min(self.batch_size or BATCH_SIZE, most))

    def samples_at_once(self, n_cells: int, n_samples: int) -> list[int]:
        """Split samples so that (samples, cells, genes) fits into memory.

        Parameters
        ----------
        n_cells, n_samples
            Cells of the minibatch, and samples in all.
        """
        most = max(1, min(n_samples, MAX_ENTRIES // max(1, n_cells * self.source.n_features)))
        return [len(part) for part in np.array_split(np.empty(n_samples), math.ceil(n_samples / most))]


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Switch dropout and batch statistics off, and no gradients, for a while.

    Parameters
    ----------
    module
        The module.
    """
    training = module.training
    module.eval()
    keep_freed_memory()
    try:
        with torch.inference_mode(), single_precision():
            yield
    finally:
        module.train(training)


def shared_noise(n_samples: int, n_latent: int, seed: int, device: torch.device) -> Float[Tensor, "samples 1 latent"]:
    """Return standard normal noise, the same for every cell, in pairs of opposite sign.

    Results then depend neither on the size of a minibatch nor on which other cells were asked for, and errors of odd
    order cancel within a pair. A single sample is the mean of the posterior.

    Parameters
    ----------
    n_samples, n_latent
        Numbers of samples and of latent dimensions.
    seed
        Seed of the noise.
    device
        Where to put it.
    """
    half = torch.randn(n_samples // 2, 1, n_latent, generator=torch.Generator().manual_seed(seed))
    middle = torch.zeros(n_samples % 2, 1, n_latent)
    return torch.cat([half, -half, middle]).to(device)


def target_batches(minibatch: Minibatch, batches: Sequence[int]) -> list[Tensor | None]:
    """Return the batch of each cell for each batch to decode with, or ``None`` once for the observed ones.

    Parameters
    ----------
    minibatch
        The cells.
    batches
        Batches to decode with.
    """
    if not batches:
        return [None]
    return [minibatch.batch.new_full((minibatch.n_cells,), batch) for batch in batches]
