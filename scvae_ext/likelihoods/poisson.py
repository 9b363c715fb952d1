r"""Poisson counts: the variance is the mean :math:`\ell\rho_g(z)`."""

from typing import ClassVar

from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from scvae_ext.distributions import Composition, Poisson
from scvae_ext.likelihoods.base import Likelihood
from scvae_ext.likelihoods.statistics import GeneStatistics
from scvae_ext.minibatch import Minibatch
from scvae_ext.nn import DispersionKind, ExpressionHead
from scvae_ext.types import CellIndices

__all__ = ["PoissonLikelihood"]


class PoissonLikelihood(Likelihood[Poisson]):
    r""":math:`x_g \mid z \sim \operatorname{Poisson}(\ell\,\rho_g(z))`, sampling noise alone."""

    has_dispersion: ClassVar[bool] = False

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
        super().__init__(n_hidden, n_genes, dispersion, n_batches, n_labels, compositional, n_residual=n_residual)
        self.expression_head = ExpressionHead(n_hidden, n_genes, n_residual=n_residual, compositional=compositional)

    @override
    def initialise(self, statistics: GeneStatistics) -> None:
        self.expression_head.initialise(statistics.expression)

    @override
    def forward(
        self,
        hidden: Float[Tensor, "*samples cells hidden"],
        depth: Float[Tensor, "*#samples cells"],
        batch: CellIndices,
        label: CellIndices,
    ) -> Poisson:
        rate = self.expression_head.expected_counts(hidden, depth)
        return Poisson(rate.mean if isinstance(rate, Composition) else rate, validate_args=False)

    @override
    def expression(self, hidden: Float[Tensor, "*samples cells hidden"]) -> Float[Tensor, "*samples cells genes"]:
        expression: Tensor = self.expression_head(hidden)
        return expression

    @override
    def parameters_by_name(self, px: Poisson) -> dict[str, Tensor]:
        return {"mean": px.rate}

    @override
    def reconstruction(self, px: Poisson, minibatch: Minibatch) -> Float[Tensor, "*samples cells"]:
        return px.log_prob_sum(minibatch.counts)
