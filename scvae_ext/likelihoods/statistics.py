"""Moments of each gene, from which likelihoods start."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from scvae_ext.minibatch import Minibatch
from scvae_ext.types import CellsByGenes, CellValues, GeneValues

__all__ = ["LOG_TARGET_DEPTH", "GeneStatistics", "depth", "gene_statistics", "log_normalised", "log_normalised_matrix"]

LOG_TARGET_DEPTH = 1e4
"""Counts per cell to which values are scaled before log1p, as ``scanpy.pp.normalize_total(target_sum=1e4)`` does."""

# Variation between cell types inflates the moment estimate of the dispersion, so it is only trusted within bounds.
INVERSE_DISPERSION_RANGE = (0.1, 10.0)
MIN_LOG_STD = 0.01


@dataclass(frozen=True)
class GeneStatistics:
    """Moments of each gene over all cells.

    Parameters
    ----------
    expression
        Counts per unit of depth; sums to one where depth is the library size.
    inverse_dispersion
        Estimate by moments of theta in variance = mean + mean^2 / theta.
    log_mean, log_std
        Mean and standard deviation of the log-normalised values.
    """

    expression: GeneValues
    inverse_dispersion: GeneValues
    log_mean: GeneValues
    log_std: GeneValues


def log_normalised(
    values: Float[Tensor, "nonzero"], cell_index: Tensor, depth: CellValues, *, compositional: bool
) -> Float[Tensor, "nonzero"]:
    r"""Return :math:`\log(1 + 10^4 x / \ell)`, or :math:`\log(1 + x / s)` with size factors :math:`s`.

    Parameters
    ----------
    values, cell_index
        Counts that are not zero and the row of each.
    depth
        Library size or size factor of each cell.
    compositional
        Whether depth is the library size.
    """
    scale = (LOG_TARGET_DEPTH if compositional else 1.0) / depth
    return torch.log1p(values * scale[cell_index])


def log_normalised_matrix(minibatch: Minibatch, *, compositional: bool) -> CellsByGenes:
    """Return the log-normalised values of a minibatch as a dense matrix.

    Parameters
    ----------
    minibatch
        The cells.
    compositional
        As for :func:`log_normalised`.
    """
    counts = minibatch.counts
    return counts.scatter(
        log_normalised(counts.values, counts.cell_index, depth(minibatch), compositional=compositional)
    )


def depth(minibatch: Minibatch) -> CellValues:
    """Return the size factors, or the observed library sizes where there are none.

    Parameters
    ----------
    minibatch
        The cells.
    """
    return minibatch.library_size if minibatch.size_factor is None else minibatch.size_factor


def gene_statistics(minibatches: Iterable[Minibatch], *, compositional: bool = True) -> GeneStatistics:
    r"""Compute the moments in one pass, in double precision.

    With :math:`\rho_g = \sum_n x_{ng} / \sum_n \ell_n` and :math:`m_{ng} = \ell_n \rho_g`, the inverse dispersion is
    :math:`\sum_n m_{ng}^2 / \sum_n \{(x_{ng} - m_{ng})^2 - m_{ng}\}`, kept within [0.1, 10].

    Parameters
    ----------
    minibatches
        The cells.
    compositional
        Whether depth is the library size or a size factor.
    """
    sums: Tensor | None = None
    depth_sum, depth_squares, n_cells = 0.0, 0.0, 0
    for minibatch in minibatches:
        counts = minibatch.counts
        cell_depth = depth(minibatch).double()
        values = counts.values.double()
        logs = log_normalised(values, counts.cell_index, cell_depth, compositional=compositional)
        terms = torch.stack([values, values.square(), values * cell_depth[counts.cell_index], logs, logs.square()])
        if sums is None:
            sums = terms.new_zeros(len(terms), counts.n_genes)
        sums.index_add_(1, counts.gene_index, terms)
        depth_sum += float(cell_depth.sum())
        depth_squares += float(cell_depth.square().sum())
        n_cells += minibatch.n_cells
    if sums is None:
        raise ValueError("There are no cells to take statistics from: pass at least one cell.")
    total, squares, cross, logs, log_squares = sums
    expression = total / depth_sum
    mean_squares = expression.square() * depth_squares
    excess = squares - 2 * expression * cross + mean_squares - total
    inverse_dispersion = torch.where(excess > 0, mean_squares / excess.clamp_min(1e-300), torch.inf)
    log_mean = logs / n_cells
    log_std = (log_squares / n_cells - log_mean.square()).clamp_min(MIN_LOG_STD**2).sqrt()
    return GeneStatistics(
        expression.float(),
        inverse_dispersion.clamp(*INVERSE_DISPERSION_RANGE).float(),
        log_mean.float(),
        log_std.float(),
    )
