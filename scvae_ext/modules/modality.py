"""What is observed of a cell beside the counts of its genes."""

from abc import ABC, abstractmethod
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from scvae_ext.minibatch import Minibatch

__all__ = ["Modality"]


class Modality(nn.Module, ABC):
    """A kind of values: what the encoder sees of them, and their likelihood given the decoder's activations.

    Genes are not one of them: every model has them. What was not measured in the batch of a cell is zero among the
    columns of the encoder, which is their mean, and takes no part in the likelihood.

    Attributes
    ----------
    name
        Name of the values, for terms of the ELBO.
    n_columns
        Number of columns that the encoder sees.
    """

    name: ClassVar[str]
    n_columns: int

    @abstractmethod
    def encoder_columns(self, minibatch: Minibatch) -> Float[Tensor, "cells columns"]:
        """Return what the encoder sees beside the genes.

        Parameters
        ----------
        minibatch
            The cells.
        """

    @abstractmethod
    def log_prob(
        self, hidden: Float[Tensor, "*samples cells hidden"], minibatch: Minibatch
    ) -> Float[Tensor, "*samples cells"]:
        """Return the log-probability of what was measured of each cell, in nats.

        Parameters
        ----------
        hidden
            Activations of the decoder.
        minibatch
            The cells.
        """

    def log_prior(self) -> Float[Tensor, ""] | None:
        """Return the log density of priors on parameters, in nats, if there are any."""
        return None
