r"""Estimators of the gradient of a bound, each as a function whose derivative is the estimate.

With :math:`w_k = p(x \mid z_k)\,p(z_k) / q(z_k \mid x)` and K samples :math:`z_k` of the posterior, every function here
returns a value of each cell, to be averaged over cells and differentiated. Apart from pathwise and importance-weighted
gradients, the values themselves mean nothing.
"""

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor

from scvae_ext.minibatch import Minibatch
from scvae_ext.modules.bounds import Bound, ImportanceWeightedBound, held_fixed
from scvae_ext.modules.elbo import log_importance_weights
from scvae_ext.modules.outputs import Posterior, VAEOutput
from scvae_ext.modules.vae import VAE, reparameterised_sample
from scvae_ext.types import CellValues

__all__ = [
    "SURROGATES",
    "GradientEstimator",
    "doubly_reparameterised",
    "importance_weighted",
    "pathwise",
    "score_function",
    "score_function_with_baseline",
    "sticking_the_landing",
]

GradientEstimator = Literal[
    "pathwise",
    "sticking_the_landing",
    "score_function",
    "score_function_with_baseline",
    "importance_weighted",
    "doubly_reparameterised",
]


def pathwise(vae: VAE, minibatch: Minibatch, n_samples: int, generator: torch.Generator) -> CellValues:
    """Return the ELBO, differentiated through the samples; the divergence in closed form where it has one.

    Parameters
    ----------
    vae, minibatch, n_samples, generator
        As for :meth:`VAE.elbo`.
    """
    return vae.elbo(minibatch, n_samples, generator).score().mean(0)


def sticking_the_landing(vae: VAE, minibatch: Minibatch, n_samples: int, generator: torch.Generator) -> CellValues:
    r"""Return the mean of :math:`\log w_k`, with the posterior's density differentiated through the samples alone.

    What is left out, the mean of the density's score, is zero in expectation. At the exact posterior nothing that is
    left is random (Roeder, Wu and Duvenaud, NeurIPS 2017).

    Parameters
    ----------
    vae, minibatch, n_samples, generator
        As for :meth:`VAE.elbo`.
    """
    return _log_weights(vae, held_fixed(vae(minibatch, n_samples, generator)), minibatch).mean(0)


def score_function(vae: VAE, minibatch: Minibatch, n_samples: int, generator: torch.Generator) -> CellValues:
    r"""Return a function with the derivative :math:`\frac1K \sum_k \log w_k \nabla \log q(z_k)` by the posterior.

    Nothing is differentiated through the samples, so that the decoder need not be differentiable in z, nor z be
    continuous (Williams, Machine Learning 8, 229, 1992).

    Parameters
    ----------
    vae, minibatch, n_samples, generator
        As for :meth:`VAE.elbo`.
    """
    return _score_function(vae, minibatch, n_samples, generator, has_baseline=False)


def score_function_with_baseline(
    vae: VAE, minibatch: Minibatch, n_samples: int, generator: torch.Generator
) -> CellValues:
    r"""Return the same, with :math:`\log w_k` less its mean over the other samples of the cell.

    A baseline that does not depend on :math:`z_k` leaves the mean of the gradient as it is (Mnih and Rezende, ICML
    2016).

    Parameters
    ----------
    vae, minibatch, generator
        As for :meth:`VAE.elbo`.
    n_samples
        Samples of each cell; at least two.
    """
    return _score_function(vae, minibatch, n_samples, generator, has_baseline=True)


def importance_weighted(vae: VAE, minibatch: Minibatch, n_samples: int, generator: torch.Generator) -> CellValues:
    r"""Return :math:`\log \frac1K \sum_k w_k`, differentiated as it stands.

    For large K the share of noise in the posterior's gradient grows with the square root of K (Rainforth, Kosiorek, Le,
    Maddison, Igl, Wood and Teh, ICML 2018).

    Parameters
    ----------
    vae, minibatch, n_samples, generator
        As for :meth:`VAE.elbo`.
    """
    weights = vae.log_importance_weights(minibatch, n_samples, generator)
    return weights.logsumexp(0) - math.log(n_samples)


def doubly_reparameterised(vae: VAE, minibatch: Minibatch, n_samples: int, generator: torch.Generator) -> CellValues:
    """Return the importance-weighted bound with the gradient of :class:`~scvae_ext.modules.ImportanceWeighted`.

    Parameters
    ----------
    vae, minibatch, n_samples, generator
        As for :meth:`VAE.elbo`.
    """
    return ImportanceWeightedBound(vae, n_samples).objective(minibatch, generator).score()


SURROGATES: Mapping[GradientEstimator, tuple[Bound, Callable[[VAE, Minibatch, int, torch.Generator], Tensor]]] = (
    MappingProxyType(
        {
            "pathwise": ("elbo", pathwise),
            "sticking_the_landing": ("elbo", sticking_the_landing),
            "score_function": ("elbo", score_function),
            "score_function_with_baseline": ("elbo", score_function_with_baseline),
            "importance_weighted": ("iwae", importance_weighted),
            "doubly_reparameterised": ("iwae", doubly_reparameterised),
        }
    )
)
"""The objective that each estimator differentiates, and the estimator."""


def _score_function(
    vae: VAE, minibatch: Minibatch, n_samples: int, generator: torch.Generator, *, has_baseline: bool
) -> CellValues:
    posterior = vae.encode(minibatch)
    with torch.no_grad():
        latent = reparameterised_sample(posterior.qz, n_samples, generator)
        log_library = (
            None
            if posterior.log_library is None
            else reparameterised_sample(posterior.log_library, n_samples, generator)
        )
    output = vae.output_at(posterior, latent, log_library, minibatch)
    # Fixed samples and densities leave the gradient of decoder and prior.
    log_weights = _log_weights(vae, held_fixed(output), minibatch)
    signal = log_weights.detach()
    if has_baseline:
        signal = (signal - signal.mean(0)) * (n_samples / (n_samples - 1))
    return (signal * _log_density(posterior, output) + log_weights).mean(0)


def _log_density(posterior: Posterior, output: VAEOutput) -> Tensor:
    """Return the log density of the posterior at the samples."""
    log_density: Tensor = posterior.qz.log_prob(output.latent).sum(-1)
    if posterior.log_library is not None and output.log_library is not None:
        log_density = log_density + posterior.log_library.log_prob(output.log_library)
    return log_density


def _log_weights(vae: VAE, output: VAEOutput, minibatch: Minibatch) -> Tensor:
    return log_importance_weights(output, vae.likelihood, minibatch, vae.library_prior(minibatch), vae.pz())
