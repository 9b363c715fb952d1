"""Expected counts as shares of a cell's depth, and the road on which they never become a matrix of their own."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Size, Tensor
from torch.autograd.function import once_differentiable

from scvae_ext.kernels import composed_log_prob
from scvae_ext.minibatch import SparseCounts

__all__ = ["SMALLEST_MEAN", "Composition"]

# A softmax can underflow to zero, under which every count but zero is impossible.
SMALLEST_MEAN = 1e-30


@dataclass(frozen=True)
class Composition:
    r"""Expected counts :math:`\mu_g = \ell \operatorname{softmax}(a)_g`, kept from underflow to an impossible zero.

    Parameters
    ----------
    logits
        a, of each gene.
    depth
        :math:`\ell`, in counts.
    """

    logits: Float[Tensor, "*samples cells genes"]
    depth: Float[Tensor, "*#samples cells"]

    @property
    def shape(self) -> Size:
        """Shape of the expected counts, that of the logits."""
        return self.logits.shape

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
        same = {(tensor.device.type, tensor.dtype) for tensor in (self.logits, self.depth, theta, counts.values)}
        return (
            same == {("cpu", torch.float32)}
            and self.logits.shape[-2:] == (counts.n_cells, counts.n_genes)
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
        log_prob: Tensor = _LogProbSum.apply(self.logits, self.depth, theta, zero_inflation_logits, counts)  # type: ignore[no-untyped-call]
        return log_prob


class _LogProbSum(torch.autograd.Function):
    """All derivatives are laid down in the forward pass; the backward pass scales them."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        depth: Tensor,
        theta: Tensor,
        inflation: Tensor | None,
        counts: SparseCounts,
    ) -> Tensor:
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
        )
        ctx.shapes = logits.shape, depth.shape, None if inflation is None else inflation.shape
        saved = [by_logits, minus_by_theta, by_log_depth] + ([] if by_inflation is None else [by_inflation])
        ctx.save_for_backward(depth, *map(torch.from_numpy, saved))
        return torch.from_numpy(log_prob).view(logits.shape[:-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        depth, by_logits, minus_by_theta, by_log_depth, *by_inflation = ctx.saved_tensors
        logits_shape, depth_shape, inflation_shape = ctx.shapes
        of_row = grad.reshape(-1)
        grads: list[Tensor | None] = [None] * 5
        if ctx.needs_input_grad[0]:
            grads[0] = (by_logits * of_row.unsqueeze(-1)).view(logits_shape)
        if ctx.needs_input_grad[1]:
            grads[1] = (grad * by_log_depth.view(grad.shape) / depth).sum_to_size(depth_shape)
        if ctx.needs_input_grad[2]:
            grads[2] = (of_row @ minus_by_theta).neg_()
        if ctx.needs_input_grad[3]:
            per_gene = by_inflation[0].numel() != inflation_shape.numel()
            by_row = of_row @ by_inflation[0] if per_gene else by_inflation[0] * of_row.unsqueeze(-1)
            grads[3] = by_row.view(inflation_shape)
        return tuple(grads)
