"""Accessible peaks of chromatin as a second kind of values of a cell, beside its genes."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import batch_norm
from typing_extensions import override

from scvae_ext.likelihoods import AccessibilityLikelihood
from scvae_ext.minibatch import Minibatch, SparseCounts
from scvae_ext.modules.modality import Modality
from scvae_ext.nn import SparseLinear
from scvae_ext.peaks import AccessiblePeaks
from scvae_ext.types import CellValues

__all__ = ["AccessibilityModality"]


class AccessibilityModality(Modality):
    r"""What the encoder sees of the peaks, and their likelihood given the decoder's activations.

    The encoder sees a linear map of the accessible peaks, divided by their number, and standardised:
    :math:`\operatorname{BatchNorm}(\sum_{p:\,a_p = 1} w_p / d)`.

    Parameters
    ----------
    n_hidden, n_columns
        Numbers of inputs from the decoder, and of columns that the encoder sees.
    n_peaks
        Number of peaks.
    measured
        For each batch, whether accessibility was measured in it.
    """

    name = "accessibility"
    measured: Tensor
    mean_accessible: Tensor

    def __init__(self, n_hidden: int, n_columns: int, n_peaks: int, measured: Sequence[bool]) -> None:
        super().__init__()
        self.n_peaks, self.n_columns = n_peaks, n_columns
        self.projection = SparseLinear(n_peaks, n_columns, bias=False)
        self.standardise = nn.BatchNorm1d(n_columns, affine=False)
        self.likelihood = AccessibilityLikelihood(n_hidden, n_peaks)
        self.register_buffer("measured", torch.tensor(measured, dtype=torch.bool))
        # Known without asking the device.
        self._all_measured = all(measured)
        self.register_buffer("mean_accessible", torch.ones(()))

    def initialise(self, peaks: AccessiblePeaks, batch: Tensor) -> None:
        """Start from how often each peak is accessible.

        Parameters
        ----------
        peaks, batch
            Accessible peaks and batch of each training cell.
        """
        device = self.mean_accessible.device
        n_measured = self.measured.cpu()[batch.cpu()].sum().clamp_min(1)
        self.mean_accessible.copy_(peaks.n_accessible.sum() / n_measured)
        share = torch.bincount(peaks.peak_index, minlength=self.n_peaks) / n_measured
        # Of those that no training cell has, as if half a cell had.
        self.likelihood.initialise(share.clamp_min(0.5 / float(n_measured)).to(device))

    @override
    def encoder_columns(self, minibatch: Minibatch) -> Float[Tensor, "cells columns"]:
        peaks, seen = _peaks_of(minibatch), self.measured[minibatch.batch]
        ones = SparseCounts.of_peaks(peaks)
        ones = ones.with_values(ones.values.to(self.projection.weight.dtype))
        # A cell without a peak has zeros, and is not looked at. The root keeps sums as large as single weights.
        scale = self.mean_accessible.sqrt() / peaks.n_accessible.clamp_min(1)
        projected = self.projection(ones) * scale.unsqueeze(-1)
        if self._all_measured:
            return self._standardised(projected)
        columns = torch.zeros_like(projected)
        columns[seen] = self._standardised(projected[seen])
        return columns

    def _standardised(self, values: Float[Tensor, "measured columns"]) -> Float[Tensor, "measured columns"]:
        if self.training and len(values) < 2:  # which no moments can be taken of
            layer = self.standardise
            return batch_norm(values, layer.running_mean, layer.running_var, eps=layer.eps)
        standardised: Tensor = self.standardise(values)
        return standardised

    def depth(self, minibatch: Minibatch) -> CellValues:
        """Return the number of accessible peaks of each cell over its mean; one where they were not measured.

        Parameters
        ----------
        minibatch
            The cells.
        """
        depth = _peaks_of(minibatch).n_accessible / self.mean_accessible
        return torch.where(self.measured[minibatch.batch], depth, 1.0)

    @override
    def log_prob(
        self, hidden: Float[Tensor, "*samples cells hidden"], minibatch: Minibatch
    ) -> Float[Tensor, "*samples cells"]:
        seen: Bool[Tensor, cells] = self.measured[minibatch.batch]
        of_peaks: Tensor = self.likelihood.log_prob(hidden, self.depth(minibatch), _peaks_of(minibatch))
        return torch.where(seen, of_peaks, 0.0)


def _peaks_of(minibatch: Minibatch) -> AccessiblePeaks:
    if minibatch.peaks is None:
        raise ValueError(
            "This minibatch has no accessible peaks, but the model is one of genes and chromatin: a data module of "
            "your own has to fill Minibatch.peaks."
        )
    return minibatch.peaks
