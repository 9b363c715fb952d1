"""What training maximises beside the plain ELBO, per cell."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from scvae_ext.modules.outputs import Elbo, Objective
from scvae_ext.types import CellsByLatent, CellValues

__all__ = ["BatchPenalised", "FreeBitsElbo", "FreeLocation", "ImportanceWeighted", "LabelWeighted"]


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
class FreeLocation(Objective):
    r"""A bound in which it costs nothing where a cell lies, :math:`\mathcal L + \tfrac12 \sum_d \mu_d^2`.

    The divergence from a standard normal has the term :math:`\tfrac12 \mu_d^2` for the mean of each dimension. It is
    right for cells that are composed like those that the prior stands for. For others, such as cells of one type, it
    pays for moving all of them to the origin.

    Parameters
    ----------
    bound
        The bound of each cell, in nats, with such a divergence.
    location
        :math:`\tfrac12 \sum_d \mu_d^2` of each cell, in nats.
    monitor
        Term of the bound by which weights are judged.
    """

    bound: Objective
    location: CellValues
    monitor: str

    def score(self, kl_weight: float = 1.0, penalty_share: float = 1.0) -> CellValues:
        """Return the score of each cell; higher is better.

        Parameters
        ----------
        kl_weight
            Weight of the divergence from the prior.
        penalty_share
            As for the bound.
        """
        return self.bound.score(kl_weight, penalty_share) + kl_weight * self.location

    def terms(self) -> dict[str, Float[Tensor, "*samples cells"]]:
        """Return the terms of the bound, and the one by which it is judged with free locations."""
        terms = self.bound.terms()
        return {"free_location_elbo": terms[self.monitor] + self.location, **terms}


@dataclass(frozen=True)
class LabelWeighted(Objective):
    r"""A bound in which a known label counts as often as asked, :math:`\mathcal L + (\alpha - 1) \log p(y \mid z)`.

    A label is one observation among thousands of counts. What few labels say would be lost beside them; so Kingma,
    Rezende, Mohamed and Welling (NeurIPS 2014, equation 9) give it more weight, and so does scANVI.

    Parameters
    ----------
    bound
        The bound of each cell, in nats, in which the label counts once.
    log_prob_label
        :math:`\log p(y \mid z)` of each cell, zero for those without a label.
    weight
        :math:`\alpha`.
    monitor
        Term of the bound by which weights are judged.
    """

    bound: Objective
    log_prob_label: CellValues
    weight: float
    monitor: str

    def score(self, kl_weight: float = 1.0, penalty_share: float = 1.0) -> CellValues:
        """Return the score of each cell; higher is better.

        Parameters
        ----------
        kl_weight, penalty_share
            As for the bound.
        """
        return self.bound.score(kl_weight, penalty_share) + (self.weight - 1) * self.log_prob_label

    def terms(self) -> dict[str, Float[Tensor, "*samples cells"]]:
        """Return the terms of the bound, and the one by which it is judged with weighted labels."""
        terms = self.bound.terms()
        return {"label_weighted_elbo": terms[self.monitor] + (self.weight - 1) * self.log_prob_label, **terms}


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
