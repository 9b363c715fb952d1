r"""Fits of one zero-inflated negative binomial to each gene, around means that are known up to a factor.

For cell n and gene g, with the log of the mean known up to an offset and a Gaussian error,

.. math::
    p(x_{ng}) = \pi_g [x_{ng} = 0] + (1 - \pi_g) \int
    \operatorname{NB}(x_{ng} \mid e^{a_g + \eta}, \theta_g)\,\mathcal N(\eta \mid \eta_{ng}, s_{ng}^2)\,d\eta .

The integral is a Gauss-Hermite sum over three nodes. Genes are independent of each other, and are fitted side by
side by Newton's method in double precision.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

__all__ = ["DISPERSION", "OFFSET", "PI", "GeneCounts", "GeneFit", "maximise"]

NODES = ((2 / 3, 0.0), (1 / 6, 3**0.5), (1 / 6, -(3**0.5)))
# Positions of the parameters.
OFFSET, DISPERSION, PI = range(3)
LOWER = torch.tensor([-15.0, -7.0, 0.0], dtype=torch.float64)
UPPER = torch.tensor([15.0, 9.0, 0.999], dtype=torch.float64)
# Gains (nats) below this cannot change a verdict.
TOLERANCE = 1e-4
SMALLEST_STEP = 1e-6
MOST_LEFT = 0.7
MAX_STEPS = 200
LONGEST_STEP = 1.5
SMALLEST = 1e-300


@dataclass(frozen=True)
class GeneFit:
    """A point in the parameters of each gene, and the log-likelihood there.

    Parameters
    ----------
    parameters
        Offset of the log mean, offset of the log inverse dispersion, and pi.
    value
        Log-likelihood summed over cells, in nats.
    gradient, hessian
        Its derivatives by the parameters.
    """

    parameters: Float[Tensor, "genes 3"]
    value: Float[Tensor, "genes"]
    gradient: Float[Tensor, "genes 3"]
    hessian: Float[Tensor, "genes 3 3"]

    def where(self, first: Bool[Tensor, "genes"], other: "GeneFit") -> "GeneFit":
        """Return this fit for some genes and the other one for the rest.

        Parameters
        ----------
        first
            Genes of which this fit is taken.
        other
            Fit of the rest.
        """
        return GeneFit(
            torch.where(first[:, None], self.parameters, other.parameters),
            torch.where(first, self.value, other.value),
            torch.where(first[:, None], self.gradient, other.gradient),
            torch.where(first[:, None, None], self.hessian, other.hessian),
        )

    def take(self, genes: Int[Tensor, "chosen"]) -> "GeneFit":
        """Return the fit of some genes.

        Parameters
        ----------
        genes
            Positions.
        """
        return GeneFit(self.parameters[genes], self.value[genes], self.gradient[genes], self.hessian[genes])

    def put(self, genes: Int[Tensor, "chosen"], other: "GeneFit") -> None:
        """Write the fit of some genes in place.

        Parameters
        ----------
        genes
            Positions.
        other
            Their fit.
        """
        self.parameters[genes], self.value[genes] = other.parameters, other.value
        self.gradient[genes], self.hessian[genes] = other.gradient, other.hessian


class GeneCounts:
    """Counts of some genes, and what is known about their means.

    Parameters
    ----------
    counts
        Counts.
    log_mean, deviation
        Mean and standard deviation of the log of the expected count.
    log_theta
        Log inverse dispersion of each category of cells, up to the offset.
    category
        Of each cell.
    """

    def __init__(
        self,
        counts: Float[Tensor, "cells genes"],
        log_mean: Float[Tensor, "cells genes"],
        deviation: Float[Tensor, "cells genes"],
        log_theta: Float[Tensor, "categories genes"],
        category: Int[Tensor, "cells"],
    ) -> None:
        self.n_genes = counts.shape[1]
        self.counts, self.log_mean, self.deviation = counts, log_mean, deviation
        self.is_zero = counts == 0
        self.nodes = [log_mean + node * deviation for _, node in NODES]
        self.category, self.log_theta = category, log_theta
        self.cell, self.gene = counts.nonzero(as_tuple=True)
        self.value = counts[self.cell, self.gene]
        self.entry_nodes = torch.stack([nodes[self.cell, self.gene] for nodes in self.nodes])
        # The gamma functions depend on the count and the dispersion alone, and few of their pairs differ.
        group = self.gene * len(log_theta) + category[self.cell]
        n_values = int(counts.max()) + 1
        keys, self.pair_of_entry = torch.unique(group * n_values + self.value.long(), return_inverse=True)
        group = keys // n_values
        self.pairs = torch.stack([group // len(log_theta), group % len(log_theta), keys % n_values])

    def take(self, genes: Int[Tensor, "chosen"]) -> "GeneCounts":
        """Return some of the genes.

        Parameters
        ----------
        genes
            Positions.
        """
        return GeneCounts(
            self.counts[:, genes],
            self.log_mean[:, genes],
            self.deviation[:, genes],
            self.log_theta[:, genes],
            self.category,
        )

    def evaluate(self, parameters: Float[Tensor, "genes 3"], weight: Float[Tensor, "cells"] | None = None) -> GeneFit:
        """Return the log-likelihood of each gene and its derivatives.

        Parameters
        ----------
        parameters
            Offsets of log mean and log inverse dispersion, and pi.
        weight
            Weight of each cell; one where ``None``.
        """
        value, gradient, hessian = self._of_zeros(parameters, weight)
        for total, part in zip((value, gradient, hessian), self._of_others(parameters, weight), strict=True):
            total += part
        rows, columns = (0, 0, 0, 1, 1, 2), (0, 1, 2, 1, 2, 2)
        full = value.new_zeros(self.n_genes, 3, 3)
        full[:, rows, columns] = hessian.T
        full[:, columns, rows] = hessian.T
        return GeneFit(parameters, value, gradient.T.contiguous(), full)

    def log_prob(self, parameters: Float[Tensor, "genes 3"]) -> Float[Tensor, "cells genes"]:
        """Return the log-probability of each count, in nats.

        Parameters
        ----------
        parameters
            As for :meth:`evaluate`.
        """
        a, b, pi = parameters.unbind(1)
        log_theta = b + self.log_theta[self.category]
        share = sum(
            weight * torch.exp(-log_theta.exp() * torch.log1p(torch.exp(nodes + a - log_theta)))
            for (weight, _), nodes in zip(NODES, self.nodes, strict=True)
        )
        result = (pi + (1 - pi) * share).clamp_min(SMALLEST).log()
        gene, log_theta = self.gene, log_theta[self.cell, self.gene]
        theta = log_theta.exp()
        log_ratio = self.entry_nodes + a[gene] - log_theta
        log1p = torch.nn.functional.softplus(log_ratio)
        weights = log_ratio.new_tensor([weight for weight, _ in NODES]).log()[:, None]
        mixed = torch.logsumexp(weights - theta * log1p + self.value * (log_ratio - log1p), dim=0)
        gamma = torch.lgamma(self.value + theta) - torch.lgamma(theta) - torch.lgamma(self.value + 1)
        result[self.cell, gene] = mixed + gamma + torch.log1p(-pi[gene])
        return result

    def _of_zeros(self, parameters: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        a, b, pi = parameters.unbind(1)
        log_theta = b + self.log_theta[self.category] if len(self.log_theta) > 1 else b + self.log_theta
        theta = log_theta.exp()
        # Probability of a zero before inflation, and its first and second derivatives by a and b.
        share, by_a, by_b, by_aa, by_ab, by_bb = (torch.zeros_like(self.nodes[0]) for _ in range(6))
        for (node_weight, _), nodes in zip(NODES, self.nodes, strict=True):
            ratio = torch.exp(nodes + a - log_theta)
            u, s = torch.log1p(ratio), ratio / (1 + ratio)
            e = node_weight * torch.exp(-theta * u)
            d_a, d_b = -theta * s, -theta * (u - s)
            share += e
            by_a.addcmul_(e, d_a)
            by_b.addcmul_(e, d_b)
            by_aa.addcmul_(e, d_a.square() + d_a * (1 - s))
            by_ab.addcmul_(e, d_a * d_b + d_a * s)
            by_bb.addcmul_(e, d_b.square() + d_b - d_a * s)
        rest = 1 - pi
        total = (pi + rest * share).clamp_min(SMALLEST)
        scale = rest / total
        g_a, g_b, g_pi = by_a * scale, by_b * scale, (1 - share) / total
        terms = (
            total.log(),
            g_a,
            g_b,
            g_pi,
            by_aa * scale - g_a.square(),
            by_ab * scale - g_a * g_b,
            -by_a / total - g_a * g_pi,
            by_bb * scale - g_b.square(),
            -by_b / total - g_b * g_pi,
            -g_pi.square(),
        )
        mask = self.is_zero if weight is None else self.is_zero * weight[:, None]
        sums = torch.stack([(term * mask).sum(0) for term in terms])
        return sums[0], sums[1:4], sums[4:]

    def _of_others(self, parameters: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        a, b, pi = parameters.unbind(1)
        x, gene = self.value, self.gene
        log_theta = b[gene] + self.log_theta[self.category[self.cell], gene]
        theta = log_theta.exp()
        log_ratio = self.entry_nodes + a[gene] - log_theta
        u = torch.nn.functional.softplus(log_ratio)
        s = log_ratio.sigmoid()
        weights = log_ratio.new_tensor([node_weight for node_weight, _ in NODES]).log()[:, None]
        log_each = weights - theta * u + x * (log_ratio - u)
        mixed = torch.logsumexp(log_each, dim=0)
        share = (log_each - mixed).exp()
        d_a, d_b = x - (x + theta) * s, -theta * (u - s) - x * (1 - s)
        curved = (x + theta) * s * (1 - s)
        d_aa, d_ab, d_bb = -curved, s * d_a, -theta * (u - s) + theta * s.square() - x * s * (1 - s)
        g_a, g_b = (share * d_a).sum(0), (share * d_b).sum(0)
        h_aa = (share * (d_aa + d_a.square())).sum(0) - g_a.square()
        h_ab = (share * (d_ab + d_a * d_b)).sum(0) - g_a * g_b
        h_bb = (share * (d_bb + d_b.square())).sum(0) - g_b.square()
        gamma, gamma_b, gamma_bb = self._gamma_terms(b)[:, self.pair_of_entry]
        rest = (1 - pi)[gene]
        nothing = torch.zeros_like(x)
        terms = torch.stack(
            [
                mixed + gamma + rest.log(),
                g_a,
                g_b + gamma_b,
                -1 / rest,
                h_aa,
                h_ab,
                nothing,
                h_bb + gamma_bb,
                nothing,
                -1 / rest.square(),
            ]
        )
        if weight is not None:
            terms *= weight[self.cell]
        sums = terms.new_zeros(len(terms), self.n_genes).index_add_(1, gene, terms)
        return sums[0], sums[1:4], sums[4:]

    def _gamma_terms(self, b: Float[Tensor, "genes"]) -> Float[Tensor, "3 pairs"]:
        """Return the part of a log-probability that holds gamma functions, and its derivatives by log theta."""
        gene, category, value = self.pairs
        x = value.to(b.dtype)
        theta = (b[gene] + self.log_theta[category, gene]).exp()
        first = theta * (torch.digamma(x + theta) - torch.digamma(theta))
        second = torch.special.polygamma(1, x + theta) - torch.special.polygamma(1, theta)
        value_itself = torch.lgamma(x + theta) - torch.lgamma(theta) - torch.lgamma(x + 1)
        return torch.stack([value_itself, first, first + theta.square() * second])


def maximise(
    data: GeneCounts,
    start: Float[Tensor, "genes 3"],
    *,
    held: Sequence[int] = (),
    weight: Float[Tensor, "cells"] | None = None,
) -> GeneFit:
    """Climb to the maximum of each gene's log-likelihood, with some parameters held where they start.

    The Hessian's eigenvalues are taken by their size, so that every step goes uphill; a step that does not improve is
    halved. Parameters stay within bounds at which nothing more can change.

    Parameters
    ----------
    data
        The genes.
    start
        Where to begin.
    held
        Positions of parameters that stay where they start.
    weight
        Weight of each cell; one where ``None``.
    """
    lower, upper = LOWER.to(start), UPPER.to(start)
    best = data.evaluate(start.clamp(lower, upper), weight)
    size = best.value.new_ones(len(start))
    genes = torch.arange(len(start))
    result = best.take(genes)
    for _ in range(MAX_STEPS):
        step = _step(best, lower, upper, held=held)
        is_active = ((step * best.gradient).sum(1) > TOLERANCE) & (size > SMALLEST_STEP)
        active = is_active.nonzero().squeeze(1)
        if len(active) == 0:
            break
        if len(active) <= MOST_LEFT * len(genes):
            # Genes that have arrived would be evaluated again and again for the sake of a few.
            result.put(genes, best)
            data, genes, best, size, step = (
                data.take(active),
                genes[active],
                best.take(active),
                size[active],
                step[active],
            )
            is_active = is_active[active]
        moved = (best.parameters + size[:, None] * step).clamp(lower, upper)
        tried = data.evaluate(torch.where(is_active[:, None], moved, best.parameters), weight)
        is_better = is_active & (tried.value > best.value)
        best = tried.where(is_better, best)
        size = torch.where(is_better, (2 * size).clamp_max(1.0), size / 2)
    result.put(genes, best)
    return result


def _step(fit: GeneFit, lower: Tensor, upper: Tensor, *, held: Sequence[int] = ()) -> Float[Tensor, "genes 3"]:
    """Return a Newton step uphill that leaves out parameters held at a bound."""
    outward = ((fit.parameters <= lower) & (fit.gradient < 0)) | ((fit.parameters >= upper) & (fit.gradient > 0))
    outward[:, list(held)] = True
    moves = (~outward).to(fit.value)
    negative = -fit.hessian * moves[:, :, None] * moves[:, None, :] + torch.diag_embed(1 - moves)
    eigenvalues, vectors = torch.linalg.eigh(negative)
    along = (vectors.mT @ (fit.gradient * moves)[:, :, None]).squeeze(-1) / eigenvalues.abs().clamp_min(1e-6)
    step = (vectors @ along[:, :, None]).squeeze(-1) * moves
    longest = step.abs().amax(1, keepdim=True)
    shortened: Tensor = step * (LONGEST_STEP / longest.clamp_min(LONGEST_STEP))
    return shortened
