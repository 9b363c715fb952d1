"""Batch normalisation, rectification and dropout as one operation, where the processor's cache makes that pay."""

from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from scvae_ext.kernels import normalised, normalised_backward
from scvae_ext.nn.precision import full_precision

__all__ = ["n_levels_kept", "normalise_and_rectify", "normalised_rows", "normalised_rows_backward"]

# Dropout compares random integers of 16 bits with a threshold: its rate is right to a part in 65,536.
_LEVELS = 2**16


def normalise_and_rectify(
    x: Float[Tensor, "*samples cells hidden"], batch_norm: nn.BatchNorm1d, dropout_rate: float, training: bool
) -> Float[Tensor, "*samples cells hidden"]:
    """Return ``dropout(relu(batch_norm(x)))``, and update the running moments in training.

    In training, in single precision on a CPU, that is one operation with a derivative of its own; the rate of dropout
    is then rounded to a part in 65,536. Everywhere else it is what torch makes of the three.

    Parameters
    ----------
    x
        Input; moments are taken over cells and samples.
    batch_norm
        Scale, shift, running moments and their momentum.
    dropout_rate
        Probability that a unit is left out in training.
    training
        Whether this is training.
    """
    rows = x.flatten(0, -2)
    fits = x.device.type == "cpu" and x.dtype in (torch.float32, torch.bfloat16)
    if not (training and fits and len(rows) > 1 and n_levels_kept(dropout_rate) > 0):
        hidden: Tensor = batch_norm(rows).view(x.shape)
        return nn.functional.dropout(hidden.relu(), dropout_rate, training)
    output: Tensor = _Normalised.apply(
        full_precision(rows), batch_norm.weight, batch_norm.bias, batch_norm, dropout_rate
    )  # type: ignore[no-untyped-call]
    return output.view(x.shape)


def normalised_rows(
    x: Float[Tensor, "rows hidden"], batch_norm: nn.BatchNorm1d, dropout_rate: float
) -> tuple[Float[Tensor, "rows hidden"], tuple[Any, ...]]:
    """Return the same of two rows or more in training, and what :func:`normalised_rows_backward` needs.

    Parameters
    ----------
    x, batch_norm, dropout_rate
        As for :func:`normalise_and_rectify`.
    """
    n_kept = n_levels_kept(dropout_rate)
    random = torch.empty(-(-x.numel() // 4), dtype=torch.int64)
    if n_kept < _LEVELS:
        random.random_(-(2**63), None)
    levels = random.numpy().view(np.uint16)[: x.numel()].reshape(x.shape)
    running = _array(batch_norm.running_mean), _array(batch_norm.running_var)
    _array(batch_norm.num_batches_tracked)[...] += 1
    scale = batch_norm.weight.detach().numpy()
    output, standardised, inverse_std = normalised(
        x.detach().contiguous().numpy(),
        scale,
        batch_norm.bias.detach().numpy(),
        running,
        np.float32(batch_norm.momentum),
        np.float32(batch_norm.eps),
        levels if n_kept < _LEVELS else levels[:0],
        n_kept,
    )
    return torch.from_numpy(output), (output, standardised, scale, inverse_std, np.float32(_LEVELS / n_kept))


def normalised_rows_backward(
    grad: Float[Tensor, "rows hidden"], arrays: tuple[Any, ...]
) -> tuple[Float[Tensor, "rows hidden"], Float[Tensor, "hidden"], Float[Tensor, "hidden"]]:
    """Return derivatives by x and by scale and shift.

    Parameters
    ----------
    grad
        Derivative by the output.
    arrays
        From :func:`normalised_rows`.
    """
    by_x, by_weight, by_bias = normalised_backward(grad.contiguous().numpy(), *arrays)
    return torch.from_numpy(by_x), torch.from_numpy(by_weight), torch.from_numpy(by_bias)


def n_levels_kept(dropout_rate: float) -> int:
    """Return how many of 65,536 equally likely random integers mean that a unit is kept.

    Parameters
    ----------
    dropout_rate
        Probability that it is left out.
    """
    return round((1 - dropout_rate) * _LEVELS)


def _array(buffer: Tensor | None) -> NDArray[Any]:
    return cast(Tensor, buffer).numpy()


class _Normalised(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, batch_norm: nn.BatchNorm1d, dropout_rate: float
    ) -> Tensor:
        output, ctx.arrays = normalised_rows(x, batch_norm, dropout_rate)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return *normalised_rows_backward(grad, ctx.arrays), None, None
