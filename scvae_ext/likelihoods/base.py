"""What every likelihood offers."""

from abc import ABC, abstractmethod
from typing import ClassVar, Generic, TypeVar

from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Distribution

from scvae_ext.likelihoods.statistics import GeneStatistics
from scvae_ext.minibatch import Minibatch
from scvae_ext.nn import DispersionKind
from scvae_ext.types import CellIndices

__all__ = ["Likelihood"]

AnyDistribution = TypeVar("AnyDistribution", bound=Distribution)


class Likelihood(nn.Module, ABC, Generic[AnyDistribution]):
    """Parameter heads of a distribution of counts given the decoder's hidden layer.

    Parameters
    ----------
    n_hidden, n_genes
        Numbers of decoder units and of genes.
    dispersion
        What a dispersion belongs to.
    n_batches, n_labels
        Numbers of batches and labels.
    compositional
        Whether depth is the library size, so that expression sums to one, or a size factor.
    n_residual
        Number of residual factors, which follow the decoder's activations in ``hidden`` and on which the log mean
        depends linearly; no other parameter does.
    """

    for_counts: ClassVar[bool] = True
    has_dispersion: ClassVar[bool] = True

    @abstractmethod
    def __init__(
        self,
        n_hidden: int,
        n_genes: int,
        dispersion: DispersionKind,
        n_batches: int,
        n_labels: int,
        compositional: bool,
        *,
        n_residual: int = 0,
    ) -> None:
        super().__init__()

    @abstractmethod
    def initialise(self, statistics: GeneStatistics) -> None:
        """Start from what the data say before any training.

        Parameters
        ----------
        statistics
            Moments of each gene.
        """

    @abstractmethod
    def forward(
        self,
        hidden: Float[Tensor, "*samples cells hidden"],
        depth: Float[Tensor, "*#samples cells"],
        batch: CellIndices,
        label: CellIndices,
    ) -> AnyDistribution:
        """Return p(x given z), of batch shape (..., cells, genes).

        Parameters
        ----------
        hidden
            Activations of the decoder.
        depth
            Library size in counts, or size factor.
        batch, label
            Batch and label of each cell.
        """

    @abstractmethod
    def expression(self, hidden: Float[Tensor, "*samples cells hidden"]) -> Float[Tensor, "*samples cells genes"]:
        """Return expected expression per unit of depth; sums to one per cell if depth is the library size.

        Parameters
        ----------
        hidden
            Activations of the decoder.
        """

    @abstractmethod
    def parameters_by_name(self, px: AnyDistribution) -> dict[str, Tensor]:
        """Return the parameters of the distribution by the names that users know.

        Parameters
        ----------
        px
            What ``forward`` returned.
        """

    def log_prior(self) -> Float[Tensor, ""] | None:
        """Return the log density of a prior on the parameters, in nats for all cells together, if there is one."""
        return None

    def draw_counts(
        self, px: AnyDistribution, depth: Float[Tensor, "*#samples cells"]
    ) -> Float[Tensor, "*samples cells genes"]:
        """Draw counts by torch's default generator.

        Parameters
        ----------
        px
            What ``forward`` returned.
        depth
            Library size in counts, or size factor, that it was given.
        """
        counts: Tensor = px.sample()
        return counts

    @abstractmethod
    def reconstruction(self, px: AnyDistribution, minibatch: Minibatch) -> Float[Tensor, "*samples cells"]:
        r"""Return :math:`\sum_g \log p(x_g \mid z)` in nats.

        Parameters
        ----------
        px
            What ``forward`` returned.
        minibatch
            The cells.
        """
