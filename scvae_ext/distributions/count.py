"""The common form of the count distributions."""

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float, Num
from torch import Size, Tensor
from torch.distributions import Distribution, constraints

from scvae_ext.minibatch import SparseCounts

__all__ = ["CountDistribution"]


class CountDistribution(Distribution, ABC):
    """A distribution over counts, independent for each cell and gene.

    Besides what every :class:`torch.distributions.Distribution` offers, it evaluates the log-probability of sparse
    counts, where most of the work of the dense formula cancels.
    """

    support = constraints.nonnegative_integer

    @abstractmethod
    def log_prob(self, value: Num[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Return the log-probability of each count, in nats.

        Parameters
        ----------
        value
            Counts; integer tensors are converted. Where arguments are not validated, negative values have
            log-probability ``-inf`` and fractions have no meaning.
        """

    @abstractmethod
    def log_prob_zero(self) -> Float[Tensor, "..."]:
        """Return the log-probability of a count of zero, in nats."""

    @abstractmethod
    def log_prob_sparse(self, counts: SparseCounts) -> Float[Tensor, "*samples cells genes"]:
        """Return the log-probability of each count of a sparse matrix, in nats.

        Parameters
        ----------
        counts
            Counts of the cells and genes of the last two dimensions.
        """

    def log_prob_sum(self, counts: SparseCounts) -> Float[Tensor, "*samples cells"]:
        """Return the log-probability of the counts of each cell, summed over genes, in nats.

        Equal to ``log_prob(counts.dense()).sum(-1)``, but expensive functions are evaluated only at the entries that
        are not zero, and gradients are derived by hand. It can be differentiated once.

        Parameters
        ----------
        counts
            Counts of the cells and genes of the last two dimensions.

        Raises
        ------
        ValueError
            If the counts have another shape than the distribution.
        """
        return self.log_prob_sparse(counts).sum(-1)

    def _sparse_shape(self, counts: SparseCounts) -> Size:
        """Return the shape of the parameters over the cells and genes of the counts."""
        matrix = (counts.n_cells, counts.n_genes)
        try:
            shape = torch.broadcast_shapes(self.batch_shape, matrix)
        except RuntimeError:
            shape = Size()
        if shape[-2:] != matrix:
            raise ValueError(
                f"the counts have {counts.n_cells} cells and {counts.n_genes} genes, the distribution has batch_shape "
                f"{tuple(self.batch_shape)}: pass parameters of shape (..., n_cells, n_genes), or (n_genes,)"
            )
        return shape

    def _mask_outside(self, value: Float[Tensor, "..."], log_prob: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return torch.where(value < 0, -torch.inf, log_prob)
