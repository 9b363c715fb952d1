"""Which peaks of chromatin are accessible in each cell."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
import scipy.sparse as sp
import torch
from jaxtyping import Int
from torch import Tensor

from scvae_ext.types import CellValues

__all__ = ["AccessiblePeaks"]


@dataclass(frozen=True)
class AccessiblePeaks:
    """The accessible peaks of some cells, cell by cell.

    Parameters
    ----------
    peak_index
        Positions of the accessible peaks, ascending within a cell.
    offsets
        Where each cell begins among them, and their number; always on the host, so that what is cut out of them is
        known without asking the device.
    n_peaks
        Number of all peaks.
    """

    peak_index: Int[Tensor, "accessible"]
    offsets: Int[Tensor, "offsets"]
    n_peaks: int

    @classmethod
    def from_csr(cls, matrix: sp.csr_matrix) -> Self:
        """Build from a matrix of cells by peaks, of which every entry that is stored is an accessible peak.

        Parameters
        ----------
        matrix
            With sorted indices, and without explicit zeros.
        """
        indices = torch.from_numpy(matrix.indices.astype(np.int32, copy=False))
        return cls(indices, torch.from_numpy(matrix.indptr.astype(np.int64)), matrix.shape[1])

    @classmethod
    def concatenate(cls, parts: Sequence[Self]) -> Self:
        """Join cells, in the order of the parts.

        Parameters
        ----------
        parts
            Cells on one device, at least one part.
        """
        lengths = torch.cat([part.offsets.diff() for part in parts])
        return cls(torch.cat([part.peak_index for part in parts]), _offsets(lengths), parts[0].n_peaks)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, chosen: slice | Int[Tensor, "chosen"]) -> Self:
        """Return some cells: consecutive ones share the memory, others are copied.

        Parameters
        ----------
        chosen
            A range of cells, or their positions on the host.
        """
        if isinstance(chosen, slice):
            start, stop, _ = chosen.indices(len(self))
            offsets = self.offsets[start : stop + 1]
            return type(self)(self.peak_index[int(offsets[0]) : int(offsets[-1])], offsets - offsets[0], self.n_peaks)
        lengths = self.offsets.diff()[chosen]
        offsets = _offsets(lengths)
        entry = torch.repeat_interleave(self.offsets[:-1][chosen] - offsets[:-1], lengths) + torch.arange(
            int(offsets[-1])
        )
        return type(self)(self.peak_index.index_select(0, entry.to(self.peak_index.device)), offsets, self.n_peaks)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        """Return the same peaks on a device.

        Parameters
        ----------
        device, non_blocking
            As for :meth:`torch.Tensor.to`.
        """
        return type(self)(self.peak_index.to(device, non_blocking=non_blocking), self.offsets, self.n_peaks)

    @property
    def nbytes(self) -> int:
        """Memory that the peaks take, in bytes."""
        return self.peak_index.nbytes

    @cached_property
    def n_accessible(self) -> CellValues:
        """Number of accessible peaks of each cell."""
        return self.lengths.to(torch.float32)

    @cached_property
    def lengths(self) -> Int[Tensor, "cells"]:
        """Number of accessible peaks of each cell as an integer, on their device; sent there once."""
        return self.offsets.diff().to(self.peak_index.device, non_blocking=True)


def _offsets(lengths: Int[Tensor, "cells"]) -> Int[Tensor, "offsets"]:
    return torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
