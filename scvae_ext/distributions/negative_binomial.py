"""The negative binomial distribution, exact from Poisson-like to extremely overdispersed."""

import math
from typing import Any, Self

import torch
from jaxtyping import Float, Num
from torch import Size, Tensor
from torch.autograd.function import once_differentiable
from torch.distributions import constraints

from scvae_ext.distributions.count import CountDistribution
from scvae_ext.distributions.special import binet, binet_above_one, log_plus_gap
from scvae_ext.minibatch import SparseCounts

__all__ = ["NegativeBinomial"]

_HALF_LOG_TWO_PI = 0.5 * math.log(2 * math.pi)


def _at_zero(mean: Tensor, theta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probability of zero, and its derivatives by the mean and (negated) by theta."""
    ratio = mean / theta
    log1p = ratio.log1p()
    by_mean = torch.rsub(ratio, -1).reciprocal_()
    return log1p * -theta, by_mean, torch.addcmul(log1p, ratio, by_mean)


def _normalizer(theta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What the log-probability of counts greater than zero needs of theta alone; evaluated once for a gene."""
    value, slope = binet(theta)
    return 0.5 * theta.log() - value - _HALF_LOG_TWO_PI, 0.5 / theta, slope


def _at_positive(
    x: Tensor, mean: Tensor, theta: Tensor, normalizer: tuple[Tensor, Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probability of counts greater than zero, and its derivatives by the mean and (negated) by theta.

    Loader's saddle-point identity: with n = x + theta the log-probability is minus the two deviances of (x, theta)
    from their expectations given n, both non-negative, plus terms of the order of log(n).
    """
    constant, half_inverse, theta_slope = normalizer
    n = x + theta
    inverse_total = (mean + theta).reciprocal()
    growth = n * inverse_total
    excess = (x - mean) * inverse_total
    by_log_mean = theta * excess
    theta_part = log_plus_gap(growth, -excess)
    x_part = log_plus_gap(mean / x * growth, by_log_mean / x)
    x_binet, _ = binet_above_one(x)
    n_binet, n_slope = binet_above_one(n)
    log_prob = theta * theta_part + x * x_part + (constant - 0.5 * (x * n).log() + (n_binet - x_binet))
    minus_by_theta = theta_slope - n_slope - half_inverse * (x / n) - theta_part
    return log_prob, by_log_mean / mean, minus_by_theta


class _LogProb(torch.autograd.Function):
    """Log-probability of each count; differentiable twice."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, mean: Tensor, theta: Tensor) -> Tensor:
        ctx.save_for_backward(value, mean, theta)
        return _LogProb._terms(value, mean, theta, 0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, Tensor]:
        by_mean = _LogProb._terms(*ctx.saved_tensors, 1)
        minus_by_theta = _LogProb._terms(*ctx.saved_tensors, 2)
        return None, grad * by_mean, -grad * minus_by_theta

    @staticmethod
    def _terms(value: Tensor, mean: Tensor, theta: Tensor, which: int) -> Tensor:
        positive = _at_positive(value.clamp(min=1), mean, theta, _normalizer(theta))
        return torch.where(value > 0, positive[which], _at_zero(mean, theta)[which])


class _SparseLogProb(torch.autograd.Function):
    """Log-probability of each count of a sparse matrix.

    The mean has the full shape; theta has it too, or is one value for each gene. Both derivatives are laid down in
    the forward pass, so that the backward pass is two products.
    """

    @staticmethod
    def forward(ctx: Any, mean: Tensor, theta: Tensor, counts: SparseCounts) -> Tensor:
        index = counts.flat_index
        parts = (theta, *_normalizer(theta)) if theta.dim() == 1 else (theta,)
        if theta.dim() == 1:
            theta_at, *normalizer = (part.index_select(0, counts.gene_index) for part in parts)
        else:
            theta_at = _flat(theta).index_select(-1, index)
            normalizer = list(_normalizer(theta_at))
        mean_at = _flat(mean).index_select(-1, index)
        positive = _at_positive(counts.values.to(mean.dtype), mean_at, theta_at, tuple(normalizer))
        dense = _at_zero(mean, theta)
        for everywhere, at_positive in zip(dense, positive, strict=True):
            _flat(everywhere).scatter_(-1, index.expand_as(at_positive), at_positive)
        ctx.save_for_backward(*dense[1:])
        ctx.theta_per_gene = theta.dim() == 1
        return dense[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        by_mean, minus_by_theta = ctx.saved_tensors
        grad_mean = grad_theta = None
        if ctx.needs_input_grad[0]:
            grad_mean = grad * by_mean
        if ctx.needs_input_grad[1]:
            if not ctx.theta_per_gene:
                grad_theta = -(grad * minus_by_theta)
            elif grad.stride(-1) == 0:
                # The gradient of a sum over genes: one value for each cell, so a matrix-vector product does it.
                rows = minus_by_theta.reshape(-1, minus_by_theta.shape[-1])
                grad_theta = -(rows.T @ grad[..., 0].reshape(-1))
            else:
                grad_theta = -(grad * minus_by_theta).flatten(0, -2).sum(0)
        return grad_mean, grad_theta, None


def _flat(matrix: Tensor) -> Tensor:
    return matrix.reshape(*matrix.shape[:-2], -1)


class NegativeBinomial(CountDistribution):
    r"""Negative binomial distribution by its mean and inverse dispersion.

    .. math::

        p(x) = \frac{\Gamma(x + \theta)}{\Gamma(\theta)\, x!}
               \left(\frac{\theta}{\theta + \mu}\right)^{\theta} \left(\frac{\mu}{\theta + \mu}\right)^{x},
        \qquad \operatorname{Var}(x) = \mu + \frac{\mu^2}{\theta}

    Parameters
    ----------
    mean
        Expected count :math:`\mu`.
    inverse_dispersion
        :math:`\theta`, greater than zero. Any shape that broadcasts against the mean; it is not expanded, so one
        value per gene costs (and receives its gradient in) that much memory and no more.
    validate_args
        Whether to check parameters and values; as :class:`torch.distributions.Distribution` by default.

    Raises
    ------
    ValueError
        If arguments are validated and a mean is negative or an inverse dispersion not positive.

    References
    ----------
    Loader (2000), Fast and Accurate Computation of Binomial Probabilities.

    Examples
    --------
    >>> import torch
    >>> NegativeBinomial(torch.tensor(3.0), torch.tensor(1.0)).log_prob(torch.tensor(0.0)).exp()
    tensor(0.2500)
    """

    arg_constraints = {  # noqa: RUF012
        "mean": constraints.nonnegative,
        "inverse_dispersion": constraints.positive,
    }

    def __init__(
        self,
        mean: Float[Tensor, "..."],
        inverse_dispersion: Float[Tensor, "..."],
        validate_args: bool | None = None,
    ) -> None:
        shape = torch.broadcast_shapes(mean.shape, inverse_dispersion.shape)
        self._mean = mean.expand(shape)
        self.inverse_dispersion = inverse_dispersion
        super().__init__(shape, validate_args=validate_args)

    @property
    def mean(self) -> Float[Tensor, "..."]:
        """Expected count."""
        return self._mean

    @property
    def variance(self) -> Float[Tensor, "..."]:
        """Variance of the count."""
        return self._mean * (1 + self._mean / self.inverse_dispersion)

    def expand(self, batch_shape: Size, _instance: Any = None) -> Self:
        """Return the same distribution over a larger batch shape, without a copy.

        Parameters
        ----------
        batch_shape
            The new batch shape.
        """
        new = self._get_checked_instance(NegativeBinomial, _instance)
        new._mean = self._mean.expand(batch_shape)
        new.inverse_dispersion = self.inverse_dispersion
        super(NegativeBinomial, new).__init__(Size(batch_shape), validate_args=False)
        new._validate_args = self._validate_args
        return new

    def sample(self, sample_shape: Size = Size()) -> Float[Tensor, "..."]:  # noqa: B008
        """Draw counts, as a Poisson whose rate is drawn from a gamma distribution.

        Parameters
        ----------
        sample_shape
            Dimensions put before those of the batch shape.
        """
        shape = self._extended_shape(sample_shape)
        with torch.no_grad():
            gamma = torch._standard_gamma(self.inverse_dispersion.expand(shape))
            return torch.poisson(gamma * (self._mean / self.inverse_dispersion))

    def log_prob(self, value: Num[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Return the log-probability of each count, in nats; differentiable twice.

        Parameters
        ----------
        value
            Counts.
        """
        if self._validate_args:
            self._validate_sample(value)
        value, mean, theta = torch.broadcast_tensors(value.to(self._mean.dtype), self._mean, self.inverse_dispersion)
        return self._mask_outside(value, _LogProb.apply(value, mean, theta))

    def log_prob_zero(self) -> Float[Tensor, "..."]:
        """Return the log-probability of a count of zero, in nats."""
        return -self.inverse_dispersion * torch.log1p(self._mean / self.inverse_dispersion)

    def log_prob_sparse(self, counts: SparseCounts) -> Float[Tensor, "*samples cells genes"]:
        """Return the log-probability of each count of a sparse matrix, in nats.

        Parameters
        ----------
        counts
            Counts of the cells and genes of the last two dimensions.
        """
        shape = self._sparse_shape(counts)
        theta = self.inverse_dispersion
        theta = theta.expand(counts.n_genes) if theta.dim() < 2 else theta.expand(shape)
        return _SparseLogProb.apply(self._mean.expand(shape), theta, counts)
