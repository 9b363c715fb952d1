"""Batch normalisation, rectification and dropout of a layer in two passes, and their derivatives in two more."""

import numpy as np
from numpy.typing import NDArray

from scvae_ext.kernels.compiled import compiled

__all__ = ["normalised", "normalised_backward"]

Floats = NDArray[np.float32]
f32 = np.float32
_ZERO, _ONE = f32(0), f32(1)


@compiled(sums=True)
def normalised(
    x: Floats,
    weight: Floats,
    bias: Floats,
    running: tuple[Floats, Floats],
    momentum: np.float32,
    eps: np.float32,
    random: NDArray[np.uint16],
    n_kept: int,
) -> tuple[Floats, Floats, Floats]:
    r"""Return :math:`d \max(0, \gamma \hat x + \beta)` with :math:`\hat x` the columns of x standardised.

    Parameters
    ----------
    x
        Input, of shape (rows, columns).
    weight, bias
        :math:`\gamma` and :math:`\beta` of each column.
    running
        Running mean and variance of each column, which are moved towards those of x (the variance divided by the number
        of rows less one), in place.
    momentum
        By which share of the way.
    eps
        Added to the variance of each column.
    random
        Random integers of shape (rows, columns): d is 65536 / n_kept where they are below ``n_kept``, and elsewhere
        zero. Where it has no rows, d is one everywhere.
    n_kept
        Between 1 and 65536.

    Returns
    -------
    output
        Of shape (rows, columns).
    standardised
        :math:`\hat x`, of the same shape.
    inverse_std
        One divided by the root of variance and ``eps``.
    """
    n_rows, n_columns = x.shape
    mean, variance = np.zeros(n_columns, dtype=f32), np.zeros(n_columns, dtype=f32)
    for row in range(n_rows):
        for column in range(n_columns):
            mean[column] += x[row, column]
    mean *= _ONE / f32(n_rows)
    standardised, output = np.empty_like(x), np.empty_like(x)
    for row in range(n_rows):
        for column in range(n_columns):
            centred = x[row, column] - mean[column]
            standardised[row, column] = centred
            variance[column] += centred * centred
    variance *= _ONE / f32(n_rows)
    inverse_std = _ONE / np.sqrt(variance + eps)
    unbiased = f32(n_rows) / f32(n_rows - 1)
    for column in range(n_columns):
        running[0][column] += momentum * (mean[column] - running[0][column])
        running[1][column] += momentum * (variance[column] * unbiased - running[1][column])
    factor = f32(65536) / f32(n_kept)
    for row in range(n_rows):
        for column in range(n_columns):
            value = standardised[row, column] * inverse_std[column]
            standardised[row, column] = value
            activation = value * weight[column] + bias[column]
            # A comparison that is false for NaN, so that it stays one.
            output[row, column] = _ZERO if activation < _ZERO else activation
        if random.shape[0]:
            for column in range(n_columns):
                kept = factor if random[row, column] < n_kept else _ZERO
                output[row, column] *= kept
    return output, standardised, inverse_std


@compiled(sums=True)
def normalised_backward(
    grad: Floats, output: Floats, standardised: Floats, weight: Floats, inverse_std: Floats, factor: np.float32
) -> tuple[Floats, Floats, Floats]:
    """Return the derivatives by x, weight and bias of :func:`normalised`.

    Parameters
    ----------
    grad
        Derivatives by the output.
    output, standardised, inverse_std
        As :func:`normalised` returned them.
    weight
        As it was given to it.
    factor
        What d is where it is not zero.
    """
    n_rows, n_columns = grad.shape
    by_x = np.empty_like(grad)
    by_weight, by_bias = np.zeros(n_columns, dtype=f32), np.zeros(n_columns, dtype=f32)
    for row in range(n_rows):
        for column in range(n_columns):
            # Zero where the output is: rectified or left out.
            passed = _ZERO if output[row, column] == _ZERO else grad[row, column] * factor
            by_x[row, column] = passed
            by_bias[column] += passed
            by_weight[column] += passed * standardised[row, column]
    share = _ONE / f32(n_rows)
    for row in range(n_rows):
        for column in range(n_columns):
            explained = (by_bias[column] + standardised[row, column] * by_weight[column]) * share
            by_x[row, column] = (by_x[row, column] - explained) * weight[column] * inverse_std[column]
    return by_x, by_weight, by_bias
