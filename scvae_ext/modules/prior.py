"""Priors of the latent that are learned with the rest: mixtures of Gaussians, free or tied to the encoder."""

from abc import ABC, abstractmethod
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from scvae_ext.nn import Encoder
from scvae_ext.types import CellsByGenes

__all__ = ["LearnedPrior", "MixturePrior", "PriorKind", "VampPrior"]

PriorKind = Literal["standard", "mixture", "vamp"]

# Softplus reaches zero only at minus infinity, from where no gradient leads back.
SMALLEST_PROFILE = 0.01


class LearnedPrior(nn.Module, ABC):
    r"""Mixture of diagonal Gaussians, :math:`p(z) = \sum_k \pi_k \mathcal N(z; m_k, \operatorname{diag} s_k^2)`.

    Parameters
    ----------
    n_components
        Number of Gaussians.
    n_residual
        Number of residual factors behind z, which are standard normal and independent of it.
    """

    def __init__(self, n_components: int, n_residual: int = 0) -> None:
        super().__init__()
        self.n_residual = n_residual
        self.logits = nn.Parameter(torch.zeros(n_components))

    @abstractmethod
    def components(self, encoder: Encoder) -> Normal:
        """Return the Gaussians of z, of batch shape (components, latent).

        Parameters
        ----------
        encoder
            The encoder of the model.
        """

    def forward(self, encoder: Encoder) -> MixtureSameFamily:
        """Return p(z), over residual factors as well.

        Parameters
        ----------
        encoder
            The encoder of the model.
        """
        components = Independent(self._with_residual(self.components(encoder)), 1, validate_args=False)
        return MixtureSameFamily(Categorical(logits=self.logits, validate_args=False), components, validate_args=False)

    def _with_residual(self, components: Normal) -> Normal:
        """Append the same standard normal to every component, so that it factorises out of the mixture."""
        if not self.n_residual:
            return components
        pad = nn.functional.pad
        loc, scale = pad(components.loc, (0, self.n_residual)), pad(components.scale, (0, self.n_residual), value=1.0)
        return Normal(loc, scale, validate_args=False)

    def sample(
        self, encoder: Encoder, n_samples: int, generator: torch.Generator | None = None
    ) -> Float[Tensor, "samples state"]:
        """Draw latent points, and residual factors behind them.

        Parameters
        ----------
        encoder
            The encoder of the model.
        n_samples
            Number of points.
        generator
            Source of randomness; the default generator of torch where ``None``.
        """
        components = self._with_residual(self.components(encoder))
        chosen = torch.multinomial(self.logits.softmax(0), n_samples, replacement=True, generator=generator)
        loc, scale = components.loc[chosen], components.scale[chosen]
        noise = torch.randn(loc.shape, generator=generator, device=loc.device, dtype=loc.dtype)
        return torch.addcmul(loc, scale, noise)


class MixturePrior(LearnedPrior):
    r"""Mixture whose means, standard deviations and weights are parameters.

    Components start apart, at draws of a standard normal, with standard deviations of one: each then has cells that it
    describes best and moves towards them.

    Parameters
    ----------
    n_components, n_latent
        Numbers of Gaussians and of latent dimensions.
    n_residual
        As for :class:`LearnedPrior`.
    """

    def __init__(self, n_components: int, n_latent: int, n_residual: int = 0) -> None:
        super().__init__(n_components, n_residual)
        self.mean = nn.Parameter(torch.randn(n_components, n_latent))
        self.log_scale = nn.Parameter(torch.zeros(n_components, n_latent))

    def components(self, encoder: Encoder) -> Normal:
        """Return the Gaussians; the encoder plays no part.

        Parameters
        ----------
        encoder
            The encoder of the model.
        """
        return Normal(self.mean, self.log_scale.exp(), validate_args=False)


class VampPrior(LearnedPrior):
    r"""Mixture of the posteriors of learned pseudo-cells, :math:`p(z) = \sum_k \pi_k\,q_\phi(z \mid u_k)`.

    The best prior for the ELBO is the aggregated posterior :math:`\frac1N \sum_n q(z \mid x_n)`; this is its
    approximation by K cells in place of N. A pseudo-cell is a profile of values above zero on the scale that the
    encoder reads, :math:`\log(1 + x)`, with covariates where the encoder sees them. Profiles start at real cells. They
    pass through the encoder as in evaluation, without dropout and with the running statistics of batch normalisation.

    Source: Tomczak and Welling, AISTATS 2018.

    Parameters
    ----------
    n_components, n_genes
        Numbers of pseudo-cells and of genes.
    n_covariates
        Number of covariate columns that the encoder sees.
    n_residual
        As for :class:`LearnedPrior`.
    """

    def __init__(self, n_components: int, n_genes: int, n_covariates: int = 0, n_residual: int = 0) -> None:
        super().__init__(n_components, n_residual)
        self.profile = nn.Parameter(torch.randn(n_components, n_genes))
        self.covariates = nn.Parameter(torch.zeros(n_components, n_covariates)) if n_covariates else None

    def initialise(self, x: CellsByGenes, covariates: Float[Tensor, "cells covariates"]) -> None:
        r"""Start the pseudo-cells from real ones.

        Parameters
        ----------
        x
            What the encoder reads, :math:`\log(1 + x)`, of as many cells as there are components.
        covariates
            Covariate columns of these cells that the encoder sees.
        """
        with torch.no_grad():
            start = x.clamp_min(SMALLEST_PROFILE)
            self.profile.copy_(start + torch.log(-torch.expm1(-start)))
            if self.covariates is not None:
                self.covariates.copy_(covariates)

    def components(self, encoder: Encoder) -> Normal:
        """Return the posteriors of the pseudo-cells.

        Parameters
        ----------
        encoder
            The encoder of the model.
        """
        profile = nn.functional.softplus(self.profile)
        covariates = profile.new_empty(len(profile), 0) if self.covariates is None else self.covariates
        training = encoder.training
        encoder.eval()
        try:
            posterior: Normal = encoder(profile, covariates)
        finally:
            encoder.train(training)
        if not self.n_residual:
            return posterior
        loc, scale = posterior.loc[:, : -self.n_residual], posterior.scale[:, : -self.n_residual]
        return Normal(loc, scale, validate_args=False)
