"""Proteins as a second kind of values of a cell, beside its genes."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from scvae_ext.distributions import Mixture
from scvae_ext.likelihoods import ProteinLikelihood
from scvae_ext.minibatch import Minibatch, SparseCounts
from scvae_ext.modules.modality import Modality
from scvae_ext.types import CellIndices, CellsByProteins

__all__ = ["ProteinModality"]

MIN_LOG_STD = 0.1


class ProteinModality(Modality):
    """What the encoder sees of the proteins, and their likelihood given the decoder's activations.

    The encoder sees standardised log counts. A protein that was not measured in the batch of a cell is zero there, its
    mean, and takes no part in the likelihood, which is that of what was measured.

    Parameters
    ----------
    n_hidden
        Number of decoder units.
    measured
        For each batch, whether each protein was measured in it.
    """

    name = "proteins"
    measured: Tensor
    log_mean: Tensor
    log_std: Tensor

    def __init__(self, n_hidden: int, measured: Sequence[Sequence[bool]]) -> None:
        super().__init__()
        n_batches, self.n_proteins = len(measured), len(measured[0])
        self.n_columns = self.n_proteins
        self.likelihood = ProteinLikelihood(n_hidden, self.n_proteins, n_batches)
        self.register_buffer("measured", torch.tensor(measured, dtype=torch.bool))
        self.register_buffer("log_mean", torch.zeros(self.n_proteins))
        self.register_buffer("log_std", torch.ones(self.n_proteins))

    def initialise(self, proteins: CellsByProteins, batch: CellIndices) -> None:
        """Start from the data: moments for the encoder, two groups of each protein for the likelihood.

        Parameters
        ----------
        proteins, batch
            Counts and batch of each training cell.
        """
        proteins, batch = proteins.to(self.log_mean.device), batch.to(self.log_mean.device)
        seen = self.measured[batch]
        n_seen = seen.sum(0).clamp_min(1)
        logs = proteins.log1p() * seen
        mean = logs.sum(0) / n_seen
        variance = ((logs - mean).square() * seen).sum(0) / n_seen
        self.log_mean.copy_(mean)
        self.log_std.copy_(variance.sqrt().clamp_min(MIN_LOG_STD))
        self.likelihood.initialise(proteins, batch, self.measured)

    @override
    def encoder_columns(self, minibatch: Minibatch) -> CellsByProteins:
        standardised = (_proteins_of(minibatch).log1p() - self.log_mean) / self.log_std
        return standardised * self.measured[minibatch.batch]

    def decode(self, hidden: Float[Tensor, "*samples cells hidden"], batch: CellIndices) -> Mixture:
        """Return p(proteins given z); background is the first of the mixture.

        Parameters
        ----------
        hidden
            Activations of the decoder.
        batch
            Batch of each cell.
        """
        px: Mixture = self.likelihood(hidden, batch)
        return px

    @override
    def log_prior(self) -> Float[Tensor, ""]:
        return self.likelihood.log_prior()

    @override
    def log_prob(
        self, hidden: Float[Tensor, "*samples cells hidden"], minibatch: Minibatch
    ) -> Float[Tensor, "*samples cells"]:
        counts = SparseCounts.from_dense(_proteins_of(minibatch))
        each = self.decode(hidden, minibatch.batch).log_prob_sparse(counts)
        return (each * self.measured[minibatch.batch]).sum(-1)


def _proteins_of(minibatch: Minibatch) -> CellsByProteins:
    if minibatch.proteins is None:
        raise ValueError(
            "This minibatch has no counts of proteins, but the model is one of genes and proteins: a data module of "
            "your own has to fill Minibatch.proteins, of shape (cells, proteins)."
        )
    return minibatch.proteins
