"""Batch normalisation, rectification and dropout as one operation, where the processor's cache makes that pay."""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from scvae_ext.kernels import normalised, normalised_backward

__all__ = ["normalise_and_rectify"]

# Dropout compares random integers of 16 bits with a threshold: its rate is right to a part in 65,536.
_LEVELS = 2**16


def normalise_and_rectify(
    x: Float[Tensor, "*samples cells hidden"], batch_norm: nn.BatchNorm1d, dropout_rate: float, training: bool
) -> Float[Tensor, "*samples cells hidden"]:
    """Return ``dropout(relu(batch_norm(x)))``, and update the running moments in training.

    In training, in single precision on a CPU, that is one operation with a derivative of its own; the rate of dropout is
    then rounded to a part in 65,536. Everywhere else it is what torch makes of the three.

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
    fits = x.device.type == "cpu" and x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    if not (training and fits and len(rows) > 1 and n_kept > 0):
        hidden: Tensor = batch_norm(rows).view(x.shape)
        return nn.functional.dropout(hidden.relu(), dropout_rate, training)
    random = torch.empty(-(-rows.numel() // 4), dtype=torch.int64)
    if n_kept < _LEVELS:
        random.random_(-(2**63), None)
    output, mean, variance = _Normalised.apply(  # type: ignore[no-untyped-call]
        rows, batch_norm.weight, batch_norm.bias, batch_norm.eps, random, n_kept
    )
    with torch.no_grad():
        momentum = batch_norm.momentum
        batch_norm.running_mean.lerp_(mean, momentum)
        batch_norm.running_var.lerp_(variance * (len(rows) / (len(rows) - 1)), momentum)
        batch_norm.num_batches_tracked.add_(1)
    result: Tensor = output.view(x.shape)
    return result


class _Normalised(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, random: Tensor, n_kept: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        levels = random.numpy().view(np.uint16)[: x.numel()].reshape(x.shape)
        output, standardised, mean, variance, inverse_std = normalised(
            x.detach().contiguous().numpy(),
            weight.detach().numpy(),
            bias.detach().numpy(),
            np.float32(eps),
            levels if n_kept < _LEVELS else levels[:0],
            n_kept,
        )
        ctx.factor = _LEVELS / n_kept
        output, standardised, inverse_std = map(torch.from_numpy, (output, standardised, inverse_std))
        ctx.save_for_backward(output, standardised, inverse_std, weight)
        mean, variance = torch.from_numpy(mean), torch.from_numpy(variance)
        ctx.mark_non_differentiable(mean, variance)
        return output, mean, variance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *of_moments: Tensor) -> tuple[Tensor | None, ...]:
        output, standardised, inverse_std, weight = (saved.detach().numpy() for saved in ctx.saved_tensors)
        by_x, by_weight, by_bias = normalised_backward(
            grad.contiguous().numpy(), output, standardised, weight, inverse_std, np.float32(ctx.factor)
        )
        return torch.from_numpy(by_x), torch.from_numpy(by_weight), torch.from_numpy(by_bias), None, None, None
