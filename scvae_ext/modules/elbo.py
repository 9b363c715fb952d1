"""The evidence lower bound and the importance weights of the evidence, as pure functions."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributions import Distribution, Normal, kl_divergence

from scvae_ext.likelihoods import Likelihood
from scvae_ext.minibatch import Minibatch
from scvae_ext.modules.outputs import Elbo, VAEOutput
from scvae_ext.types import CellsByLatent, CellValues

__all__ = ["divergences", "elbo", "kl_of_dimensions", "log_importance_weights", "log_likelihood", "log_ratio"]


def elbo(
    output: VAEOutput,
    likelihood: Likelihood[Any],
    minibatch: Minibatch,
    library_prior: Normal | None = None,
    pz: Distribution | None = None,
) -> Elbo:
    r"""Return the ELBO of each cell, in nats.

    The reconstruction is a Monte Carlo estimate at the sampled latent. Divergences from Gaussian priors are in closed
    form; for another prior, :math:`\operatorname{KL}(q \,\|\, p) = -\operatorname H(q) - \mathbb E_q[\log p(z)]` with
    the entropy in closed form and the expectation at the sample. Source: Kingma and Welling, ICLR 2014, equation 3
    and appendix B.

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
    pz
        Prior of the latent, where it is not standard normal.
    """
    kl, kl_library = divergences(output, library_prior, pz)
    return Elbo(log_likelihood(output, likelihood, minibatch), kl, kl_library, output.log_prob_others)


def log_likelihood(
    output: VAEOutput, likelihood: Likelihood[Any], minibatch: Minibatch
) -> Float[Tensor, "*samples cells"]:
    """Return the log-probability of all that was observed of each cell, at the sample, in nats.

    Parameters
    ----------
    output, likelihood, minibatch
        As for :func:`elbo`.
    """
    total: Tensor = likelihood.reconstruction(output.px, minibatch)
    for of_others in output.log_prob_others.values():
        total = total + of_others
    return total


def divergences(
    output: VAEOutput, library_prior: Normal | None = None, pz: Distribution | None = None
) -> tuple[Float[Tensor, "*samples cells"], CellValues | None]:
    """Return the divergences of the posteriors of latent and of library size from their priors, in nats.

    Parameters
    ----------
    output, library_prior, pz
        As for :func:`elbo`.
    """
    qz, q_library = output.posterior.qz, output.posterior.log_library
    kl = _standard_normal_kl(qz) if pz is None else -qz.entropy().sum(-1) - pz.log_prob(output.latent)
    return kl, None if q_library is None or library_prior is None else kl_divergence(q_library, library_prior)


def kl_of_dimensions(qz: Normal) -> CellsByLatent:
    r"""Return the divergence of each latent dimension from a standard normal prior, in nats.

    .. math::
        \operatorname{KL}(\mathcal N(\mu, \sigma^2) \,\|\, \mathcal N(0, 1)) =
        \tfrac12 (\mu^2 + \sigma^2 - 1) - \log\sigma

    Parameters
    ----------
    qz
        Posterior of each cell.
    """
    return 0.5 * (qz.loc.square() + qz.scale.square() - 1.0) - qz.scale.log()


def _standard_normal_kl(qz: Normal) -> Float[Tensor, "*samples cells"]:
    kl: Tensor = _StandardNormalKL.apply(qz.loc, qz.scale)  # type: ignore[no-untyped-call]
    return kl


class _StandardNormalKL(torch.autograd.Function):
    r"""Sum of :func:`kl_of_dimensions` over dimensions, with derivatives :math:`\mu` and :math:`\sigma - 1 / \sigma`.

    By themselves, they are three operations; the dozen that torch would record took as long as a matrix product.
    """

    @staticmethod
    def forward(ctx: Any, loc: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(loc, scale)
        squares = torch.addcmul(loc.square(), scale, scale).sum(-1)
        return torch.sub(0.5 * (squares - loc.shape[-1]), scale.log().sum(-1))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        loc, scale = ctx.saved_tensors
        column = grad.unsqueeze(-1)
        return column * loc, column * (scale - scale.reciprocal())


def log_importance_weights(
    output: VAEOutput,
    likelihood: Likelihood[Any],
    minibatch: Minibatch,
    library_prior: Normal | None = None,
    pz: Distribution | None = None,
) -> Float[Tensor, "*samples cells"]:
    r"""Return :math:`\log p(x \mid z) + \log p(z) - \log q(z \mid x)` at each sample, in nats.

    The mean of the exponentials over samples is an unbiased estimate of the evidence :math:`p(x)`. Source: Burda,
    Grosse and Salakhutdinov, ICLR 2016.

    Parameters
    ----------
    output, likelihood, minibatch, library_prior, pz
        As for :func:`elbo`.
    """
    weights: Tensor = log_likelihood(output, likelihood, minibatch)
    weights = weights + log_ratio(output, pz)
    q_library = output.posterior.log_library
    if q_library is not None and library_prior is not None and output.log_library is not None:
        weights = weights + library_prior.log_prob(output.log_library) - q_library.log_prob(output.log_library)
    return weights


def log_ratio(output: VAEOutput, pz: Distribution | None = None) -> Float[Tensor, "*samples cells"]:
    r"""Return :math:`\log p(z) - \log q(z \mid x)` at each sample, in nats.

    Parameters
    ----------
    output, pz
        As for :func:`elbo`.
    """
    log_qz = output.posterior.qz.log_prob(output.latent)
    ratio: Tensor
    if pz is None:
        # Both on their device: a number would be sent there.
        zero, one = output.posterior.qz.loc.new_zeros(()), output.posterior.qz.loc.new_ones(())
        standard = Normal(zero, one, validate_args=False)
        ratio = (standard.log_prob(output.latent) - log_qz).sum(-1)
    else:
        ratio = pz.log_prob(output.latent) - log_qz.sum(-1)
    return ratio
