"""Gaussian log-normalised expression, the classical choice for continuous values."""

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Normal
from typing_extensions import override

from scvae_ext.likelihoods.base import Likelihood
from scvae_ext.likelihoods.statistics import LOG_TARGET_DEPTH, GeneStatistics, log_normalised_matrix
from scvae_ext.minibatch import Minibatch
from scvae_ext.nn import Dispersion, DispersionKind, LogExpressionHead
from scvae_ext.types import CellIndices

__all__ = ["NormalLikelihood"]


class NormalLikelihood(Likelihood[Normal]):
    r""":math:`\log(1 + 10^4 x_g / \ell) \mid z \sim \mathcal N(\mu_g(z), \sigma_g^2)`.

    The density is that of the transformed values; it is not on the scale of the probabilities of counts that the
    other likelihoods give. With size factors :math:`s` the transformed value is :math:`\log(1 + x_g / s)`.
    """

    for_counts: ClassVar[bool] = False

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
        self.location = LogExpressionHead(n_hidden, n_genes, n_residual=n_residual, compositional=compositional)
        self.scale = Dispersion(dispersion, n_hidden, n_genes, n_batches, n_labels)
        self.compositional = compositional

    @override
    def initialise(self, statistics: GeneStatistics) -> None:
        self.location.initialise(statistics.log_mean)
        self.scale.initialise(statistics.log_std)

    @override
    def forward(
        self,
        hidden: Float[Tensor, "*samples cells hidden"],
        depth: Float[Tensor, "*#samples cells"],
        batch: CellIndices,
        label: CellIndices,
    ) -> Normal:
        return Normal(self.location(hidden), self.scale(hidden, batch, label), validate_args=False)

    @override
    def expression(self, hidden: Float[Tensor, "*samples cells hidden"]) -> Float[Tensor, "*samples cells genes"]:
        return self.location.expression(hidden)

    @override
    def parameters_by_name(self, px: Normal) -> dict[str, Tensor]:
        return {"mean": px.loc, "scale": px.scale}

    @override
    def reconstruction(self, px: Normal, minibatch: Minibatch) -> Float[Tensor, "*samples cells"]:
        values = log_normalised_matrix(minibatch, compositional=self.compositional)
        log_prob: Tensor = px.log_prob(values).sum(-1)
        return log_prob

    @override
    def draw_counts(self, px: Normal, depth: Float[Tensor, "*#samples cells"]) -> Float[Tensor, "*samples cells genes"]:
        return self.to_counts(px.sample(), depth).round()

    def to_counts(
        self, values: Float[Tensor, "*samples cells genes"], depth: Float[Tensor, "*#samples cells"]
    ) -> Float[Tensor, "*samples cells genes"]:
        """Return log-normalised values on the scale of counts.

        Parameters
        ----------
        values
            Log-normalised values.
        depth
            Library size in counts, or size factor.
        """
        scale = depth / (LOG_TARGET_DEPTH if self.compositional else 1.0)
        return torch.expm1(values.clamp_min(0)) * scale.unsqueeze(-1)
