"""A linear map of sparse counts that touches only the entries that are not zero."""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from scvae_ext.kernels import sparse_product, transposed_sparse_product
from scvae_ext.minibatch import SparseCounts

__all__ = ["SparseLinear"]

# Up to this share of entries that are not zero, sums over them take less time than a dense product on a CPU.
MAX_DENSITY = 0.35


class _SparseProduct(torch.autograd.Function):
    """Product of a sparse matrix of constants and a dense weight, as weighted sums of rows of the weight."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, counts: SparseCounts) -> Tensor:
        ctx.counts, ctx.n_genes = counts, len(weight)
        return torch.from_numpy(sparse_product(*counts.by_cell, weight.detach().numpy()))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        values, genes, offsets = ctx.counts.by_cell
        product = transposed_sparse_product(values, genes, offsets, grad.contiguous().numpy(), ctx.n_genes)
        return torch.from_numpy(product), None


class SparseLinear(nn.Module):
    r"""Linear map :math:`y = x W + b` of dense input or of sparse counts.

    On a CPU, and where few entries are not zero, the product of sparse counts is a sum over those entries; otherwise
    it is the dense product. Both are the same function up to rounding.

    Parameters
    ----------
    n_in, n_out
        Number of inputs and of outputs.
    bias
        Whether there is a b.

    Attributes
    ----------
    weight
        W, of shape (n_in, n_out): the transpose of :class:`torch.nn.Linear`'s, so that a gene's weights lie together.
    """

    bias: nn.Parameter | None

    def __init__(self, n_in: int, n_out: int, *, bias: bool = True) -> None:
        super().__init__()
        # The same distribution, and from the same seed the same numbers, as torch.nn.Linear.
        bound = 1 / math.sqrt(n_in) if n_in > 0 else 0.0
        self.weight = nn.Parameter(torch.empty(n_out, n_in).uniform_(-bound, bound).T.contiguous())
        self.bias = nn.Parameter(torch.empty(n_out).uniform_(-bound, bound)) if bias else None

    def forward(self, x: Float[Tensor, "*samples cells n_in"] | SparseCounts) -> Float[Tensor, "*samples cells n_out"]:
        """Return the map of each cell.

        Parameters
        ----------
        x
            Dense values, or sparse ones; sparse values are constants, no gradient reaches them.
        """
        if not isinstance(x, SparseCounts):
            product = x @ self.weight
        elif self.as_sum(x):
            product = _SparseProduct.apply(self.weight, x)  # type: ignore[no-untyped-call]
        else:
            product = x.dense() @ self.weight
        return product if self.bias is None else product + self.bias

    def as_sum(self, x: SparseCounts) -> bool:
        """Whether the map of sparse counts is computed as sums over their entries.

        Parameters
        ----------
        x
            The counts.
        """
        few = len(x.values) <= MAX_DENSITY * x.n_cells * x.n_genes
        return few and x.values.device.type == "cpu" and x.values.dtype == self.weight.dtype
