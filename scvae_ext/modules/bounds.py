"""The bounds on the evidence that a VAE can be trained on, each a view of the VAE with an objective of its own."""

from dataclasses import replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Normal

from scvae_ext.minibatch import Minibatch
from scvae_ext.modules.dependence import batch_dependence
from scvae_ext.modules.elbo import divergences, elbo, kl_of_dimensions, log_likelihood, log_ratio
from scvae_ext.modules.objectives import BatchPenalised, FreeBitsElbo, ImportanceWeighted, LabelWeighted
from scvae_ext.modules.outputs import Elbo, Objective, Posterior, VAEOutput
from scvae_ext.modules.trainable import Trainable
from scvae_ext.modules.vae import VAE

__all__ = [
    "Bound",
    "ImportanceWeightedBound",
    "SampledElbo",
    "held_fixed",
    "trainable_bound",
]

Bound = Literal["elbo", "iwae"]


class SampledElbo(Trainable):
    """A VAE to be trained on its ELBO at the mean of several samples, with free bits, a penalty or weights of labels.

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
    label_weight
        How often a label counts.
    """

    monitor = "elbo"
    monitor_mode = "max"

    def __init__(
        self, vae: VAE, n_samples: int, free_bits: float, batch_penalty: float = 0.0, label_weight: float = 1.0
    ) -> None:
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
        self.label_weight = label_weight
        if batch_penalty:
            # The ELBO would take the weights that have been penalised least for the best.
            self.monitor = "penalised_elbo"
        self._bound_monitor = self.monitor
        if label_weight != 1:
            self.monitor = "label_weighted_elbo"

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
        if self.label_weight != 1:
            of_labels = bound.reconstruction_others["labels"]
            objective = LabelWeighted(objective, of_labels, self.label_weight, self._bound_monitor)
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
        reconstruction = log_likelihood(output, vae.likelihood, minibatch)
        held = held_fixed(output)
        log_ratio_library = None
        if held.log_library is not None and held.posterior.log_library is not None and library_prior is not None:
            q_library = held.posterior.log_library
            log_ratio_library = library_prior.log_prob(held.log_library) - q_library.log_prob(held.log_library)
        with torch.no_grad():
            bound = _mean_of_samples(
                Elbo(reconstruction.detach(), *divergences(output, library_prior, pz), output.log_prob_others)
            )
        return ImportanceWeighted(
            reconstruction, log_ratio(held, pz), log_ratio_library, output.latent, output.log_library, bound
        )


def trainable_bound(
    vae: VAE,
    objective: Bound,
    n_samples: int,
    free_bits: float,
    batch_penalty: float = 0.0,
    label_weight: float = 1.0,
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
    label_weight
        How often a label counts in the ELBO.

    Raises
    ------
    ValueError
        If the prior does not allow free bits.
    """
    if objective == "iwae":
        return ImportanceWeightedBound(vae, n_samples)
    if n_samples == 1 and not free_bits and not batch_penalty and label_weight == 1:
        return vae
    return SampledElbo(vae, n_samples, free_bits, batch_penalty, label_weight)


def held_fixed(output: VAEOutput) -> VAEOutput:
    """Return a forward pass whose densities of the posterior take no gradient but through the samples.

    Parameters
    ----------
    output
        The forward pass.
    """
    qz, q_library = output.posterior.qz, output.posterior.log_library
    fixed = Posterior(_fixed(qz), None if q_library is None else _fixed(q_library))
    return replace(output, posterior=fixed)


def _fixed(normal: Normal) -> Normal:
    return Normal(normal.loc.detach(), normal.scale.detach(), validate_args=False)


def _mean_of_samples(bound: Elbo) -> Elbo:
    kl = bound.kl.mean(0) if bound.kl.dim() > 1 else bound.kl
    others = {name: values.mean(0) for name, values in bound.reconstruction_others.items()}
    return Elbo(bound.reconstruction.mean(0), kl, bound.kl_library, others)
