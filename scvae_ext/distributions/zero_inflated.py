"""A count distribution with additional zeros."""

from typing import Any, Self

import torch
from jaxtyping import Float, Num
from torch import Size, Tensor
from torch.autograd.function import once_differentiable
from torch.distributions import constraints
from torch.nn.functional import logsigmoid

from scvae_ext.distributions.count import CountDistribution
from scvae_ext.minibatch import SparseCounts

__all__ = ["ZeroInflated"]

# Factors lie between 1/2 and 2, so a product of this many neither overflows nor underflows in float32.
_CHUNK = 64


def _sum_of_logs(factors: Tensor) -> Tensor:
    """Sum over the last dimension of the logs of values in [1/2, 2], with one log for each chunk of them."""
    whole = factors.shape[-1] // _CHUNK * _CHUNK
    chunks = factors[..., :whole].unflatten(-1, (-1, _CHUNK)).prod(-1) if whole else factors[..., :0]
    return chunks.log().sum(-1) + factors[..., whole:].prod(-1).log()


class _SparseSum(torch.autograd.Function):
    """Sum over genes of the zero-inflated log-probability, given that of the base at the same sparse counts.

    Where a count is not zero, the additional zero is impossible: its logit is set to ``-inf``, and the formula of
    a zero then holds for every entry.
    """

    @staticmethod
    def forward(ctx: Any, base: Tensor, logits: Tensor, index: Tensor) -> Tensor:
        numerator = logits.expand(base.shape).clone(memory_format=torch.contiguous_format)
        flat = numerator.view(*base.shape[:-2], -1)
        flat.scatter_(
            -1, index.expand(*flat.shape[:-1], -1), flat.new_full((1,), -torch.inf).expand(*flat.shape[:-1], len(index))
        )
        difference = base - numerator
        from_base = difference.sigmoid()
        inflation = logits.sigmoid()
        ctx.save_for_backward(from_base, inflation)
        # log(e^l + e^b) - log(1 + e^l) = max(l, b) - max(l, 0) + log(sigmoid(|l|) / sigmoid(|b - l|))
        leading = torch.maximum(numerator, base).sub_(logits.clamp(min=0))
        factors = logits.abs().sigmoid() / difference.abs().sigmoid()
        return leading.sum(-1) + _sum_of_logs(factors)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        from_base, inflation = ctx.saved_tensors
        column = grad.unsqueeze(-1)
        grad_base = column * from_base
        by_logits = (1 - from_base).sub_(inflation)
        if inflation.dim() == 1:
            grad_logits = by_logits.flatten(0, -2).T @ grad.reshape(-1)
        else:
            grad_logits = column * by_logits
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
        Logit of :math:`\pi`, the probability of an additional zero. Any shape that broadcasts against the base.
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
        zero_inflation_logits: Float[Tensor, "..."],
        validate_args: bool | None = None,
    ) -> None:
        shape = torch.broadcast_shapes(base.batch_shape, zero_inflation_logits.shape)
        self.base = base if base.batch_shape == shape else base.expand(shape)
        self.zero_inflation_logits = zero_inflation_logits
        super().__init__(shape, validate_args=validate_args)

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

    def expand(self, batch_shape: Size, _instance: Any = None) -> Self:
        """Return the same distribution over a larger batch shape, without a copy.

        Parameters
        ----------
        batch_shape
            The new batch shape.
        """
        new = self._get_checked_instance(ZeroInflated, _instance)
        new.base = self.base.expand(batch_shape)
        new.zero_inflation_logits = self.zero_inflation_logits
        super(ZeroInflated, new).__init__(Size(batch_shape), validate_args=False)
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
            counts = self.base.sample(sample_shape)
            return counts.masked_fill_(torch.rand_like(counts) < self.zero_inflation_probability, 0)

    def log_prob(self, value: Num[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Return the log-probability of each count, in nats; differentiable twice.

        Parameters
        ----------
        value
            Counts.
        """
        if self._validate_args:
            self._validate_sample(value)
        base = self.base.log_prob(value)
        inflated = torch.where(value == 0, torch.logaddexp(self.zero_inflation_logits, base), base)
        return inflated + logsigmoid(-self.zero_inflation_logits)

    def log_prob_zero(self) -> Float[Tensor, "..."]:
        """Return the log-probability of a count of zero, in nats."""
        logits = self.zero_inflation_logits
        return torch.logaddexp(logits, self.base.log_prob_zero()) + logsigmoid(-logits)

    def log_prob_sparse(self, counts: SparseCounts) -> Float[Tensor, "*samples cells genes"]:
        """Return the log-probability of each count of a sparse matrix, in nats.

        Parameters
        ----------
        counts
            Counts of the cells and genes of the last two dimensions.
        """
        logits = self.zero_inflation_logits
        base = self.base.log_prob_sparse(counts)
        occupied = counts.scatter(torch.ones_like(counts.values)) > 0
        return torch.where(occupied, base, torch.logaddexp(logits, base)) + logsigmoid(-logits)

    def log_prob_sum(self, counts: SparseCounts) -> Float[Tensor, "*samples cells"]:
        """Return the log-probability of the counts of each cell, summed over genes, in nats.

        Parameters
        ----------
        counts
            Counts of the cells and genes of the last two dimensions.
        """
        logits = self.zero_inflation_logits
        logits = logits.expand(counts.n_genes) if logits.dim() < 2 else logits.expand(self._sparse_shape(counts))
        return _SparseSum.apply(self.base.log_prob_sparse(counts), logits, counts.flat_index)
