r"""Negative binomial counts with a probability :math:`\pi_g(z)` of an extra zero."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from scvae_ext.distributions import NegativeBinomial, ZeroInflated
from scvae_ext.likelihoods.base import Likelihood
from scvae_ext.likelihoods.negative_binomial import NegativeBinomialLikelihood
from scvae_ext.likelihoods.statistics import GeneStatistics
from scvae_ext.minibatch import Minibatch
from scvae_ext.nn import DispersionKind, ZeroInflationHead, ZeroInflationKind
from scvae_ext.types import CellIndices

__all__ = ["ZeroInflatedNegativeBinomialLikelihood"]


class ZeroInflatedNegativeBinomialLikelihood(Likelihood[ZeroInflated]):
    r""":math:`x_g \mid z \sim \pi_g(z)\,\delta_0 + (1 - \pi_g(z))\operatorname{NB}(\ell\,\rho_g(z),\ \theta_g)`.

    A small mean and a large :math:`\pi` both explain zeros, so that :math:`\pi` need not be identifiable from the
    data; for droplet counts the negative binomial alone usually suffices (Svensson, Nature Biotechnology 2020).

    Parameters
    ----------
    n_hidden, n_genes, dispersion, n_batches, n_labels, compositional, n_residual
        As for :class:`Likelihood`.
    zero_inflation, zero_inflation_prior
        What :math:`\pi` belongs to, and its prior, as for :class:`~scvae_ext.nn.ZeroInflationHead`.
    """

    def __init__(
        self,
        n_hidden: int,
        n_genes: int,
        dispersion: DispersionKind,
        n_batches: int,
        n_labels: int,
        compositional: bool,
        zero_inflation: ZeroInflationKind = "gene-cell",
        zero_inflation_prior: Sequence[float] | None = None,
        *,
        n_residual: int = 0,
    ) -> None:
        super().__init__(n_hidden, n_genes, dispersion, n_batches, n_labels, compositional, n_residual=n_residual)
        self.base = NegativeBinomialLikelihood(
            n_hidden, n_genes, dispersion, n_batches, n_labels, compositional, n_residual=n_residual
        )
        self.zero_inflation = ZeroInflationHead(zero_inflation, n_hidden, n_genes, zero_inflation_prior)

    @override
    def initialise(self, statistics: GeneStatistics) -> None:
        self.base.initialise(statistics)

    @override
    def forward(
        self,
        hidden: Float[Tensor, "*samples cells hidden"],
        depth: Float[Tensor, "*#samples cells"],
        batch: CellIndices,
        label: CellIndices,
    ) -> ZeroInflated:
        base = self.base(hidden, depth, batch, label)
        return ZeroInflated(base, self.zero_inflation(hidden, base), validate_args=False)

    @override
    def expression(self, hidden: Float[Tensor, "*samples cells hidden"]) -> Float[Tensor, "*samples cells genes"]:
        return self.base.expression(hidden)

    @override
    def parameters_by_name(self, px: ZeroInflated) -> dict[str, Tensor]:
        base = px.base
        if not isinstance(base, NegativeBinomial):
            raise TypeError(f"px is an inflated {type(base).__name__}, not the inflated NegativeBinomial of forward().")
        return {**self.base.parameters_by_name(base), "dropout": px.zero_inflation_logits.sigmoid()}

    @override
    def log_prior(self) -> Float[Tensor, ""]:
        of_dispersion, of_inflation = self.base.log_prior(), self.zero_inflation.log_prior()
        return of_dispersion if of_inflation is None else of_dispersion + of_inflation

    @override
    def reconstruction(self, px: ZeroInflated, minibatch: Minibatch) -> Float[Tensor, "*samples cells"]:
        return px.log_prob_sum(minibatch.counts)
