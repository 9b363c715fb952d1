"""The bounds on the evidence that a VAE can be trained on, each a view of the VAE with an objective of its own."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Normal

from scvae_ext.minibatch import Minibatch
from scvae_ext.modules.dependence import batch_dependence
from scvae_ext.modules.elbo import divergences, elbo, kl_of_dimensions, log_ratio
from scvae_ext.modules.outputs import Elbo, Objective, Posterior, VAEOutput
from scvae_ext.modules.trainable import Trainable
from scvae_ext.modules.vae import VAE
from scvae_ext.types import CellsByLatent, CellValues

__all__ = [
    "BatchPenalised",
    "Bound",
    "FreeBitsElbo",
    "ImportanceWeighted",
    "ImportanceWeightedBound",
    "SampledElbo",
    "held_fixed",
    "trainable_bound",
]

Bound = Literal["elbo", "iwae"]


@dataclass(frozen=True)
class FreeBitsElbo(Objective):
    r"""ELBO in which each latent dimension has :math:`\lambda` nats of divergence for free.

    .. math::
        \mathbb E_q[\log p(x \mid z)] - \beta \sum_d \max\{\lambda, \tfrac1B \sum_{n=1}^B
        \operatorname{KL}(q(z_d \mid x_n) \,\|\, p(z_d))\}

    The mean of the score over the B cells of a minibatch is that objective; its terms are those of the ELBO itself.
    Source: Kingma, Salimans, Jozefowicz, Chen, Sutskever and Welling, NeurIPS 2016, equation 15.

    Parameters
    ----------
    elbo
        The bound and its terms.
    kl_of_dimensions
        Divergence of each latent dimension from its prior.
    free_bits
        :math:`\lambda`, in nats for each latent dimension.
    """

    elbo: Elbo
    kl_of_dimensions: CellsByLatent
    free_bits: float

    def score(self, kl_weight: float = 1.0, penalty_share: float = 1.0) -> CellValues:
        """Return the score of each cell; higher is better.

        Parameters
        ----------
        kl_weight
            Weight of the divergence beyond what is free.
        penalty_share
            Without a meaning here.
        """
        is_paid = self.kl_of_dimensions.mean(0, keepdim=True) > self.free_bits
        kl = torch.where(is_paid, self.kl_of_dimensions, self.free_bits).sum(-1)
        score = self.elbo.reconstruction - kl_weight * kl
        return score if self.elbo.kl_library is None else score - self.elbo.kl_library

    def terms(self) -> dict[str, Float[Tensor, "*samples cells"]]:
        """Return the ELBO and its terms, without anything for free."""
        return self.elbo.terms()


@dataclass(frozen=True)
class BatchPenalised(Objective):
    r"""A bound less what the latent knows about the batch, :math:`\mathcal L - \lambda\,d(z, s)`.

    The dependence is one figure for all cells of the minibatch.

    Parameters
    ----------
    bound
        The bound of each cell, in nats.
    dependence
        Normalised dependence :math:`d(z, s)`, see :func:`~scvae_ext.modules.dependence.batch_dependence`.
    weight
        :math:`\lambda`, in nats per cell: what a latent that tells all batches apart would cost.
    """

    bound: Objective
    dependence: Float[Tensor, ""]
    weight: float

    def score(self, kl_weight: float = 1.0, penalty_share: float = 1.0) -> CellValues:
        """Return the penalised score of each cell; higher is better.

        Parameters
        ----------
        kl_weight
            Weight of the divergence from the prior.
        penalty_share
            Share of the penalty that counts.
        """
        return self.bound.score(kl_weight, penalty_share) - penalty_share * self.weight * self.dependence

    def terms(self) -> dict[str, Float[Tensor, "*samples cells"]]:
        """Return the penalised ELBO, the ELBO and its terms, and the dependence."""
        terms = self.bound.terms()
        dependence = self.dependence.expand_as(terms["elbo"])
        return {"penalised_elbo": terms["elbo"] - self.weight * dependence, **terms, "batch_dependence": dependence}


@dataclass(frozen=True)
class ImportanceWeighted(Objective):
    r"""Importance-weighted bound of each cell with the doubly reparameterised gradient.

    .. math::
        \mathcal L_K = \log \frac1K \sum_{k=1}^K w_k, \qquad
        w_k = p(x \mid z_k) \left(\frac{p(z_k)}{q(z_k \mid x)}\right)^{\beta}, \qquad z_k \sim q(z \mid x)

    With :math:`\tilde w_k = w_k / \sum_j w_j`, parameters of decoder and prior get the ordinary gradient
    :math:`\sum_k \tilde w_k \nabla \log w_k`, and those of the posterior

    .. math::
        \sum_k \{(1 - \beta)\,\tilde w_k + \beta\,\tilde w_k^2\}
        \frac{\partial \log w_k}{\partial z_k} \frac{\partial z_k}{\partial \phi},

    which has the same mean as the ordinary one and less noise. The weight :math:`\beta` is one but for warm-up; the
    library size, where it is latent, always has the weight one. Sources: Burda, Grosse and Salakhutdinov, ICLR 2016;
    Tucker, Lawson, Gu and Maddison, ICLR 2019.

    Parameters
    ----------
    reconstruction
        :math:`\log p(x \mid z_k)`.
    log_ratio, log_ratio_library
        Log density of the prior less that of the posterior, the latter with its parameters held fixed; ``None`` where
        the library size is observed.
    latent, log_library
        The samples, through which the gradient reaches the posterior.
    elbo
        ELBO of the same samples, for the history.
    """

    reconstruction: Float[Tensor, "samples cells"]
    log_ratio: Float[Tensor, "samples cells"]
    log_ratio_library: Float[Tensor, "samples cells"] | None
    latent: Float[Tensor, "samples cells latent"]
    log_library: Float[Tensor, "samples cells"] | None
    elbo: Elbo

    def score(self, kl_weight: float = 1.0, penalty_share: float = 1.0) -> CellValues:
        r"""Return the bound of each cell; where gradients are recorded, to be called once.

        Parameters
        ----------
        kl_weight
            :math:`\beta`.
        penalty_share
            Without a meaning here.
        """
        log_weights = self.log_weights(kl_weight)
        if self.latent.requires_grad:
            share = log_weights.detach().softmax(0)
            factor = torch.lerp(torch.ones_like(share), share, kl_weight).unsqueeze(-1)
            self.latent.register_hook(lambda gradient: gradient * factor)
            if self.log_library is not None:
                self.log_library.register_hook(lambda gradient: gradient * share)
        return log_weights.logsumexp(0) - math.log(len(log_weights))

    def log_weights(self, kl_weight: float = 1.0) -> Float[Tensor, "samples cells"]:
        r"""Return :math:`\log w_k`.

        Parameters
        ----------
        kl_weight
            :math:`\beta`.
        """
        weights = self.reconstruction + kl_weight * self.log_ratio
        return weights if self.log_ratio_library is None else weights + self.log_ratio_library

    def terms(self) -> dict[str, CellValues]:
        """Return the bound with full weights, the ELBO of the same samples, and its terms."""
        weights = self.log_weights()
        return {"iwae": weights.logsumexp(0) - math.log(len(weights)), **self.elbo.terms()}


class SampledElbo(Trainable):
    """A VAE to be trained on its ELBO at the mean of several samples, with free bits, or with a penalty on batches.

    Parameters
    ----------
    vae
        The VAE.
    n_samples
        Samples of each cell.
    free_bits
        Nats of divergence that each latent dimension has for free.
    batch_penalty
        Nats per cell that full dependence of the latent on the batch costs.
    """

    monitor = "elbo"
    monitor_mode = "max"

    def __init__(self, vae: VAE, n_samples: int, free_bits: float, batch_penalty: float = 0.0) -> None:
        super().__init__()
        if free_bits and vae.prior is not None:
            raise ValueError(
                f"free_bits={free_bits!r} counts the divergence of each latent dimension from its prior, and a learned "
                'prior has no divergence by dimension: leave free_bits at 0, or build the model with prior="standard".'
            )
        self.vae = vae
        self.n_samples = n_samples
        self.free_bits = free_bits
        self.batch_penalty = batch_penalty
        if batch_penalty:
            # The ELBO would take the weights that have been penalised least for the best.
            self.monitor = "penalised_elbo"

    def log_prior(self) -> Float[Tensor, ""] | None:
        """Return the log density of the priors on the parameters of the VAE."""
        return self.vae.log_prior()

    def objective(self, minibatch: Minibatch, generator: torch.Generator | None = None) -> Objective:
        """Return the ELBO of each cell.

        Parameters
        ----------
        minibatch, generator
            As for :meth:`Trainable.objective`.
        """
        vae = self.vae
        output = vae(minibatch, self.n_samples, generator)
        bound = _mean_of_samples(elbo(output, vae.likelihood, minibatch, vae.library_prior(minibatch), vae.pz()))
        objective: Objective = bound
        if self.free_bits:
            objective = FreeBitsElbo(bound, kl_of_dimensions(output.posterior.qz), self.free_bits)
        if self.batch_penalty:
            # Of the mean, which is what is handed out: noise of the posterior could hide the batch from samples.
            dependence = batch_dependence(vae.to_latent(output.posterior.qz.loc), minibatch.batch)
            objective = BatchPenalised(objective, dependence, self.batch_penalty)
        return objective


class ImportanceWeightedBound(Trainable):
    """A VAE to be trained on its importance-weighted bound.

    Parameters
    ----------
    vae
        The VAE.
    n_samples
        K, samples of each cell.
    """

    monitor = "iwae"
    monitor_mode = "max"

    def __init__(self, vae: VAE, n_samples: int) -> None:
        super().__init__()
        self.vae = vae
        self.n_samples = n_samples

    def log_prior(self) -> Float[Tensor, ""] | None:
        """Return the log density of the priors on the parameters of the VAE."""
        return self.vae.log_prior()

    def objective(self, minibatch: Minibatch, generator: torch.Generator | None = None) -> ImportanceWeighted:
        """Return the bound of each cell.

        Parameters
        ----------
        minibatch, generator
            As for :meth:`Trainable.objective`.
        """
        vae = self.vae
        output = vae(minibatch, self.n_samples, generator)
        library_prior, pz = vae.library_prior(minibatch), vae.pz()
        reconstruction = vae.likelihood.reconstruction(output.px, minibatch)
        held = held_fixed(output)
        log_ratio_library = None
        if held.log_library is not None and held.posterior.log_library is not None and library_prior is not None:
            q_library = held.posterior.log_library
            log_ratio_library = library_prior.log_prob(held.log_library) - q_library.log_prob(held.log_library)
        with torch.no_grad():
            bound = _mean_of_samples(Elbo(reconstruction.detach(), *divergences(output, library_prior, pz)))
        return ImportanceWeighted(
            reconstruction, log_ratio(held, pz), log_ratio_library, output.latent, output.log_library, bound
        )


def trainable_bound(
    vae: VAE, objective: Bound, n_samples: int, free_bits: float, batch_penalty: float = 0.0
) -> Trainable:
    """Return what to train so that a VAE reaches its best by the given bound.

    Parameters
    ----------
    vae
        The VAE, whose parameters are trained in place.
    objective
        ``"elbo"`` or ``"iwae"``.
    n_samples
        Samples of each cell.
    free_bits
        Nats of divergence that each latent dimension has for free.
    batch_penalty
        Nats per cell that full dependence of the latent on the batch costs.

    Raises
    ------
    ValueError
        If the prior does not allow free bits.
    """
    if objective == "iwae":
        return ImportanceWeightedBound(vae, n_samples)
    if n_samples == 1 and not free_bits and not batch_penalty:
        return vae
    return SampledElbo(vae, n_samples, free_bits, batch_penalty)


def held_fixed(output: VAEOutput) -> VAEOutput:
    """Return a forward pass whose densities of the posterior take no gradient but through the samples.

    Parameters
    ----------
    output
        The forward pass.
    """
    qz, q_library = output.posterior.qz, output.posterior.log_library
    fixed = Posterior(_fixed(qz), None if q_library is None else _fixed(q_library))
    return VAEOutput(fixed, output.latent, output.log_library, output.px)


def _fixed(normal: Normal) -> Normal:
    return Normal(normal.loc.detach(), normal.scale.detach(), validate_args=False)


def _mean_of_samples(bound: Elbo) -> Elbo:
    kl = bound.kl.mean(0) if bound.kl.dim() > 1 else bound.kl
    return Elbo(bound.reconstruction.mean(0), kl, bound.kl_library)
