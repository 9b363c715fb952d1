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

__all__ = ["normalise_and_rectify"]

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
    n_kept = round((1 - dropout_rate) * _LEVELS)
    fits = x.device.type == "cpu" and x.dtype in (torch.float32, torch.bfloat16)
    if not (training and fits and len(rows) > 1 and n_kept > 0):
        hidden: Tensor = batch_norm(rows).view(x.shape)
        return nn.functional.dropout(hidden.relu(), dropout_rate, training)
    random = torch.empty(-(-rows.numel() // 4), dtype=torch.int64)
    if n_kept < _LEVELS:
        random.random_(-(2**63), None)
    output: Tensor = _Normalised.apply(
        full_precision(rows), batch_norm.weight, batch_norm.bias, batch_norm, random, n_kept
    )  # type: ignore[no-untyped-call]
    return output.view(x.shape)


def _array(buffer: Tensor | None) -> NDArray[Any]:
    return cast(Tensor, buffer).numpy()


class _Normalised(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, batch_norm: nn.BatchNorm1d, random: Tensor, n_kept: int
    ) -> Tensor:
        levels = random.numpy().view(np.uint16)[: x.numel()].reshape(x.shape)
        running = _array(batch_norm.running_mean), _array(batch_norm.running_var)
        _array(batch_norm.num_batches_tracked)[...] += 1
        scale = weight.detach().numpy()
        output, standardised, inverse_std = normalised(
            x.detach().contiguous().numpy(),
            scale,
            bias.detach().numpy(),
            running,
            np.float32(batch_norm.momentum),
            np.float32(batch_norm.eps),
            levels if n_kept < _LEVELS else levels[:0],
            n_kept,
        )
        ctx.arrays = output, standardised, scale, inverse_std, np.float32(_LEVELS / n_kept)
        return torch.from_numpy(output)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        gradients = normalised_backward(grad.contiguous().numpy(), *ctx.arrays)
        return *map(torch.from_numpy, gradients), None, None, None
