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

__all__ = ["NormalisedRows", "n_levels_kept", "normalise_and_rectify"]

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


class NormalisedRows:
    """The same of two rows or more at a time, in training and in single precision on a CPU, and its derivatives.

    It reads and moves what the layer holds where that lies now: it is for some minibatches, and not to be kept.

    Parameters
    ----------
    batch_norm, dropout_rate
        As for :func:`normalise_and_rectify`.
    """

    def __init__(self, batch_norm: nn.BatchNorm1d, dropout_rate: float) -> None:
        self._n_kept = n_levels_kept(dropout_rate)
        self._weight, self._bias = batch_norm.weight.detach().numpy(), batch_norm.bias.detach().numpy()
        self._running = _array(batch_norm.running_mean), _array(batch_norm.running_var)
        self._n_seen = _array(batch_norm.num_batches_tracked)
        self._momentum, self._eps = np.float32(batch_norm.momentum), np.float32(batch_norm.eps)

    def forward(self, x: Float[Tensor, "rows hidden"]) -> Float[Tensor, "rows hidden"]:
        """Return the output, and move the running moments.

        Parameters
        ----------
        x
            Input.
        """
        random = torch.empty(-(-x.numel() // 4), dtype=torch.int64)
        if self._n_kept < _LEVELS:
            random.random_(-(2**63), None)
        levels = random.numpy().view(np.uint16)[: x.numel()].reshape(x.shape)
        self._n_seen += 1
        output, standardised, inverse_std = normalised(
            x.detach().contiguous().numpy(),
            self._weight,
            self._bias,
            self._running,
            self._momentum,
            self._eps,
            levels if self._n_kept < _LEVELS else levels[:0],
            self._n_kept,
        )
        self._arrays = output, standardised, self._weight, inverse_std, np.float32(_LEVELS / self._n_kept)
        return torch.from_numpy(output)

    def backward(
        self, grad: Float[Tensor, "rows hidden"]
    ) -> tuple[Float[Tensor, "rows hidden"], Float[Tensor, "hidden"], Float[Tensor, "hidden"]]:
        """Return derivatives by x and by scale and shift, of the rows that went forwards last.

        Parameters
        ----------
        grad
            Derivative by the output.
        """
        by_x, by_weight, by_bias = normalised_backward(grad.contiguous().numpy(), *self._arrays)
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
        ctx.rows = NormalisedRows(batch_norm, dropout_rate)
        output: Tensor = ctx.rows.forward(x)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return *ctx.rows.backward(grad), None, None
