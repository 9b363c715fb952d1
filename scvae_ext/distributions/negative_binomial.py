"""The negative binomial distribution, exact from Poisson-like to extremely overdispersed."""

import math
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Size, Tensor
from torch.autograd.function import once_differentiable
from torch.distributions import constraints

from scvae_ext.distributions.composition import Composition, LinearLogits
from scvae_ext.distributions.count import CountDistribution, Shape, flatten_matrix, put_
from scvae_ext.distributions.special import (
    binet_above_one,
    log_one_minus,
    stirling_remainders,
)
from scvae_ext.minibatch import SparseCounts

__all__ = ["NegativeBinomial"]

_HALF_LOG_TWO_PI = 0.5 * math.log(2 * math.pi)


def _at_zero(mean: Tensor, theta: Tensor, with_derivatives: bool) -> tuple[Tensor, ...]:
    """Return the log-probability of zero and, on request, its derivatives by the mean and (negated) by theta."""
    ratio = mean / theta
    if not with_derivatives:
        return (ratio.log1p_().mul_(-theta),)
    log1p = ratio.log1p()
    by_mean = torch.rsub(ratio, -1).reciprocal_()
    return log1p * -theta, by_mean, log1p.addcmul_(ratio, by_mean)


def _of_theta(theta: Tensor) -> tuple[Tensor, Tensor]:
    """Return what log-probability and derivative of counts greater than zero need of theta alone.

    The recurrences of log-gamma and digamma lead to arguments above one. The part of the derivative that diverges,
    1/theta, is left to the caller: only together with terms of the counts is it small.
    """
    log_ratio = theta.reciprocal().log1p_()
    value, slope = stirling_remainders(theta + 1)
    return 0.5 * theta.log() - (theta + 0.5) * log_ratio + ((1 - _HALF_LOG_TWO_PI) - value), log_ratio + slope


