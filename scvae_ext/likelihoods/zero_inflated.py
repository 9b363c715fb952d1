r"""Negative binomial counts with a probability :math:`\pi_g(z)` of an extra zero."""

from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from scvae_ext.distributions import NegativeBinomial, ZeroInflated
from scvae_ext.likelihoods.base import Likelihood
from scvae_ext.likelihoods.negative_binomial import NegativeBinomialLikelihood
from scvae_ext.likelihoods.statistics import GeneStatistics
from scvae_ext.minibatch import Minibatch
from scvae_ext.nn import DispersionKind, ZeroInflationHead
from scvae_ext.types import CellIndices

__all__ = ["ZeroInflatedNegativeBinomialLikelihood"]


class ZeroInflatedNegativeBinomialLikelihood(Likelihood[ZeroInflated]):
    r""":math:`x_g \mid z \sim \pi_g(z)\,\delta_0 + (1 - \pi_g(z))\operatorname{NB}(\ell\,\rho_g(z),\ \theta_g)`.

    A small mean and a large :math:`\pi` both explain zeros, so that :math:`\pi` need not be identifiable from the
    data; for droplet counts the negative binomial alone usually suffices (Svensson, Nature Biotechnology 2020).
    """

    def __init__(
        self,
        n_hidden: int,
        n_genes: int,
        dispersion: DispersionKind,
        n_batches: int,
        n_labels: int,
        compositional: bool,
    ) -> None:
        super().__init__(n_hidden, n_genes, dispersion, n_batches, n_labels, compositional)
        self.base = NegativeBinomialLikelihood(n_hidden, n_genes, dispersion, n_batches, n_labels, compositional)
        self.zero_inflation = ZeroInflationHead(n_hidden, n_genes)

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
        return ZeroInflated(base, self.zero_inflation(hidden), validate_args=False)

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
        return self.base.log_prior()

    @override
    def reconstruction(self, px: ZeroInflated, minibatch: Minibatch) -> Float[Tensor, "*samples cells"]:
        return px.log_prob_sum(minibatch.counts)
