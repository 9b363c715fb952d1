"""What a count says about the rate behind it."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Distribution
from torch.nn import functional

from scvae_ext.distributions import NegativeBinomial, Poisson, ZeroInflated

__all__ = ["expected_rate_ratio"]


def expected_rate_ratio(px: Distribution, seen: Float[Tensor, "cells genes"]) -> Float[Tensor, "cells genes"]:
    r"""Return :math:`\mathbb E[u \mid x]`, the rate behind each count in units of its mean :math:`\mu`.

    A negative binomial count is a Poisson count of the rate :math:`\mu u`, in which :math:`u` is drawn from
    :math:`\operatorname{Gamma}(\theta, \theta)`; given the count it is Gamma-distributed too:

    .. math:: \mathbb E[u \mid x] = \frac{\theta + x}{\theta + \mu}

    With extra zeros, a zero says nothing about the rate with the probability that it is one of them. For Poisson counts
    the ratio is one.

    Parameters
    ----------
    px
        Distribution of the counts.
    seen
        The counts.

    Raises
    ------
    TypeError
        If it is not a distribution of counts.
    """
    base = px.base if isinstance(px, ZeroInflated) else px
    if isinstance(base, Poisson):
        ratio = torch.ones_like(seen)
    elif isinstance(base, NegativeBinomial):
        ratio = (base.inverse_dispersion + seen) / (base.inverse_dispersion + base.mean)
    else:
        raise TypeError(f"{type(base).__name__} is no distribution of counts.")
    if not isinstance(px, ZeroInflated):
        return ratio
    log_extra = functional.logsigmoid(px.zero_inflation_logits) - px.log_prob(torch.zeros_like(seen))
    is_extra = torch.where(seen == 0, log_extra.exp().clamp_max(1), 0.0)
    return torch.lerp(ratio, torch.ones_like(ratio), is_extra)
