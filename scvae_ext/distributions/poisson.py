"""The Poisson distribution, exact for any count."""

import math
from typing import Any, Self

import torch
from jaxtyping import Float, Num
from torch import Size, Tensor
from torch.autograd.function import once_differentiable
from torch.distributions import constraints

from scvae_ext.distributions.count import CountDistribution
from scvae_ext.distributions.special import binet_above_one, log_plus_gap
from scvae_ext.minibatch import SparseCounts

__all__ = ["Poisson"]

_HALF_LOG_TWO_PI = 0.5 * math.log(2 * math.pi)


def _at_positive(x: Tensor, rate: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probability of counts greater than zero, and its derivative by the rate."""
    difference = x - rate
    deviance = x * log_plus_gap(rate / x, difference / x)
    return deviance - 0.5 * x.log() - (binet_above_one(x)[0] + _HALF_LOG_TWO_PI), difference / rate


class _LogProb(torch.autograd.Function):
    """Log-probability of each count; differentiable twice."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, rate: Tensor) -> Tensor:
        ctx.save_for_backward(value, rate)
        return torch.where(value > 0, _at_positive(value.clamp(min=1), rate)[0], -rate)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:
        value, rate = ctx.saved_tensors
        return None, grad * torch.where(value > 0, (value - rate) / rate, -1.0)


class _SparseLogProb(torch.autograd.Function):
    """Log-probability of each count of a sparse matrix; the rate has the full shape."""

    @staticmethod
    def forward(ctx: Any, rate: Tensor, counts: SparseCounts) -> Tensor:
        flat_rate, index = rate.reshape(*rate.shape[:-2], -1), counts.flat_index
        at_positive, slope = _at_positive(counts.values.to(rate.dtype), flat_rate.index_select(-1, index))
        ctx.save_for_backward(slope, index)
        return flat_rate.neg().scatter_(-1, index.expand_as(at_positive), at_positive).view(rate.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        slope, index = ctx.saved_tensors
        flat_grad = grad.reshape(*grad.shape[:-2], -1)
        at_positive = flat_grad.index_select(-1, index) * slope
        return flat_grad.neg().scatter_(-1, index.expand_as(at_positive), at_positive).view(grad.shape), None


class Poisson(CountDistribution):
    r"""Poisson distribution.

    .. math:: p(x) = \frac{\lambda^x e^{-\lambda}}{x!}

    Parameters
    ----------
    rate
        Mean and variance :math:`\lambda`, in counts.
    validate_args
        Whether to check parameters and values; as :class:`torch.distributions.Distribution` by default.

    Raises
    ------
    ValueError
        If arguments are validated and a rate is negative.

    Examples
    --------
    >>> import torch
    >>> Poisson(torch.tensor(2.0)).log_prob(torch.tensor(0.0))
    tensor(-2.)
    """

    arg_constraints = {"rate": constraints.nonnegative}  # noqa: RUF012

    def __init__(self, rate: Float[Tensor, "..."], validate_args: bool | None = None) -> None:
        self.rate = rate
        super().__init__(rate.shape, validate_args=validate_args)

    @property
    def mean(self) -> Float[Tensor, "..."]:
        """Expected count."""
        return self.rate

    @property
    def variance(self) -> Float[Tensor, "..."]:
        """Variance of the count, equal to the mean."""
        return self.rate

    def expand(self, batch_shape: Size, _instance: Any = None) -> Self:
        """Return the same distribution over a larger batch shape, without a copy.

        Parameters
        ----------
        batch_shape
            The new batch shape.
        """
        new = self._get_checked_instance(Poisson, _instance)
        new.rate = self.rate.expand(batch_shape)
        super(Poisson, new).__init__(Size(batch_shape), validate_args=False)
        new._validate_args = self._validate_args
        return new

    def sample(self, sample_shape: Size = Size()) -> Float[Tensor, "..."]:  # noqa: B008
        """Draw counts.

        Parameters
        ----------
        sample_shape
            Dimensions put before those of the batch shape.
        """
        with torch.no_grad():
            return torch.poisson(self.rate.expand(self._extended_shape(sample_shape)))

    def log_prob(self, value: Num[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Return the log-probability of each count, in nats; differentiable twice.

        Parameters
        ----------
        value
            Counts.
        """
        if self._validate_args:
            self._validate_sample(value)
        value, rate = torch.broadcast_tensors(value.to(self.rate.dtype), self.rate)
        return self._mask_outside(value, _LogProb.apply(value, rate))

    def log_prob_zero(self) -> Float[Tensor, "..."]:
        """Return the log-probability of a count of zero, in nats."""
        return -self.rate

    def log_prob_sparse(self, counts: SparseCounts) -> Float[Tensor, "*samples cells genes"]:
        """Return the log-probability of each count of a sparse matrix, in nats.

        Parameters
        ----------
        counts
            Counts of the cells and genes of the last two dimensions.
        """
        return _SparseLogProb.apply(self.rate.expand(self._sparse_shape(counts)), counts)
