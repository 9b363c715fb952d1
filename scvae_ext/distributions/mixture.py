"""A mixture of two count distributions."""

from typing import Self

import torch
from jaxtyping import Bool, Float
from torch import Size, Tensor
from torch.distributions import constraints
from torch.nn.functional import logsigmoid

from scvae_ext.distributions.count import CountDistribution, Shape
from scvae_ext.minibatch import SparseCounts

__all__ = ["Mixture"]


class Mixture(CountDistribution):
    r"""Mixture of two count distributions, such as background and foreground of a protein.

    .. math:: p(x) = \pi\, p_1(x) + (1 - \pi)\, p_2(x)

    Parameters
    ----------
    first, second
        The two distributions.
    first_logits
        Logit of :math:`\pi`, the probability of the first. Any shape that broadcasts against them.
    validate_args
        Whether to check parameters and values; as :class:`torch.distributions.Distribution` by default.

    Raises
    ------
    ValueError
        If arguments are validated and a logit is NaN.

    Examples
    --------
    >>> import torch
    >>> from scvae_ext.distributions import Poisson
    >>> Mixture(Poisson(torch.tensor(1.0)), Poisson(torch.tensor(9.0)), torch.tensor(0.0)).mean
    tensor(5.)
    """

    arg_constraints = {"first_logits": constraints.real}  # noqa: RUF012

    def __init__(
        self,
        first: CountDistribution,
        second: CountDistribution,
        first_logits: Float[Tensor, "..."],
        validate_args: bool | None = None,
    ) -> None:
        shape = torch.broadcast_shapes(first.batch_shape, second.batch_shape, first_logits.shape)
        self.first = first if first.batch_shape == shape else first.expand(shape)
        self.second = second if second.batch_shape == shape else second.expand(shape)
        self.first_logits = first_logits
        super().__init__(shape, validate_args=validate_args)

    @property
    def first_probability(self) -> Float[Tensor, "..."]:
        """Probability of the first distribution."""
        return self.first_logits.sigmoid().expand(self.batch_shape)

    @property
    def mean(self) -> Float[Tensor, "..."]:
        """Expected count."""
        return torch.lerp(self.second.mean, self.first.mean, self.first_probability)

    @property
    def variance(self) -> Float[Tensor, "..."]:
        r"""Variance of the count, :math:`\pi v_1 + (1 - \pi) v_2 + \pi (1 - \pi) (m_1 - m_2)^2`."""
        share = self.first_probability
        within = torch.lerp(self.second.variance, self.first.variance, share)
        return within + share * (1 - share) * (self.first.mean - self.second.mean).square()

    def expand(self, batch_shape: Shape, _instance: None = None) -> Self:
        """Return the same distribution over a larger batch shape, without a copy.

        Parameters
        ----------
        batch_shape
            The new batch shape.
        """
        logits = self.first_logits.expand(batch_shape)
        return type(self)(self.first.expand(batch_shape), self.second.expand(batch_shape), logits, self._validate_args)

    def sample(self, sample_shape: Shape = ()) -> Float[Tensor, "..."]:
        """Draw counts.

        Parameters
        ----------
        sample_shape
            Dimensions put before those of the batch shape.
        """
        with torch.no_grad():
            is_first: Bool[Tensor, ...] = self._draw_first(sample_shape)
            return torch.where(is_first, self.first.sample(sample_shape), self.second.sample(sample_shape))

    def sample_rate(self, sample_shape: Shape = ()) -> Float[Tensor, "..."]:
        """Draw the rates of Poisson distributions, each from one of the two.

        Parameters
        ----------
        sample_shape
            Dimensions put before those of the batch shape.
        """
        with torch.no_grad():
            is_first: Bool[Tensor, ...] = self._draw_first(sample_shape)
            return torch.where(is_first, self.first.sample_rate(sample_shape), self.second.sample_rate(sample_shape))

    def log_prob_zero(self) -> Float[Tensor, "..."]:
        """Return the log-probability of a count of zero, in nats."""
        return self._of_both(self.first.log_prob_zero(), self.second.log_prob_zero())

    def log_prob_sparse(self, counts: SparseCounts) -> Float[Tensor, "..."]:
        """Return the log-probability of each count of a sparse matrix, in nats, as a dense tensor.

        Parameters
        ----------
        counts
            Counts of the cells and genes of the last two dimensions; dimensions before those are samples.
        """
        return self._of_both(self.first.log_prob_sparse(counts), self.second.log_prob_sparse(counts))

    def first_logits_given(self, counts: SparseCounts) -> Float[Tensor, "..."]:
        r"""Return the logit of the probability that a count came from the first, :math:`p(1 \mid x)`.

        Parameters
        ----------
        counts
            As for :meth:`log_prob_sparse`.
        """
        return self.first_logits + (self.first.log_prob_sparse(counts) - self.second.log_prob_sparse(counts))

    def _of_both(self, of_first: Tensor, of_second: Tensor) -> Tensor:
        return torch.logaddexp(logsigmoid(self.first_logits) + of_first, logsigmoid(-self.first_logits) + of_second)

    def _draw_first(self, sample_shape: Shape) -> Bool[Tensor, "..."]:
        return torch.bernoulli(self.first_probability.expand(self._extended_shape(sample_shape))).bool()

    def _row(self, shape: Size) -> Self:
        first, second = self.first._row(shape), self.second._row(shape)
        return type(self)(first, second, self.first_logits.expand(shape).reshape(1, -1), validate_args=False)
