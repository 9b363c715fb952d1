"""Log-probability and gradients of cells under negative binomials whose means are shares of the cell's depth."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scvae_ext.kernels.compiled import compiled
from scvae_ext.kernels.elementary import binet, exp, log, log1p, stirling_slope
from scvae_ext.kernels.softmax import softmax, sum_of
from scvae_ext.kernels.team import in_team, integers, matrix, next_range, task, vector

__all__ = ["composed_log_prob"]

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

f32 = np.float32
_ZERO, _HALF, _ONE = f32(0), f32(0.5), f32(1)
_VALUE_OFFSET = f32(1 - 0.5 * math.log(2 * math.pi))
_ROWS_AT_A_TIME = 4
_NO_LOGITS = np.empty((0, 0), dtype=f32)


def composed_log_prob(
    logits: Floats,
    depth: Floats,
    smallest_mean: float,
    theta: Floats,
    inflation: Floats | None,
    counts: tuple[Floats, Ints, Ints],
    *,
    derivatives: bool = True,
    overwritten: tuple[bool, bool] = (False, False),
    sums: bool = False,
) -> tuple[Floats, Floats, Floats, Floats, Floats | None, Floats | None]:
    r"""Return the log-probability of the counts of each row, and its derivatives.

    .. math:: \mu_{rg} = \ell_r \operatorname{softmax}(a_r)_g + \varepsilon, \qquad
              x_{cg} \sim \operatorname{NB}(\mu_{rg}, \theta_g), \qquad c = r \bmod n_{cells}

    or the same with additional zeros of probability :math:`\operatorname{sigmoid}(l_{rg})`.

    Parameters
    ----------
    logits
        a, of shape (rows, genes).
    depth
        :math:`\ell`, of shape (rows,), in counts.
    smallest_mean
        :math:`\varepsilon`.
    theta
        :math:`\theta`, of shape (genes,).
    inflation
        l, of shape (rows, genes) or (1, genes); ``None`` for no additional zeros.
    counts
        Values that are not zero, in float32; their genes; for each cell, the position of its first value, and behind
        them the number of values.
    derivatives
        Whether they are wanted; where not, their arrays are empty.
    overwritten
        Whether derivatives may be written over the logits of the mean, and over those of additional zeros.
    sums
        Whether sums over rows are wanted, and derivatives by theta of the single rows are not: their array is empty.

    Returns
    -------
    log_prob
        Sum over genes for each row, in nats.
    by_logits
        Its derivative by each logit.
    by_log_depth
        Its derivative by the log depth of each row.
    minus_by_theta
        For each row and gene, its derivative by theta, negated.
    by_inflation
        For each row and gene, its derivative by the logit of additional zeros, where there are any.
    sums
        Sums over rows of the derivatives by logits, of those by theta, negated, and of those by the logits of
        additional zeros, of shape (3, genes), where they are wanted.
    """
    n_rows, n_genes = logits.shape
    logits, depth, theta = map(np.ascontiguousarray, (logits, depth, theta))
    inflation = None if inflation is None else np.ascontiguousarray(inflation)
    log_prob, by_log_depth = np.empty(n_rows, dtype=f32), np.empty(n_rows, dtype=f32)
    shape = (n_rows if derivatives else 0, n_genes)
    by_logits = logits if overwritten[0] and derivatives else np.empty(shape, dtype=f32)
    minus_by_theta = np.empty((0, n_genes) if sums else shape, dtype=f32)
    # Each ticket of the team has rows of its own to add to.
    partial = np.zeros((3 * -(-n_rows // _ROWS_AT_A_TIME) if sums else 0, n_genes), dtype=f32)
    by_inflation = None
    if inflation is not None:
        by_inflation = inflation if overwritten[1] and derivatives else np.empty(shape, dtype=f32)
    value, slope = np.empty_like(theta), np.empty_like(theta)
    _of_theta(theta, value, slope)
    arrays = (
        logits,
        depth,
        np.array([smallest_mean], dtype=f32),
        theta,
        value,
        slope,
        _NO_LOGITS if inflation is None else inflation,
        *counts,
        log_prob,
        by_logits,
        by_log_depth,
        minus_by_theta,
        _NO_LOGITS if by_inflation is None else by_inflation,
        partial,
    )
    in_team(_rows_task, arrays, n_rows, _ROWS_AT_A_TIME)
    total = partial.reshape(-1, 3, n_genes).sum(0) if sums else None
    return log_prob, by_logits, by_log_depth, minus_by_theta, by_inflation, total


@task
def _rows_task(words: Any) -> None:
    logits, depth, smallest_mean, theta = matrix(words, 0), vector(words, 1), vector(words, 2), vector(words, 3)
    theta_value, theta_slope, inflation = vector(words, 4), vector(words, 5), matrix(words, 6)
    values, gene_index, offsets = vector(words, 7), integers(words, 8), integers(words, 9)
    log_prob, by_logits, by_log_depth = vector(words, 10), matrix(words, 11), vector(words, 12)
    minus_by_theta, by_inflation, partial = matrix(words, 13), matrix(words, 14), matrix(words, 15)
    first, last = next_range(words)
    while first < last:
        _rows(
            first,
            last,
            logits,
            depth,
            smallest_mean[0],
            theta,
            theta_value,
            theta_slope,
            inflation,
            values,
            gene_index,
            offsets,
            log_prob,
            by_logits,
            by_log_depth,
            minus_by_theta,
            by_inflation,
            partial,
        )
        first, last = next_range(words)


@compiled()
def _rows(
    first: int,
    last: int,
    logits: Floats,
    depth: Floats,
    smallest_mean: np.float32,
    theta: Floats,
    theta_value: Floats,
    theta_slope: Floats,
    inflation: Floats,
    values: Floats,
    gene_index: Ints,
    offsets: Ints,
    log_prob: Floats,
    by_logits: Floats,
    by_log_depth: Floats,
    minus_by_theta: Floats,
    by_inflation: Floats,
    partial: Floats,
) -> None:
    """Do some rows, one after the other, so that what belongs to a row stays in the processor's cache."""
    n_genes, n_cells = logits.shape[1], offsets.size - 1
    share, log_probs = np.empty(n_genes, dtype=f32), np.empty(n_genes, dtype=f32)
    of_row, from_base = np.empty(n_genes, dtype=f32), np.empty(n_genes, dtype=f32)
    most = 0
    for cell in range(n_cells):
        most = max(most, offsets[cell + 1] - offsets[cell])
    at, unwanted = np.empty((8, most), dtype=f32), np.empty((3, n_genes), dtype=f32)
    wanted, summed = by_logits.shape[0] > 0, partial.shape[0] > 0
    to_add_to = 3 * (first // _ROWS_AT_A_TIME)
    for row in range(first, last):
        by_mean = by_logits[row] if wanted else unwanted[0]
        by_theta = minus_by_theta[row] if wanted and not summed else unwanted[1]
        softmax(logits[row], share)
        _at_zero(share, depth[row], smallest_mean, theta, log_probs, by_mean, by_theta)
        start, stop = offsets[row % n_cells], offsets[row % n_cells + 1]
        x, genes, n = values[start:stop], gene_index[start:stop], stop - start
        for k in range(n):
            gene = genes[k]
            at[0, k], at[1, k] = share[gene] * depth[row] + smallest_mean, theta[gene]
            at[2, k], at[3, k] = theta_value[gene], theta_slope[gene]
        _at_positive(x, at[0, :n], at[1, :n], at[2, :n], at[3, :n], at[4, :n], at[5, :n], at[6, :n])
        if inflation.size:
            # A copy: derivatives may be written over it, and a loop over one array in two roles is not vectorised.
            # By a loop: an assignment between arrays brings an error message with it that takes seconds to compile.
            inflation_row = inflation[row if inflation.shape[0] > 1 else 0]
            for gene in range(n_genes):
                of_row[gene] = inflation_row[gene]
            by_of_row = by_inflation[row] if wanted else unwanted[2]
            for k in range(n):
                at[7, k] = of_row[genes[k]]
            _inflate_zeros(of_row, log_probs, by_of_row, from_base)
            _times(from_base, by_mean, by_theta)
            _without_inflation(at[7, :n], at[4, :n])
            for k in range(n):
                by_of_row[genes[k]] = at[7, k]
        for k in range(n):
            gene = genes[k]
            log_probs[gene], by_mean[gene], by_theta[gene] = at[4, k], at[5, k], at[6, k]
        log_prob[row] = sum_of(log_probs)
        by_log_depth[row] = _through_softmax(share, depth[row], by_mean)
        if summed:
            _add(by_mean, partial[to_add_to])
            _add(by_theta, partial[to_add_to + 1])
            if inflation.size:
                _add(by_inflation[row], partial[to_add_to + 2])


@compiled()
def _of_theta(theta: Floats, value: Floats, slope: Floats) -> None:
    """Write what log-probability and derivative of counts greater than zero need of theta alone.

    As in distributions.negative_binomial: the recurrences of log-gamma and digamma lead to arguments above one.
    """
    for gene in range(theta.size):
        log_ratio = log1p(_ONE / theta[gene])
        above = theta[gene] + _ONE
        value[gene] = _HALF * log(theta[gene]) - (theta[gene] + _HALF) * log_ratio + (_VALUE_OFFSET - binet(above))
        slope[gene] = log_ratio + stirling_slope(above)


@compiled()
def _add(values: Floats, total: Floats) -> None:
    for gene in range(values.size):
        total[gene] += values[gene]


@compiled()
def _at_zero(
    share: Floats,
    depth: np.float32,
    smallest_mean: np.float32,
    theta: Floats,
    log_probs: Floats,
    by_mean: Floats,
    by_theta: Floats,
) -> None:
    """Write the log-probability of a zero, and its derivatives by the mean and (negated) by theta."""
    for gene in range(share.size):
        ratio = (share[gene] * depth + smallest_mean) / theta[gene]
        log_ratio = log1p(ratio)
        log_probs[gene] = -theta[gene] * log_ratio
        by_mean[gene] = -_ONE / (_ONE + ratio)
        by_theta[gene] = log_ratio + ratio * by_mean[gene]


@compiled()
def _at_positive(
    x: Floats,
    mean: Floats,
    theta: Floats,
    theta_value: Floats,
    theta_slope: Floats,
    log_probs: Floats,
    by_mean: Floats,
    by_theta: Floats,
) -> None:
    """Write the same of counts greater than zero: as in distributions.negative_binomial, where it is derived."""
    for k in range(x.size):
        n = x[k] + theta[k]
        inverse_total = _ONE / (mean[k] + theta[k])
        growth = n * inverse_total
        excess = (x[k] - mean[k]) * inverse_total
        by_log_mean = theta[k] * excess
        x_gap = by_log_mean / x[k]
        log_growth = _log_one_minus(-excess, growth)
        x_part = _log_one_minus(x_gap, mean[k] / x[k] * growth) + x_gap
        log_prob = x[k] * x_part + theta[k] * (log_growth - excess) + theta_value[k]
        log_probs[k] = log_prob - _HALF * log(x[k] * n) + (binet(n) - binet(x[k]))
        by_mean[k] = by_log_mean / mean[k]
        # As one fraction: its two parts can be of the order of 1e4 where their difference is of the order of 1.
        divergent = (mean[k] + theta[k] * ((_ONE - x[k]) + mean[k])) * inverse_total / theta[k]
        by_theta[k] = (theta_slope[k] - stirling_slope(n)) - (divergent + log_growth)


@compiled(part=True)
def _log_one_minus(gap: np.float32, ratio: np.float32) -> np.float32:
    """Return log(1 - gap) of a gap below one half, and otherwise that of ratio, which is 1 - gap."""
    near = gap < _HALF
    above = _ONE - gap if near else ratio
    rounding = -gap - (above - _ONE) if near else _ZERO
    return log(above) + rounding / above


@compiled()
def _inflate_zeros(logits: Floats, log_probs: Floats, by_logits: Floats, from_base: Floats) -> None:
    """Turn log-probabilities of zeros into those with additional zeros: p = (e^logit + p_base) / (1 + e^logit).

    Derivatives by what the base depends on are to be multiplied with the share of the base: in a loop of its own, as
    the compiler gives up vectorising where it would have to compare the addresses of more than four arrays or so.
    """
    for gene in range(logits.size):
        logit, base = logits[gene], log_probs[gene]
        gap = base - logit
        small, small_logit = exp(-abs(gap)), exp(-abs(logit))
        both, both_logit = _ONE / (_ONE + small), _ONE / (_ONE + small_logit)
        from_base[gene] = both if gap > _ZERO else small * both
        probability = both_logit if logit > _ZERO else small_logit * both_logit
        # The last term is zero, but for NaN, which neither a maximum nor our logarithm hands on.
        log_probs[gene] = (
            max(logit, base) - max(logit, _ZERO) + log((_ONE + small) * both_logit) + _ZERO * small * small_logit
        )
        # One less the share of the base, from the side on which nothing cancels.
        from_extra = small * both if gap > _ZERO else both
        by_logits[gene] = from_extra - probability


@compiled()
def _times(factor: Floats, values: Floats, others: Floats) -> None:
    for gene in range(factor.size):
        values[gene] *= factor[gene]
        others[gene] *= factor[gene]


@compiled()
def _without_inflation(logits: Floats, log_probs: Floats) -> None:
    """Add log(1 - pi) to log-probabilities of counts greater than zero, and turn logits into its derivative."""
    for k in range(logits.size):
        logit = logits[k]
        small = exp(-abs(logit))
        both = _ONE / (_ONE + small)
        log_probs[k] -= max(logit, _ZERO) - log(both) + _ZERO * small
        logits[k] = -both if logit > _ZERO else -small * both


@compiled()
def _through_softmax(share: Floats, depth: np.float32, by_mean: Floats) -> np.float32:
    """Turn derivatives by the means of a row into those by its logits; return that by its log depth."""
    _times_shares(share, depth, by_mean)
    total = sum_of(by_mean)
    _add_shares(share, -total, by_mean)
    return total


@compiled()
def _times_shares(share: Floats, depth: np.float32, values: Floats) -> None:
    for gene in range(share.size):
        values[gene] *= share[gene] * depth


@compiled()
def _add_shares(share: Floats, factor: np.float32, values: Floats) -> None:
    for gene in range(share.size):
        values[gene] += share[gene] * factor
