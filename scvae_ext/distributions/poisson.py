"""The Poisson distribution, exact for any count."""

import math
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Size, Tensor
from torch.autograd.function import once_differentiable
from torch.distributions import constraints

from scvae_ext.distributions.count import CountDistribution, Shape, flatten_matrix, put_
from scvae_ext.distributions.special import binet_above_one, log_one_minus
from scvae_ext.minibatch import SparseCounts

__all__ = ["Poisson"]

_HALF_LOG_TWO_PI = 0.5 * math.log(2 * math.pi)


def _at_positive(x: Tensor, rate: Tensor) -> tuple[Tensor, Tensor]:
    """Return the log-probability of counts greater than zero, and its derivative by the rate."""
    difference = x - rate
    gap = difference / x
    log_prob = log_one_minus(gap, rate / x).add_(gap).mul_(x)
    return log_prob.sub_((binet_above_one(x) + _HALF_LOG_TWO_PI).add_(x.log(), alpha=0.5)), difference.div_(rate)


class _LogProb(torch.autograd.Function):
    """Log-probability of each count of a sparse matrix; the rate has its full shape."""

    @staticmethod
    def forward(ctx: Any, rate: Tensor, counts: SparseCounts) -> Tensor:
        index = counts.flat_index
        x, rate_at = counts.values.to(rate.dtype), flatten_matrix(rate).index_select(-1, index)
        log_prob, slope = _at_positive(x, rate_at)
        ctx.save_for_backward(slope, index)
        return put_(rate.neg().contiguous(), index, log_prob)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        slope, index = ctx.saved_tensors
        at_positive = flatten_matrix(grad).index_select(-1, index) * slope
        return put_(grad.neg().contiguous(), index, at_positive), None


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

    def expand(self, batch_shape: Shape, _instance: None = None) -> Self:
        """Return the same distribution over a larger batch shape, without a copy.

        Parameters
        ----------
        batch_shape
            The new batch shape.
        """
        return type(self)(self.rate.expand(batch_shape), validate_args=self._validate_args)

    def sample_rate(self, sample_shape: Shape = ()) -> Float[Tensor, "..."]:
        """Return the rates, which do not vary.

        Parameters
        ----------
        sample_shape
            Dimensions put before those of the batch shape.
        """
        return self.rate.detach().expand(self._extended_shape(sample_shape))

    def log_prob_zero(self) -> Float[Tensor, "..."]:
        """Return the log-probability of a count of zero, in nats."""
        return -self.rate

    def log_prob_sparse(self, counts: SparseCounts) -> Float[Tensor, "..."]:
        """Return the log-probability of each count of a sparse matrix, in nats, as a dense tensor.

        Parameters
        ----------
        counts
            Counts of the cells and genes of the last two dimensions; dimensions before those are samples.
        """
        log_prob: Tensor = _LogProb.apply(self.rate.expand(self._shape_over(counts)), counts)  # type: ignore[no-untyped-call]
        return log_prob

    def _row(self, shape: Size) -> Self:
        return type(self)(self.rate.expand(shape).reshape(1, -1), validate_args=False)
