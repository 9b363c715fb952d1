"""The evidence lower bound and the importance weights of the evidence, as pure functions."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from scvae_ext.likelihoods import Likelihood
from scvae_ext.minibatch import Minibatch
from scvae_ext.modules.outputs import Elbo, VAEOutput

__all__ = ["elbo", "log_importance_weights"]


def elbo(
    output: VAEOutput, likelihood: Likelihood[Any], minibatch: Minibatch, library_prior: Normal | None = None
) -> Elbo:
    r"""Return the ELBO of each cell, in nats.

    The reconstruction is a Monte Carlo estimate at the sampled latent; both divergences are in closed form,
    :math:`\operatorname{KL}(\mathcal N(\mu, \sigma^2) \,\|\, \mathcal N(0, 1)) = (\mu^2 + \sigma^2 - 1)/2 - \log\sigma`
    per dimension. Source: Kingma and Welling, ICLR 2014, equation 3 and appendix B.

    Parameters
    ----------
    output
        Forward pass.
    likelihood
        The likelihood that ``output.px`` came from.
    minibatch
        The cells.
    library_prior
        Prior of the log library size of each cell, where it is latent.
    """
    qz = output.posterior.qz
    kl = (0.5 * (qz.loc.square() + qz.scale.square() - 1.0) - qz.scale.log()).sum(-1)
    q_library = output.posterior.log_library
    kl_library = None if q_library is None or library_prior is None else kl_divergence(q_library, library_prior)
    return Elbo(likelihood.reconstruction(output.px, minibatch), kl, kl_library)


def log_importance_weights(
    output: VAEOutput, likelihood: Likelihood[Any], minibatch: Minibatch, library_prior: Normal | None = None
) -> Float[Tensor, "*samples cells"]:
    r"""Return :math:`\log p(x \mid z) + \log p(z) - \log q(z \mid x)` at each sample, in nats.

    The mean of the exponentials over samples is an unbiased estimate of the evidence :math:`p(x)`. Source: Burda,
    Grosse and Salakhutdinov, ICLR 2016.

    Parameters
    ----------
    output, likelihood, minibatch, library_prior
        As for :func:`elbo`.
    """
    prior = Normal(torch.zeros_like(output.posterior.qz.loc), 1.0, validate_args=False)
    weights: Tensor = likelihood.reconstruction(output.px, minibatch)
    weights = weights + (prior.log_prob(output.latent) - output.posterior.qz.log_prob(output.latent)).sum(-1)
    q_library = output.posterior.log_library
    if q_library is not None and library_prior is not None and output.log_library is not None:
        weights = weights + library_prior.log_prob(output.log_library) - q_library.log_prob(output.log_library)
    return weights
