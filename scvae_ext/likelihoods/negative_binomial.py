r"""Negative binomial counts: mean :math:`\ell\rho_g(z)`, variance mean + mean\ :sup:`2` / theta."""

from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from scvae_ext.distributions import NegativeBinomial
from scvae_ext.likelihoods.base import Likelihood
from scvae_ext.likelihoods.statistics import GeneStatistics
from scvae_ext.minibatch import Minibatch
from scvae_ext.nn import Dispersion, DispersionKind, ExpressionHead
from scvae_ext.types import CellIndices

__all__ = ["NegativeBinomialLikelihood"]


class NegativeBinomialLikelihood(Likelihood[NegativeBinomial]):
    r""":math:`x_g \mid z \sim \operatorname{NB}(\ell\,\rho_g(z),\ \theta_g)`, overdispersed counts."""

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
        self.dispersion = Dispersion(dispersion, n_hidden, n_genes, n_batches, n_labels)

    @override
    def initialise(self, statistics: GeneStatistics) -> None:
        self.expression_head.initialise(statistics.expression)
        # Genes with many counts say what is typical; the estimates of the others are noise.
        typical = (statistics.expression * statistics.inverse_dispersion.log()).sum() / statistics.expression.sum()
        self.dispersion.initialise(typical.exp().expand_as(statistics.inverse_dispersion))

    @override
    def forward(
        self,
        hidden: Float[Tensor, "*samples cells hidden"],
        depth: Float[Tensor, "*#samples cells"],
        batch: CellIndices,
        label: CellIndices,
    ) -> NegativeBinomial:
        mean = self.expression_head.expected_counts(hidden, depth)
        return NegativeBinomial(mean, self.dispersion(hidden, batch, label), validate_args=False)

    @override
    def expression(self, hidden: Float[Tensor, "*samples cells hidden"]) -> Float[Tensor, "*samples cells genes"]:
        expression: Tensor = self.expression_head(hidden)
        return expression

    @override
    def parameters_by_name(self, px: NegativeBinomial) -> dict[str, Tensor]:
        return {"mean": px.mean, "dispersions": px.inverse_dispersion}

    @override
    def log_prior(self) -> Float[Tensor, ""]:
        return self.dispersion.log_prior()

    @override
    def reconstruction(self, px: NegativeBinomial, minibatch: Minibatch) -> Float[Tensor, "*samples cells"]:
        return px.log_prob_sum(minibatch.counts)
