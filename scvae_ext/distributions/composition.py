"""Expected counts as shares of a cell's depth, and the road on which they never become a matrix of their own."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Size, Tensor, nn
from torch.autograd.function import once_differentiable

from scvae_ext.kernels import composed_log_prob, dense_product, transposed_dense_product
from scvae_ext.minibatch import SparseCounts

__all__ = ["SMALLEST_MEAN", "Composition", "LinearLogits"]

# A softmax can underflow to zero, under which every count but zero is impossible.
SMALLEST_MEAN = 1e-30


@dataclass(frozen=True)
class LinearLogits:
    r"""Logits :math:`a = W h + b` that have not been computed yet.

    Parameters
    ----------
    hidden
        h.
    linear
        The map, of the precision of the activations.
    """

    hidden: Float[Tensor, "*samples cells hidden"]
    linear: nn.Linear

    @property
    def shape(self) -> Size:
        """Shape of the logits."""
        return Size((*self.hidden.shape[:-1], self.linear.out_features))

    @property
    def device(self) -> torch.device:
        """Device of the logits."""
        return self.hidden.device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the logits."""
        return self.hidden.dtype

    def logits(self) -> Float[Tensor, "*samples cells genes"]:
        """Return the logits."""
        values: Tensor = self.linear(self.hidden)
        return values


@dataclass(frozen=True)
class Composition:
    r"""Expected counts :math:`\mu_g = \ell \operatorname{softmax}(a)_g`, kept from underflow to an impossible zero.

    Parameters
    ----------
    source
        a, of each gene, or what a linear map makes a from: as long as nobody asks for them, logits are then written
        over by the derivatives by themselves, and never scaled.
    depth
        :math:`\ell`, in counts.
    """

    source: Float[Tensor, "*samples cells genes"] | LinearLogits
    depth: Float[Tensor, "*#samples cells"]

    @cached_property
    def logits(self) -> Float[Tensor, "*samples cells genes"]:
        """The logits a."""
        return self.source.logits() if isinstance(self.source, LinearLogits) else self.source

    @property
    def shape(self) -> Size:
        """Shape of the expected counts, that of the logits."""
        return self.source.shape

    @cached_property
    def mean(self) -> Float[Tensor, "*samples cells genes"]:
        """The expected counts."""
        # Two passes with a plain multiplication take half the time of one addcmul with two broadcast arguments.
        return (self.logits.softmax(dim=-1) * self.depth.unsqueeze(-1)).add_(SMALLEST_MEAN)

    def fits(self, counts: SparseCounts, theta: Tensor) -> bool:
        """Whether :meth:`log_prob_sum` is at hand: in single precision on a CPU, with one dispersion for each gene.

        Parameters
        ----------
        counts
            The counts to be scored.
        theta
            Inverse dispersion.
        """
        same = {(tensor.device.type, tensor.dtype) for tensor in (self.source, self.depth, theta, counts.values)}
        return (
            same == {("cpu", torch.float32)}
            and self.shape[-2:] == (counts.n_cells, counts.n_genes)
            and theta.shape == (counts.n_genes,)
        )

    def log_prob_sum(
        self,
        counts: SparseCounts,
        theta: Float[Tensor, "genes"],
        zero_inflation_logits: Tensor | LinearLogits | None = None,
    ) -> Float[Tensor, "*samples cells"]:
        """Return the log-probability of each cell's counts under negative binomials with these means, in nats.

        The same as ``NegativeBinomial(self.mean, theta).log_prob_sum(counts)``, or ``ZeroInflated`` of it, with the
        softmax, the log-probability and all their derivatives in one pass.

        Parameters
        ----------
        counts
            Counts of the cells and genes of the last two dimensions.
        theta
            Inverse dispersion of each gene.
        zero_inflation_logits
            Logit of the probability of an additional zero, for each gene or for each count.
        """
        of_mean = _given(self.source)
        of_zeros = () if zero_inflation_logits is None else _given(zero_inflation_logits)
        log_prob: Tensor = _LogProbSum.apply(counts, self.depth, theta, len(of_mean), *of_mean, *of_zeros)  # type: ignore[no-untyped-call]
        return log_prob


