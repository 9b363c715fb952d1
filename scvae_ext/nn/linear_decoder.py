"""A decoder without hidden layers, and the loadings with which the head of the mean reads it."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["LinearDecoder", "Loadings"]


class LinearDecoder(nn.Module):
    """Latent state and covariates side by side, for heads to read.

    It has no parameters; what heads make of it is linear in both. The weights of the head of the mean are
    :class:`Loadings`.

    Parameters
    ----------
    n_latent, n_covariates
        Number of latent dimensions, which come first, and of covariate columns.
    """

    def __init__(self, n_latent: int, n_covariates: int) -> None:
        super().__init__()
        self.n_latent = n_latent
        self.n_out = n_latent + n_covariates

    def forward(
        self, latent: Float[Tensor, "*samples cells latent"], covariates: Float[Tensor, "cells covariates"]
    ) -> Float[Tensor, "*samples cells hidden"]:
        """Return what the heads read.

        Parameters
        ----------
        latent
            Latent state of each cell, with any number of leading axes of samples.
        covariates
            Covariate columns of each cell.
        """
        covariates = covariates.expand(*latent.shape[:-1], -1)
        return torch.cat([latent, covariates], dim=-1)


class Loadings(nn.Linear):
    """Linear map that weight decay leaves alone, and that starts close to zero.

    The prior of the latent state fixes the scale of its coordinates, and so that of the loadings: what shrinks them has
    to be made up for by coordinates beyond the prior. A hidden layer would do that; here there is none.
    """

    START = 0.05

    def reset_parameters(self) -> None:
        """Draw small weights, and no bias."""
        nn.init.normal_(self.weight, std=self.START)
        nn.init.zeros_(self.bias)