def _at_positive(
    x: Tensor, mean: Tensor, theta: Tensor, theta_value: Tensor, theta_slope: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the log-probability of counts greater than zero, and its derivatives by the mean and (negated) by theta.

    Loader's saddle-point identity: given the total n = x + theta, the log-probability is minus the deviances of x and
    of theta from their expectations, neither of them negative, and terms of the order of log(n).
    """
    n = x + theta
    inverse_total = (mean + theta).reciprocal_()
    growth = n * inverse_total
    excess = (x - mean).mul_(inverse_total)
    by_log_mean = theta * excess
    inverse_x = x.reciprocal()
    x_gap = by_log_mean * inverse_x
    log_growth = log_one_minus(-excess, growth)
    x_part = log_one_minus(x_gap, (mean * inverse_x).mul_(growth)).add_(x_gap)
    n_value, n_slope = stirling_remainders(n)
    log_prob = x_part.mul_(x).addcmul_(theta, log_growth - excess).add_(theta_value)
    log_prob.add_((x * n).log_(), alpha=-0.5).add_(n_value.sub_(binet_above_one(x)))
    # 1/theta - excess as one fraction: both can be of the order of 1e4, their difference of 1.
    divergent = torch.addcmul(mean, theta, torch.rsub(x, 1) + mean).mul_(inverse_total).div_(theta)
    return log_prob, by_log_mean.div_(mean), (theta_slope - n_slope) - divergent.add_(log_growth)


class _LogProb(torch.autograd.Function):
    """Log-probability of each count of a sparse matrix.

    The mean has its full shape; theta has it too, or is one value for each gene. Both derivatives are laid down in
    the forward pass, so that the backward pass is two products.
    """

    @staticmethod
    def forward(ctx: Any, mean: Tensor, theta: Tensor, counts: SparseCounts) -> Tensor:
        index = counts.flat_index
        x, mean_at = counts.values.to(mean.dtype), flatten_matrix(mean).index_select(-1, index)
        ctx.theta_per_gene = theta.dim() == 1
        if ctx.theta_per_gene:
            of_theta = [term.index_select(0, counts.gene_index) for term in (theta, *_of_theta(theta))]
        else:
            theta_at = flatten_matrix(theta).index_select(-1, index)
            of_theta = [theta_at, *_of_theta(theta_at)]
        everywhere = _at_zero(mean, theta, any(ctx.needs_input_grad))
        terms = [
            put_(dense.contiguous(), index, at_positive)
            for dense, at_positive in zip(everywhere, _at_positive(x, mean_at, *of_theta), strict=False)
        ]
        ctx.save_for_backward(*terms[1:])
        return terms[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        by_mean, minus_by_theta = ctx.saved_tensors
        grad_mean = grad * by_mean if ctx.needs_input_grad[0] else None
        grad_theta = None
        if ctx.needs_input_grad[1]:
            if not ctx.theta_per_gene:
                grad_theta = (grad * minus_by_theta).neg_()
            elif grad.stride(-1) == 0:
                # The gradient of a sum over genes is one value for each cell: no product of matrices is laid out.
                grad_theta = (minus_by_theta.flatten(0, -2).T @ grad[..., 0].flatten()).neg_()
            else:
                grad_theta = (grad * minus_by_theta).flatten(0, -2).sum(0).neg_()
        return grad_mean, grad_theta, None


class NegativeBinomial(CountDistribution):
    r"""Negative binomial distribution by its mean and inverse dispersion.

    .. math::

        p(x) = \frac{\Gamma(x + \theta)}{\Gamma(\theta)\, x!}
               \left(\frac{\theta}{\theta + \mu}\right)^{\theta} \left(\frac{\mu}{\theta + \mu}\right)^{x},
        \qquad \operatorname{Var}(x) = \mu + \frac{\mu^2}{\theta}

    Parameters
    ----------
    mean
        Expected count :math:`\mu`; or a :class:`Composition`, which becomes one where it is asked for.
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
        mean: Float[Tensor, "..."] | Composition,
        inverse_dispersion: Float[Tensor, "..."],
        validate_args: bool | None = None,
    ) -> None:
        # One value for each gene does not change the shape, which torch needs a tenth of a millisecond to find out.
        per_gene = isinstance(mean, Composition) and inverse_dispersion.shape == mean.shape[-1:]
        shape = mean.shape if per_gene else torch.broadcast_shapes(mean.shape, inverse_dispersion.shape)
        self._given_mean = mean
        self.inverse_dispersion = inverse_dispersion
        super().__init__(shape, validate_args=validate_args)

    @property
    def mean(self) -> Float[Tensor, "..."]:
        """Expected count."""
        mean = self._given_mean.mean if isinstance(self._given_mean, Composition) else self._given_mean
        return mean.expand(self.batch_shape)

    @property
    def variance(self) -> Float[Tensor, "..."]:
        """Variance of the count."""
        return self.mean * (1 + self.mean / self.inverse_dispersion)

    def expand(self, batch_shape: Shape, _instance: None = None) -> Self:
        """Return the same distribution over a larger batch shape, without a copy.

        Parameters
        ----------
        batch_shape
            The new batch shape.
        """
        return type(self)(self.mean.expand(batch_shape), self.inverse_dispersion, self._validate_args)

    def sample_rate(self, sample_shape: Shape = ()) -> Float[Tensor, "..."]:
        """Draw the rates of Poisson distributions, from gamma distributions.

        Parameters
        ----------
        sample_shape
            Dimensions put before those of the batch shape.
        """
        shape = self._extended_shape(sample_shape)
        with torch.no_grad():
            gamma = torch._standard_gamma(self.inverse_dispersion.expand(shape))
            return gamma * (self.mean / self.inverse_dispersion)

    def log_prob_zero(self) -> Float[Tensor, "..."]:
        """Return the log-probability of a count of zero, in nats."""
        return -self.inverse_dispersion * torch.log1p(self.mean / self.inverse_dispersion)

    def log_prob_sparse(self, counts: SparseCounts) -> Float[Tensor, "..."]:
        """Return the log-probability of each count of a sparse matrix, in nats, as a dense tensor.

        Parameters
        ----------
        counts
            Counts of the cells and genes of the last two dimensions; dimensions before those are samples.
        """
        shape = self._shape_over(counts)
        theta = self.inverse_dispersion
        theta = theta.expand(counts.n_genes) if theta.dim() < 2 else theta.expand(shape)
        log_prob: Tensor = _LogProb.apply(self.mean.expand(shape), theta, counts)  # type: ignore[no-untyped-call]
        return log_prob

    def log_prob_sum(self, counts: SparseCounts) -> Float[Tensor, "..."]:
        """Return the log-probability of the counts of each cell, summed over genes, in nats.

        Equal to ``log_prob(counts.dense()).sum(-1)``, in less time and memory.

        Parameters
        ----------
        counts
            Counts of the cells and genes of the last two dimensions; dimensions before those are samples.
        """
        composed = self.composed_log_prob_sum(counts)
        return super().log_prob_sum(counts) if composed is None else composed

    def composed_log_prob_sum(
        self, counts: SparseCounts, zero_inflation_logits: Float[Tensor, "..."] | LinearLogits | None = None
    ) -> Float[Tensor, "..."] | None:
        """Return :meth:`log_prob_sum` in one pass where the mean is a composition that allows it, or else ``None``.

        Parameters
        ----------
        counts
            As for :meth:`log_prob_sum`.
        zero_inflation_logits
            Logits of additional zeros, for each gene or for each count, for the sum with these.
        """
        mean, theta = self._given_mean, self.inverse_dispersion
        if not isinstance(mean, Composition) or not mean.fits(counts, theta):
            return None
        return mean.log_prob_sum(counts, theta, zero_inflation_logits)

    def _row(self, shape: Size) -> Self:
        mean, theta = (term.expand(shape).reshape(1, -1) for term in (self.mean, self.inverse_dispersion))
        return type(self)(mean, theta, validate_args=False)