def _given(logits: Tensor | LinearLogits) -> tuple[Tensor, ...]:
    return (logits,) if isinstance(logits, Tensor) else (logits.hidden, logits.linear.weight, logits.linear.bias)


class _LogProbSum(torch.autograd.Function):
    """All derivatives are laid down in the forward pass; the backward pass scales them.

    Logits, of the mean and of additional zeros, are given as such, or by activations, weight and bias. What comes from
    above is then a factor of each row of the activations and of their derivatives, which are fewer than the logits.
    """

    @staticmethod
    def forward(
        ctx: Any, counts: SparseCounts, depth: Tensor, theta: Tensor, n_of_mean: int, *of_logits: Tensor
    ) -> Tensor:
        ctx.n_of_mean, ctx.shapes = n_of_mean, (depth.shape, *(tensor.shape for tensor in of_logits))
        of_mean, of_zeros = of_logits[:n_of_mean], of_logits[n_of_mean:]
        logits = _logits(of_mean)
        log_prob, by_logits, by_log_depth, minus_by_theta, by_zeros, _ = composed_log_prob(
            _rows(logits),
            depth.detach().expand(logits.shape[:-1]).reshape(-1).numpy(),
            SMALLEST_MEAN,
            theta.detach().numpy(),
            _rows(_logits(of_zeros)) if of_zeros else None,
            counts.by_cell,
            derivatives=any(ctx.needs_input_grad),
            overwritten=(len(of_mean) > 1, len(of_zeros) > 1),
        )
        derivatives = [by_logits, by_log_depth, minus_by_theta, *([] if by_zeros is None else [by_zeros])]
        inputs = [tensor for given in (of_mean, of_zeros) if len(given) > 1 for tensor in given[:2]]
        ctx.save_for_backward(depth, *map(torch.from_numpy, derivatives), *inputs)
        return torch.from_numpy(log_prob).view(logits.shape[:-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        depth, by_logits, by_log_depth, minus_by_theta, *others = ctx.saved_tensors
        depth_shape, *shapes = ctx.shapes
        of_row = grad.reshape(-1)
        grads: list[Tensor | None] = [None] * len(ctx.needs_input_grad)
        if ctx.needs_input_grad[1]:
            grads[1] = (grad * by_log_depth.view(grad.shape) / depth).sum_to_size(depth_shape)
        if ctx.needs_input_grad[2]:
            grads[2] = (of_row @ minus_by_theta).neg_()
        n_of_mean, first = ctx.n_of_mean, 4
        by_zeros = others.pop(0) if len(shapes) > n_of_mean else None
        for derivative, n_given in ((by_logits, n_of_mean), (by_zeros, len(shapes) - n_of_mean)):
            if derivative is None:
                break
            wanted = ctx.needs_input_grad[first : first + n_given]
            if n_given > 1:
                hidden, weight, *others = others
                grads[first : first + n_given] = _through_linear(derivative, of_row, hidden, weight, wanted)
            elif wanted[0]:
                shape = shapes[first - 4]
                per_gene = derivative.numel() != shape.numel()
                grads[first] = (of_row @ derivative if per_gene else derivative * of_row.unsqueeze(-1)).view(shape)
            first += n_given
        return tuple(grads)


def _logits(given: tuple[Tensor, ...]) -> Tensor:
    if len(given) == 1:
        return given[0]
    hidden, weight, bias = given
    return dense_product(hidden.reshape(-1, hidden.shape[-1]), weight, bias).view(*hidden.shape[:-1], len(weight))


def _rows(logits: Tensor) -> NDArray[np.float32]:
    rows: NDArray[np.float32] = logits.detach().reshape(-1, logits.shape[-1]).numpy()
    return rows


def _through_linear(
    by_logits: Tensor, of_row: Tensor, hidden: Tensor, weight: Tensor, wanted: tuple[bool, ...]
) -> list[Tensor | None]:
    """Return derivatives by activations, weight and bias."""
    column = of_row.unsqueeze(-1)
    return [
        (dense_product(by_logits, weight.T) * column).view(hidden.shape) if wanted[0] else None,
        transposed_dense_product(by_logits, hidden.reshape(-1, hidden.shape[-1]) * column) if wanted[1] else None,
        of_row @ by_logits if wanted[2] else None,
    ]
