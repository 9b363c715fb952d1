"""Posterior of log fold changes under a prior that all genes of a comparison share."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from scvae_ext.analysis.contrasts import Contrast

__all__ = ["FoldChangePosterior", "fold_change_posterior"]

# Standard deviations of the normal components of the prior, in log2 units, each twice the one before.
SCALES = (0.1, 0.2, 0.4, 0.8, 1.6, 3.2)
SQRT_2PI = float(np.sqrt(2 * np.pi))
# Genes without a difference that the prior is told of beforehand, so that it errs towards none.
NULL_GENES = 10.0
# Beyond what any two counts can differ by.
LIMIT = 40.0
MAX_STEPS = 500
# Nodes of the two grids, one about the estimate of each gene and one about zero.
N_NODES = 61


@dataclass(frozen=True, eq=False)
class FoldChangePosterior:
    """Posterior of the log2 fold change of each gene, as masses on a grid.

    Parameters
    ----------
    nodes
        Log2 fold changes, ascending for each gene.
    mass
        Probability of each; sums to one for each gene.
    no_change
        Probability of no change at all, which is part of the mass at zero.
    prior
        Share of genes without a difference, and of those in each normal component of the prior.
    """

    nodes: Float[np.ndarray, "genes nodes"]
    mass: Float[np.ndarray, "genes nodes"]
    no_change: Float[np.ndarray, "genes"]
    prior: Float[np.ndarray, "components"]

    @property
    def mean(self) -> Float[np.ndarray, "genes"]:
        """Posterior mean."""
        mean: Float[np.ndarray, genes] = (self.mass * self.nodes).sum(1)
        return mean

    @property
    def std(self) -> Float[np.ndarray, "genes"]:
        """Posterior standard deviation."""
        deviation = self.nodes - self.mean[:, None]
        std: Float[np.ndarray, genes] = np.sqrt((self.mass * np.square(deviation)).sum(1))
        return std

    def probability_above(self, threshold: float) -> Float[np.ndarray, "genes"]:
        """Return the probability of a log2 fold change above a threshold.

        Parameters
        ----------
        threshold
            The threshold; no change is above it where it is negative.
        """
        probability = self._changed_and_above(threshold) + self.no_change * (threshold < 0)
        clipped: Float[np.ndarray, genes] = np.clip(probability, 0.0, 1.0)
        return clipped

    def probability_below(self, threshold: float) -> Float[np.ndarray, "genes"]:
        """Return the probability of a log2 fold change below a threshold.

        Parameters
        ----------
        threshold
            The threshold; no change is below it where it is positive.
        """
        probability = 1.0 - self._changed_and_above(threshold) - self.no_change * (threshold <= 0)
        clipped: Float[np.ndarray, genes] = np.clip(probability, 0.0, 1.0)
        return clipped

    def _changed_and_above(self, threshold: float) -> Float[np.ndarray, "genes"]:
        # The mass of a node is spread evenly between the middles to its neighbours, but for that of no change at all.
        edges = np.empty((len(self.nodes), self.nodes.shape[1] + 1))
        edges[:, 1:-1] = 0.5 * (self.nodes[:, 1:] + self.nodes[:, :-1])
        edges[:, 0], edges[:, -1] = self.nodes[:, 0], self.nodes[:, -1]
        width = np.diff(edges, axis=1)
        share = np.clip((edges[:, 1:] - threshold) / np.where(width > 0, width, 1.0), 0.0, 1.0)
        at_zero = np.arange(len(self.nodes)), (self.nodes == 0).argmax(1)
        probability: Float[np.ndarray, genes] = (
            np.einsum("gn,gn->g", self.mass, share) - self.no_change * share[at_zero]
        )
        return probability

    def quantile(self, level: float) -> Float[np.ndarray, "genes"]:
        """Return the log2 fold change below which the posterior has a given probability.

        Parameters
        ----------
        level
            The probability, between zero and one.
        """
        below = self.mass.cumsum(1) < level
        place = np.minimum(below.sum(1), self.nodes.shape[1] - 1)
        quantile: Float[np.ndarray, genes] = self.nodes[np.arange(len(place)), place]
        return quantile

    @property
    def typical_change(self) -> float:
        """Mean absolute log2 fold change of genes that differ, under the prior."""
        share = self.prior[1:]
        absolute = np.sqrt(2 / np.pi) * np.array(SCALES)
        return float(share @ absolute / share.sum()) if share.sum() > 0 else 0.0


def fold_change_posterior(contrast: Contrast) -> FoldChangePosterior:
    r"""Return the posterior of each gene's log2 fold change.

    The prior is a mixture of no change at all and of normal distributions about zero,

    .. math:: \beta_g \sim \pi_0\,\delta_0 + \sum_k \pi_k\,\mathcal N(0, \sigma_k^2),

    with weights by maximum likelihood over all genes, penalised towards no change (adaptive shrinkage: Stephens,
    Biostatistics 18, 275 (2017)). Integrals are sums over nodes about the estimate of each gene and about zero.

    Parameters
    ----------
    contrast
        Likelihood of each gene.
    """
    nodes = _nodes(contrast)
    width = np.zeros_like(nodes)
    step = np.diff(nodes, axis=1) / 2
    width[:, 1:] += step
    width[:, :-1] += step
    likelihood = np.exp(contrast.log_likelihood(nodes))
    at_zero = np.arange(len(nodes)), (nodes == 0).argmax(1)
    no_change = likelihood[at_zero]
    likelihood *= width
    components = np.stack(
        [no_change, *(np.einsum("gn,gn->g", likelihood, density) for density in _normal_densities(nodes))], axis=1
    )
    prior = _mixture_weights(components)
    mass = np.zeros_like(nodes)
    for share, density in zip(prior[1:], _normal_densities(nodes), strict=True):
        mass += share * density
    mass *= likelihood
    mass[at_zero] += prior[0] * no_change
    total = mass.sum(1)
    return FoldChangePosterior(nodes, mass / total[:, None], prior[0] * no_change / total, prior)


def _normal_densities(nodes: Float[np.ndarray, "genes nodes"]) -> Iterator[Float[np.ndarray, "genes nodes"]]:
    """Yield the density of each normal component; each scale is twice the one before, which saves exponentials."""
    kernels = [np.exp(-0.5 * np.square(nodes / SCALES[-1]))]
    for _ in SCALES[1:]:
        kernels.append(np.square(np.square(kernels[-1])))
    for scale, kernel in zip(SCALES, reversed(kernels), strict=True):
        yield kernel / (scale * SQRT_2PI)


def _nodes(contrast: Contrast) -> Float[np.ndarray, "genes nodes"]:
    about_estimate = contrast.estimate[:, None] + contrast.standard_error[:, None] * np.linspace(-6, 6, N_NODES)
    # Denser towards zero, which is one of them.
    about_zero = 0.1 * np.sinh(np.linspace(-1, 1, N_NODES) * np.arcsinh(LIMIT / 0.1))
    about_zero[N_NODES // 2] = 0.0
    both = np.concatenate([about_estimate, np.broadcast_to(about_zero, about_estimate.shape)], axis=1)
    return np.sort(np.clip(both, -LIMIT, LIMIT), axis=1)


def _mixture_weights(components: Float[np.ndarray, "genes components"]) -> Float[np.ndarray, "components"]:
    n_components = components.shape[1]
    weights = np.full(n_components, 1.0 / n_components)
    pseudo_genes = np.zeros(n_components)
    pseudo_genes[0] = NULL_GENES
    for _ in range(MAX_STEPS):
        updated = weights * (components.T @ (1.0 / (components @ weights))) + pseudo_genes
        updated /= updated.sum()
        converged = np.abs(updated - weights).max() < 1e-6
        weights = updated
        if converged:
            break
    return weights
