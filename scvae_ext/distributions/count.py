"""The common form of the count distributions."""

from abc import ABC, abstractmethod
from typing import Self

import torch
from jaxtyping import Float, Num
from torch import Size, Tensor
from torch.distributions import Distribution, constraints

from scvae_ext.minibatch import SparseCounts

__all__ = ["CountDistribution", "Shape", "flatten_matrix", "put_"]

Shape = Size | list[int] | tuple[int, ...]
"""What torch takes for a shape."""


class CountDistribution(Distribution, ABC):
    """A distribution over counts, independent for each cell and gene.

    Besides what every :class:`torch.distributions.Distribution` offers, it evaluates the log-probability of sparse
    counts. Functions that are expensive are evaluated only at entries that are not zero, and gradients are derived by
    hand; log-probabilities can be differentiated once.
    """

    support = constraints.nonnegative_integer

    def sample(self, sample_shape: Shape = ()) -> Float[Tensor, "..."]:
        """Draw counts, as Poisson counts whose rates are drawn first.

        Parameters
        ----------
        sample_shape
            Dimensions put before those of the batch shape.
        """
        with torch.no_grad():
            return torch.poisson(self.sample_rate(sample_shape))

    @abstractmethod
    def sample_rate(self, sample_shape: Shape = ()) -> Float[Tensor, "..."]:
        """Draw the rates of the Poisson distributions that counts come from: all that varies besides these.

        Parameters
        ----------
        sample_shape
            Dimensions put before those of the batch shape.
        """

    @abstractmethod
    def log_prob_zero(self) -> Float[Tensor, "..."]:
        """Return the log-probability of a count of zero, in nats."""

    @abstractmethod
    def log_prob_sparse(self, counts: SparseCounts) -> Float[Tensor, "..."]:
        """Return the log-probability of each count of a sparse matrix, in nats, as a dense tensor.

        Parameters
        ----------
        counts
            Counts of the cells and genes of the last two dimensions; dimensions before those are samples.

        Raises
        ------
        ValueError
            If the counts have another shape than the distribution.
        """

    @abstractmethod
    def _row(self, shape: Size) -> Self:
        """Return the same distribution, expanded to a shape and laid out as a matrix of one row."""

    def log_prob(self, value: Num[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Return the log-probability of each count, in nats.

        Parameters
        ----------
        value
            Counts; integer tensors are converted. Where arguments are not validated, negative values have
            log-probability ``-inf``, and fractions have no meaning.

        Raises
        ------
        ValueError
            If arguments are validated and a value is not a count.
        """
        if self._validate_args:
            self._validate_sample(value)
        shape = torch.broadcast_shapes(value.shape, self.batch_shape)
        value = value.to(self.mean.dtype).expand(shape)
        counts = SparseCounts.from_dense(value.reshape(1, -1).clamp(min=0))
        log_prob = self._row(shape).log_prob_sparse(counts).view(shape)
        return log_prob.masked_fill(value < 0, -torch.inf)

    def log_prob_sum(self, counts: SparseCounts) -> Float[Tensor, "..."]:
        """Return the log-probability of the counts of each cell, summed over genes, in nats.

        Equal to ``log_prob(counts.dense()).sum(-1)``, in less time and memory.

        Parameters
        ----------
        counts
            Counts of the cells and genes of the last two dimensions; dimensions before those are samples.

        Raises
        ------
        ValueError
            If the counts have another shape than the distribution.
        """
        return self.log_prob_sparse(counts).sum(-1)

    def _shape_over(self, counts: SparseCounts) -> Size:
        """Return the batch shape broadcast over the cells and genes of the counts."""
        matrix = (counts.n_cells, counts.n_genes)
        try:
            shape: Size = torch.broadcast_shapes(self.batch_shape, matrix)
        except RuntimeError:
            shape = Size()
        if shape[-2:] != matrix:
            raise ValueError(
                f"counts of {counts.n_cells} cells and {counts.n_genes} genes do not fit a distribution of batch_shape "
                f"{tuple(self.batch_shape)}: pass parameters of shape (n_cells, n_genes), with samples in front, "
                "or (n_genes,)"
            )
        return shape


def flatten_matrix(tensor: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Merge the last two dimensions, so that ``SparseCounts.flat_index`` addresses the last one.

    Parameters
    ----------
    tensor
        Values of cells and genes in the last two dimensions.
    """
    return tensor.reshape(*tensor.shape[:-2], -1)


def put_(matrix: Float[Tensor, "..."], index: Tensor, values: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Overwrite entries of a contiguous matrix in place, and return it.

    Parameters
    ----------
    matrix
        Values of cells and genes in the last two dimensions.
    index
        Positions in the flattened matrix, none of them twice.
    values
        One value for each position; a shape that broadcasts will do.
    """
    # scatter_ takes half the time of index_copy_.
    flat = matrix.view(*matrix.shape[:-2], -1)
    where = index.expand(*flat.shape[:-1], -1)
    flat.scatter_(-1, where, values.expand_as(where))
    return matrix
