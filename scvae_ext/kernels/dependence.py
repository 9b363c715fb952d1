"""How much points know about groups: a normalised kernel measure of dependence, and its derivatives by the points."""

import numpy as np
from numpy.typing import NDArray

from scvae_ext.kernels.compiled import compiled
from scvae_ext.kernels.elementary import exp

__all__ = ["dependence_and_gradient"]

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

f32, f64 = np.float32, np.float64
_ZERO, _HALF, _ONE = f32(0), f32(0.5), f32(1)
_TINY = 1e-8
_SMALLEST_UNIT = f32(np.finfo(np.float32).tiny ** 0.5)


def dependence_and_gradient(points: Floats, group: Ints, squared_widths: Floats) -> tuple[float, Floats]:
    r"""Return the normalised Hilbert-Schmidt independence criterion of points and groups, and its gradient.

    .. math:: d = N (S B)^{-1/2}, \qquad N = \operatorname{HSIC}(K, L), \quad S = \operatorname{HSIC}(K, K)

    with the kernel K of the points, the mean of Gaussian ones, L one within groups and zero between them, and B that of
    the shares of groups: as in modules.dependence, where it is defined. HSIC is bilinear, with the derivative

    .. math:: G(L)_{ij} = \frac{1}{n(n-3)}
              \left\{ L_{ij} + \frac{1^\top L 1}{(n-1)(n-2)} - \frac{(L1)_i + (L1)_j}{n-2} \right\}

    by an entry off the diagonal, so that that of d is :math:`\{G(L) - G(K) N / S\} (S B)^{-1/2}`.

    Parameters
    ----------
    points
        Of shape (points, dimensions), at least four.
    group
        Of each point.
    squared_widths
        Of the kernels, in units of the median squared distance, which is held fixed.
    """
    columns = np.ascontiguousarray(points.T)
    distance = _squared_distances(columns)
    pairs = distance[np.triu_indices(len(points), 1)]
    unit = max(np.partition(pairs, (pairs.size - 1) // 2)[(pairs.size - 1) // 2], _SMALLEST_UNIT)
    gradient = np.zeros_like(points)
    value = _dependence(columns, distance, np.ascontiguousarray(group), _HALF / (squared_widths * unit), gradient)
    return value, gradient


@compiled()
def _squared_distances(columns: Floats) -> Floats:
    n = columns.shape[1]
    distance = np.zeros((n, n), dtype=f32)
    for row in range(n):
        for dimension in range(columns.shape[0]):
            own = columns[dimension, row]
            for other in range(n):
                gap = own - columns[dimension, other]
                distance[row, other] += gap * gap
    return distance


@compiled(sums=True)
def _dependence(columns: Floats, distance: Floats, group: Ints, rates: Floats, gradient: Floats) -> float:
    n = group.size
    kernel, slope = np.zeros((n, n), dtype=f32), np.zeros((n, n), dtype=f32)
    same = np.empty((n, n), dtype=f32)
    of_kernels = _ONE / f32(rates.size)
    for row in range(n):
        for rate in rates:
            for other in range(n):
                value = of_kernels * exp(-rate * distance[row, other])
                kernel[row, other] += value
                slope[row, other] -= rate * value
        for other in range(n):
            same[row, other] = _ONE if group[row] == group[other] else _ZERO
        kernel[row, row], same[row, row] = _ZERO, _ZERO

    of_kernel, of_same = np.empty(n, dtype=f64), np.empty(n, dtype=f64)
    both, squares, share, squared_share = f64(0), f64(0), f64(0), f64(0)
    for row in range(n):
        in_kernel, in_same, in_both, in_squares = f64(0), f64(0), f64(0), f64(0)
        for other in range(n):
            near, alike = f64(kernel[row, other]), f64(same[row, other])
            in_kernel += near
            in_same += alike
            in_both += near * alike
            in_squares += near * near
        of_kernel[row], of_same[row] = in_kernel, in_same
        both += in_both
        squares += in_squares
        share += (in_same + 1) / n
        squared_share += ((in_same + 1) / n) ** 2
    share, squared_share = share / n, squared_share / n
    of_groups = share - 2 * squared_share + share * share

    total_kernel, total_same = of_kernel.sum(), of_same.sum()
    all_pairs, one_side, scale = 1 / ((n - 1) * (n - 2)), 1 / (n - 2), 1 / (n * (n - 3))
    joint = scale * (both + all_pairs * total_kernel * total_same - 2 * one_side * (of_kernel * of_same).sum())
    own = scale * (squares + all_pairs * total_kernel**2 - 2 * one_side * (of_kernel * of_kernel).sum())
    # A comparison that is false for NaN, so that it stays one.
    if own * of_groups <= _TINY:
        return 0.0
    norm, ratio = np.sqrt(own * of_groups), joint / own

    constant = f32(scale * all_pairs * (total_same - ratio * total_kernel) / norm)
    of_pair, of_rest = f32(scale / norm), f32(ratio)
    side = (scale * one_side / norm * (of_same - ratio * of_kernel)).astype(f32)
    weight = np.empty(n, dtype=f32)
    for row in range(n):
        from_row, total = constant - side[row], _ZERO
        for other in range(n):
            by_kernel = of_pair * (same[row, other] - of_rest * kernel[row, other]) + (from_row - side[other])
            weight[other] = by_kernel * slope[row, other]
        weight[row] = _ZERO
        for other in range(n):
            total += weight[other]
        for dimension in range(columns.shape[0]):
            pull = _ZERO
            for other in range(n):
                pull += weight[other] * columns[dimension, other]
            gradient[row, dimension] = 4 * (total * columns[dimension, row] - pull)
    return float(joint / norm)
