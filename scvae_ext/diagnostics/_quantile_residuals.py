"""Where a count lies in its predictive distribution, as a standard normal value."""

import numpy as np
import torch
from jaxtyping import Float
from scipy.special import betainc, gammainc, ndtri
from torch import Tensor
from torch.distributions import Distribution, Normal

from scvae_ext.distributions import CountDistribution, NegativeBinomial, Poisson, ZeroInflated
from scvae_ext.likelihoods import NormalLikelihood, log_normalised_matrix
from scvae_ext.minibatch import Minibatch, SparseCounts
from scvae_ext.modules import VAE

__all__ = ["LARGEST_RESIDUAL", "quantile_residuals"]

# One in 10^15; what lies farther out is told from it by rounding alone.
LARGEST_RESIDUAL = 8.0


def quantile_residuals(
    module: VAE, px: Distribution, minibatch: Minibatch, uniform: Float[np.ndarray, "cells genes"]
) -> Float[np.ndarray, "cells genes"]:
    r"""Return randomised quantile residuals.

    .. math:: r = \Phi^{-1}(F(x - 1) + v\,p(x)), \qquad v \sim U(0, 1)

    Counts drawn from the distribution have residuals that are exactly standard normal, however few they are. Residuals
    of log-normalised values, which are not counts, are :math:`(y - \mu)/\sigma`. None is beyond
    :data:`LARGEST_RESIDUAL`. Source: Dunn and Smyth, Journal of Computational and Graphical Statistics 5, 236 (1996).

    Parameters
    ----------
    module
        Where the distribution is from.
    px
        Distribution of the counts, of batch shape (cells, genes).
    minibatch
        The cells.
    uniform
        v.

    Raises
    ------
    TypeError
        If the distribution is of no kind that the package has.
    """
    if isinstance(px, Normal):
        assert isinstance(module.likelihood, NormalLikelihood)
        values = log_normalised_matrix(minibatch, compositional=module.likelihood.compositional)
        residuals: np.ndarray = ((values - px.loc) / px.scale).double().cpu().numpy()
        return residuals.clip(-LARGEST_RESIDUAL, LARGEST_RESIDUAL)
    if not isinstance(px, CountDistribution):
        raise TypeError(f"px is a {type(px).__name__}, of which quantile residuals are not known.")
    counts = minibatch.counts
    probability_of_zero = px.log_prob_zero().double().exp().expand(counts.n_cells, counts.n_genes).cpu().numpy()
    rows, columns = counts.cell_index.cpu().numpy(), counts.gene_index.cpu().numpy()
    at_least, more = _upper_tails(px, counts)
    # The tail on the side of a large count keeps its digits.
    upper = at_least - uniform[rows, columns] * (at_least - more)
    # Beyond the range of doubles a tail is zero, and its quantile infinite, until it is clipped.
    residuals = ndtri(probability_of_zero * uniform)
    residuals[rows, columns] = -ndtri(upper)
    return residuals.clip(-LARGEST_RESIDUAL, LARGEST_RESIDUAL)


def _upper_tails(
    px: CountDistribution, counts: SparseCounts
) -> tuple[Float[np.ndarray, "nonzero"], Float[np.ndarray, "nonzero"]]:
    """Return P(X >= x) and P(X > x) of the counts x that are not zero."""
    x = counts.values.double().cpu().numpy()
    if isinstance(px, ZeroInflated):
        base = px.base
        if not isinstance(base, CountDistribution):
            raise TypeError(f"px is an inflated {type(base).__name__}, of which quantile residuals are not known.")
        not_extra = _at(torch.sigmoid(-px.zero_inflation_logits.double()), counts)
        at_least, more = _upper_tails(base, counts)
        return not_extra * at_least, not_extra * more
    if isinstance(px, NegativeBinomial):
        mean, theta = _at(px.mean, counts), _at(px.inverse_dispersion, counts)
        share = mean / (mean + theta)
        return betainc(x, theta, share), betainc(x + 1, theta, share)
    if isinstance(px, Poisson):
        rate = _at(px.rate, counts)
        return gammainc(x, rate), gammainc(x + 1, rate)
    raise TypeError(f"px is a {type(px).__name__}, of which quantile residuals are not known.")


def _at(values: Tensor, counts: SparseCounts) -> Float[np.ndarray, "nonzero"]:
    """Return the values at counts that are not zero, in double precision."""
    chosen = values.expand(counts.n_cells, counts.n_genes)[counts.cell_index, counts.gene_index]
    result: np.ndarray = chosen.double().cpu().numpy()
    return result
