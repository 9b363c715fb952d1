"""Samples of diagonal Gaussians and their divergences from a standard normal, and the derivatives of both."""

import numpy as np
from numpy.typing import NDArray

from scvae_ext.kernels.compiled import compiled
from scvae_ext.kernels.elementary import exp

__all__ = ["gaussian_sample", "gaussian_sample_backward"]

Floats = NDArray[np.float32]
f32 = np.float32
_ZERO, _HALF, _ONE = f32(0), f32(0.5), f32(1)


@compiled()
def gaussian_sample(
    mean: Floats, log_variance: Floats, noise: Floats, limit: np.float32
) -> tuple[Floats, Floats, Floats]:
    r"""Return :math:`\mu + \sigma\varepsilon`, :math:`\sigma` and the divergence of each row from a standard normal.

    Parameters
    ----------
    mean, log_variance, noise
        :math:`\mu`, :math:`\log\sigma^2` and :math:`\varepsilon`, of shape (rows, columns).
    limit
        Log variances are kept between this and its negative.
    """
    n_rows, n_columns = mean.shape
    sample, std = np.empty_like(mean), np.empty_like(mean)
    divergence = np.empty(n_rows, dtype=f32)
    for row in range(n_rows):
        total = _ZERO
        for column in range(n_columns):
            # Comparisons that are false for NaN, so that it stays one.
            value = log_variance[row, column]
            value = limit if value > limit else value
            value = -limit if value < -limit else value
            scale, centre = exp(_HALF * value), mean[row, column]
            std[row, column] = scale
            sample[row, column] = centre + scale * noise[row, column]
            total += _HALF * (centre * centre + (scale * scale - _ONE) - value)
        divergence[row] = total
    return sample, std, divergence


@compiled()
def gaussian_sample_backward(
    grad: Floats,
    mean: Floats,
    log_variance: Floats,
    noise: Floats,
    std: Floats,
    limit: np.float32,
    of_divergence: np.float32,
) -> tuple[Floats, Floats]:
    r"""Return derivatives by :math:`\mu` and by :math:`\log\sigma^2`.

    Parameters
    ----------
    grad
        Derivative by the sample.
    mean, log_variance, noise, limit
        As for :func:`gaussian_sample`.
    std
        As it was returned.
    of_divergence
        Derivative by the divergence of each row.
    """
    by_mean, by_log_variance = np.empty_like(grad), np.empty_like(grad)
    for row in range(grad.shape[0]):
        for column in range(grad.shape[1]):
            from_above, scale, value = grad[row, column], std[row, column], log_variance[row, column]
            by_mean[row, column] = from_above + of_divergence * mean[row, column]
            slope = _HALF * (from_above * noise[row, column] * scale + of_divergence * (scale * scale - _ONE))
            by_log_variance[row, column] = _ZERO if abs(value) >= limit else slope
    return by_mean, by_log_variance
