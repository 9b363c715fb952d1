"""Probabilities of counts under a Gaussian on log-normalised values, on the scale of the count likelihoods."""

import copy
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Normal
from torch.special import log_ndtr
from typing_extensions import override

from scvae_ext.likelihoods import GeneStatistics, Likelihood, NormalLikelihood, depth
from scvae_ext.likelihoods.statistics import LOG_TARGET_DEPTH
from scvae_ext.minibatch import Minibatch
from scvae_ext.models import SCVAE
from scvae_ext.types import CellIndices

__all__ = ["RoundedNormalLikelihood", "on_scale_of_counts"]

# Below this width, in standard deviations, density times width is more exact than a difference of two probabilities.
NARROW = 1e-5


class RoundedNormalLikelihood(Likelihood[Normal]):
    r"""Probability of the count that a Gaussian log-normalised value rounds to.

    With :math:`y \mid z \sim \mathcal N(\mu_g(z), \sigma_g^2)` and the value :math:`t(x) = \log(1 + 10^4 x / \ell)`
    that a count stands for, the nearest count to :math:`t^{-1}(y)` is :math:`x` with probability

    .. math::
        P(x) = \Phi\left(\frac{t(x + \frac12) - \mu_g}{\sigma_g}\right)
             - \Phi\left(\frac{t(x - \frac12) - \mu_g}{\sigma_g}\right), \qquad
        P(0) = \Phi\left(\frac{t(\frac12) - \mu_g}{\sigma_g}\right).

    The intervals cover the line, so that these sum to one, as the probabilities of a count likelihood do. Counts drawn
    by :meth:`~scvae_ext.SCVAE.posterior_predictive_sample` follow them.

    Parameters
    ----------
    normal
        Likelihood of the log-normalised values.
    """

    for_counts: ClassVar[bool] = True

    def __init__(self, normal: NormalLikelihood) -> None:
        torch.nn.Module.__init__(self)
        self.normal = normal

    @override
    def initialise(self, statistics: GeneStatistics) -> None:
        self.normal.initialise(statistics)

    @override
    def forward(
        self,
        hidden: Float[Tensor, "*samples cells hidden"],
        depth: Float[Tensor, "*#samples cells"],
        batch: CellIndices,
        label: CellIndices,
    ) -> Normal:
        normal: Normal = self.normal(hidden, depth, batch, label)
        return normal

    @override
    def expression(self, hidden: Float[Tensor, "*samples cells hidden"]) -> Float[Tensor, "*samples cells genes"]:
        return self.normal.expression(hidden)

    @override
    def parameters_by_name(self, px: Normal) -> dict[str, Tensor]:
        return self.normal.parameters_by_name(px)

    @override
    def reconstruction(self, px: Normal, minibatch: Minibatch) -> Float[Tensor, "*samples cells"]:
        counts = minibatch.counts
        scale = depth(minibatch).double() / (LOG_TARGET_DEPTH if self.normal.compositional else 1.0)
        first_edge = torch.log1p(0.5 / scale).to(px.loc.dtype).unsqueeze(-1)
        at_zero = log_ndtr((first_edge - px.loc) / px.scale)
        at_zero = at_zero.masked_fill(counts.dense() > 0, 0.0).sum(-1)
        # Edges of neighbouring counts differ by little: double precision, where a count is not zero.
        x, scale = counts.values.double(), scale[counts.cell_index]
        loc, std = (
            parameter.expand(px.loc.shape).flatten(-2)[..., counts.flat_index].double()
            for parameter in (px.loc, px.scale)
        )
        lower, upper = ((torch.log1p((x + half) / scale) - loc) / std for half in (-0.5, 0.5))
        log_prob = _log_interval(lower, upper).to(at_zero.dtype)
        total: Tensor = at_zero.index_add(-1, counts.cell_index, log_prob)
        return total


def _log_interval(lower: Float[Tensor, "..."], upper: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Return the log-probability that a standard normal value lies between two others."""
    # In the upper tail both probabilities are close to one: the mirrored interval has the same.
    mirrored = lower > 0
    lower, upper = torch.where(mirrored, -upper, lower), torch.where(mirrored, -lower, upper)
    width = upper - lower
    narrow = width < NARROW
    centre = 0.5 * (lower + upper)
    density = Normal(0.0, 1.0).log_prob(centre) + width.log()
    # Where the difference is not used, its gradient must still be finite.
    upper = torch.where(narrow, lower + 1.0, upper)
    log_upper = log_ndtr(upper)
    difference = log_upper + torch.log(-torch.expm1(log_ndtr(lower) - log_upper))
    return torch.where(narrow, density, difference)


def on_scale_of_counts(model: SCVAE) -> SCVAE:
    """Return the model itself, or, for ``gene_likelihood="normal"``, a copy that gives counts probabilities.

    Parameters
    ----------
    model
        The model, which is not changed.
    """
    if not isinstance(model.module.likelihood, NormalLikelihood):
        return model
    scorer = copy.copy(model)
    scorer.module = copy.deepcopy(model.module)
    scorer.module.likelihood = RoundedNormalLikelihood(copy.deepcopy(model.module.likelihood))
    return scorer
