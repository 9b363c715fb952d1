"""A count distribution with additional zeros."""

from functools import cached_property
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Size, Tensor
from torch.autograd.function import once_differentiable
from torch.distributions import constraints
from torch.nn.functional import logsigmoid

from scvae_ext.distributions.composition import LinearLogits
from scvae_ext.distributions.count import CountDistribution, Shape, put_
from scvae_ext.distributions.negative_binomial import NegativeBinomial
from scvae_ext.minibatch import SparseCounts

__all__ = ["ZeroInflated"]

# Factors lie between 1/2 and 2, so a product of this many neither overflows nor underflows in float32.
_CHUNK = 64


def _sum_of_logs(factors: Tensor) -> Tensor:
    """Sum the logs of values in [1/2, 2] over the last dimension, with one log for each chunk of them."""
    whole = factors.shape[-1] // _CHUNK * _CHUNK
    chunks: Tensor = factors[..., :whole].unflatten(-1, (whole // _CHUNK, _CHUNK)).prod(-1)
    return chunks.log().sum(-1) + factors[..., whole:].prod(-1).log()


class _LogProbSum(torch.autograd.Function):
    """Sum over genes of the zero-inflated log-probability, given that of the base for the same sparse counts.

    Where a count is not zero, an additional zero is impossible. With its logit at ``-inf`` there, what holds for a
    zero holds for every entry: p = (e^logit + p_base) / (1 + e^logit).
    """

    @staticmethod
    def forward(ctx: Any, base: Tensor, logits: Tensor, counts: SparseCounts) -> Tensor:
        inflation = logits.sigmoid()
        extra = logits.expand(base.shape).clone(memory_format=torch.contiguous_format)
        put_(extra, counts.flat_index, extra.new_full((1,), -torch.inf))
        from_base = (base - extra).sigmoid_()
        from_extra = torch.rsub(from_base, 1)
        # log p = max(extra, base) - max(logit, 0) + log(s(|logit|) / s(|base - extra|)), s the logistic function.
        largest = torch.maximum(extra, base, out=extra).sub_(logits.clamp(min=0)).sum(-1)
        factors = torch.maximum(from_base, from_extra, out=extra).reciprocal_()
        without = torch.rsub(inflation, 1)
        factors.mul_(torch.maximum(inflation, without, out=without))
        ctx.save_for_backward(from_base, from_extra.sub_(inflation))
        ctx.logits_per_gene = logits.dim() == 1
        return largest + _sum_of_logs(factors)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        by_base, by_logits = ctx.saved_tensors
        column = grad.unsqueeze(-1)
        grad_base = column * by_base if ctx.needs_input_grad[0] else None
        grad_logits = None
        if ctx.needs_input_grad[1]:
            per_gene = ctx.logits_per_gene
            grad_logits = by_logits.flatten(0, -2).T @ grad.flatten() if per_gene else column * by_logits
        return grad_base, grad_logits, None


class ZeroInflated(CountDistribution):
    r"""Mixture of a count distribution and a point mass at zero.

    .. math:: p(0) = \pi + (1 - \pi)\, p_{\text{base}}(0), \qquad p(x) = (1 - \pi)\, p_{\text{base}}(x)
        \quad \text{for } x > 0

    Parameters
    ----------
    base
        The count distribution.
    zero_inflation_logits
        Logit of :math:`\pi`, the probability of an additional zero. Any shape that broadcasts against the base. Logits
        that a linear map has yet to compute are computed when they are needed.
    validate_args
        Whether to check parameters and values; as :class:`torch.distributions.Distribution` by default.

    Raises
    ------
    ValueError
        If arguments are validated and a logit is NaN.

    References
    ----------
    Lambert (1992), Zero-Inflated Poisson Regression, with an Application to Defects in Manufacturing.

    Examples
    --------
    >>> import torch
    >>> from scvae_ext.distributions import Poisson
    >>> ZeroInflated(Poisson(torch.tensor(4.0)), torch.tensor(0.0)).mean
    tensor(2.)
    """

    arg_constraints = {"zero_inflation_logits": constraints.real}  # noqa: RUF012

    def __init__(
        self,
        base: CountDistribution,
        zero_inflation_logits: Float[Tensor, "..."] | LinearLogits,
        validate_args: bool | None = None,
    ) -> None:
        shape = torch.broadcast_shapes(base.batch_shape, zero_inflation_logits.shape)
        self.base = base if base.batch_shape == shape else base.expand(shape)
        self._given_logits = zero_inflation_logits
        super().__init__(shape, validate_args=validate_args)

    @cached_property
    def zero_inflation_logits(self) -> Float[Tensor, "..."]:
        """Logit of the probability of an additional zero."""
        given = self._given_logits
        return given.logits() if isinstance(given, LinearLogits) else given

    @property
    def zero_inflation_probability(self) -> Float[Tensor, "..."]:
        """Probability of an additional zero."""
        return self.zero_inflation_logits.sigmoid()

    @property
    def mean(self) -> Float[Tensor, "..."]:
        """Expected count."""
        return self.base.mean * (-self.zero_inflation_logits).sigmoid()

    @property
    def variance(self) -> Float[Tensor, "..."]:
        """Variance of the count."""
        within = self.base.variance + self.zero_inflation_probability * self.base.mean.square()
        return within * (-self.zero_inflation_logits).sigmoid()

    def expand(self, batch_shape: Shape, _instance: None = None) -> Self:
        """Return the same distribution over a larger batch shape, without a copy.

        Parameters
        ----------
        batch_shape
            The new batch shape.
        """
        return type(self)(self.base.expand(batch_shape), self.zero_inflation_logits, self._validate_args)

    def sample(self, sample_shape: Shape = ()) -> Float[Tensor, "..."]:
        """Draw counts.

        Parameters
        ----------
        sample_shape
            Dimensions put before those of the batch shape.
        """
        with torch.no_grad():
            counts = self.base.sample(sample_shape)
            return counts.masked_fill_(torch.rand_like(counts) < self.zero_inflation_probability, 0)

    def sample_rate(self, sample_shape: Shape = ()) -> Float[Tensor, "..."]:
        """Draw the rates of Poisson distributions: zero where there is an additional zero.

        Parameters
        ----------
        sample_shape
            Dimensions put before those of the batch shape.
        """
        with torch.no_grad():
            rate = self.base.sample_rate(sample_shape)
            return rate.masked_fill(torch.rand_like(rate) < self.zero_inflation_probability, 0)

    def log_prob_zero(self) -> Float[Tensor, "..."]:
        """Return the log-probability of a count of zero, in nats."""
        logits = self.zero_inflation_logits
        return torch.logaddexp(logits, self.base.log_prob_zero()) + logsigmoid(-logits)

    def log_prob_sparse(self, counts: SparseCounts) -> Float[Tensor, "..."]:
        """Return the log-probability of each count of a sparse matrix, in nats, as a dense tensor.

        Parameters
        ----------
        counts
            Counts of the cells and genes of the last two dimensions; dimensions before those are samples.
        """
        logits = self.zero_inflation_logits
        base = self.base.log_prob_sparse(counts)
        inflated = torch.where(counts.dense() == 0, torch.logaddexp(logits, base), base)
        return inflated + logsigmoid(-logits)

    def log_prob_sum(self, counts: SparseCounts) -> Float[Tensor, "..."]:
        """Return the log-probability of the counts of each cell, summed over genes, in nats.

        Equal to ``log_prob(counts.dense()).sum(-1)``, in less time and memory.

        Parameters
        ----------
        counts
            Counts of the cells and genes of the last two dimensions; dimensions before those are samples.
        """
        shape = self._shape_over(counts)
        logits = self._given_logits
        if isinstance(logits, Tensor):
            logits = logits.expand(counts.n_genes) if logits.dim() < 2 else logits.expand(shape)
        if isinstance(self.base, NegativeBinomial):
            composed = self.base.composed_log_prob_sum(counts, logits)
            if composed is not None:
                return composed
        if isinstance(logits, LinearLogits):
            logits = self.zero_inflation_logits
        log_prob: Tensor = _LogProbSum.apply(self.base.log_prob_sparse(counts), logits, counts)  # type: ignore[no-untyped-call]
        return log_prob

    def _row(self, shape: Size) -> Self:
        logits = self.zero_inflation_logits.expand(shape).reshape(1, -1)
        return type(self)(self.base._row(shape), logits, validate_args=False)
