"""Expected counts as shares of a cell's depth, and the road on which they never become a matrix of their own."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Size, Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from scvae_ext.kernels import composed_log_prob
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
    def weight(self) -> Float[Tensor, "genes hidden"]:
        """W."""
        return self.linear.weight

    @property
    def bias(self) -> Float[Tensor, "genes"]:
        """b."""
        return self.linear.bias

    @property
    def shape(self) -> Size:
        """Shape of the logits."""
        return Size((*self.hidden.shape[:-1], len(self.weight)))

    @property
    def device(self) -> torch.device:
        """Device of the logits."""
        return self.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the logits."""
        return self.weight.dtype

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
        zero_inflation_logits: Tensor | None = None,
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
        linear = self.source if isinstance(self.source, LinearLogits) else None
        of_logits = (self.logits,) if linear is None else (linear.hidden, linear.weight, linear.bias)
        log_prob: Tensor = _LogProbSum.apply(self.depth, theta, zero_inflation_logits, counts, *of_logits)  # type: ignore[no-untyped-call]
        return log_prob


class _LogProbSum(torch.autograd.Function):
    """All derivatives are laid down in the forward pass; the backward pass scales them.

    Logits are given as such, or by activations, weight and bias. What comes from above is then a factor of each row of
    the activations and of their derivatives, of which there are fewer than logits.
    """

    @staticmethod
    def forward(
        ctx: Any,
        depth: Tensor,
        theta: Tensor,
        inflation: Tensor | None,
        counts: SparseCounts,
        *of_logits: Tensor,
    ) -> Tensor:
        linear = len(of_logits) > 1
        logits = functional.linear(*of_logits) if linear else of_logits[0]
        n_genes = logits.shape[-1]
        rows = logits.detach().reshape(-1, n_genes).numpy()
        log_prob, by_logits, by_log_depth, minus_by_theta, by_inflation = composed_log_prob(
            rows,
            depth.detach().expand(logits.shape[:-1]).reshape(-1).numpy(),
            SMALLEST_MEAN,
            theta.detach().numpy(),
            None if inflation is None else inflation.detach().reshape(-1, n_genes).numpy(),
            counts.by_cell,
            derivatives=any(ctx.needs_input_grad),
            in_place=linear,
        )
        ctx.shapes = logits.shape, depth.shape, None if inflation is None else inflation.shape
        ctx.linear = linear
        saved = [by_logits, minus_by_theta, by_log_depth, *([] if by_inflation is None else [by_inflation])]
        ctx.save_for_backward(depth, *(of_logits[:2] if linear else ()), *map(torch.from_numpy, saved))
        return torch.from_numpy(log_prob).view(logits.shape[:-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        depth, *linear = ctx.saved_tensors[: 3 if ctx.linear else 1]
        by_logits, minus_by_theta, by_log_depth, *by_inflation = ctx.saved_tensors[3 if ctx.linear else 1 :]
        logits_shape, depth_shape, inflation_shape = ctx.shapes
        of_row = grad.reshape(-1)
        column = of_row.unsqueeze(-1)
        grads: list[Tensor | None] = [None] * len(ctx.needs_input_grad)
        if ctx.needs_input_grad[0]:
            grads[0] = (grad * by_log_depth.view(grad.shape) / depth).sum_to_size(depth_shape)
        if ctx.needs_input_grad[1]:
            grads[1] = (of_row @ minus_by_theta).neg_()
        if ctx.needs_input_grad[2]:
            per_gene = by_inflation[0].numel() != inflation_shape.numel()
            by_row = of_row @ by_inflation[0] if per_gene else by_inflation[0] * column
            grads[2] = by_row.view(inflation_shape)
        if not linear:
            if ctx.needs_input_grad[4]:
                grads[4] = (by_logits * column).view(logits_shape)
            return tuple(grads)
        hidden, weight = linear
        if ctx.needs_input_grad[4]:
            grads[4] = ((by_logits @ weight) * column).view(hidden.shape)
        if ctx.needs_input_grad[5]:
            grads[5] = by_logits.T @ (hidden.reshape(-1, hidden.shape[-1]) * column)
        if ctx.needs_input_grad[6]:
            grads[6] = of_row @ by_logits
        return tuple(grads)
