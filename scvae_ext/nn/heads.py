"""Output heads: from the decoder's hidden layer to the mean of a likelihood."""

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from scvae_ext.distributions import SMALLEST_MEAN, Composition
from scvae_ext.kernels import dense_product, write_compositions
from scvae_ext.nn.precision import full_precision, linear_logits
from scvae_ext.types import CellValues, GeneValues

__all__ = ["RESIDUAL_SCALE", "ExpressionHead", "LogExpressionHead", "MeanHead"]

# A state of the decoder reaches a gene by many hidden units, a residual factor by one weight, which weight decay and
# the steps of Adam would hold back: inputs of residual factors are this much larger.
RESIDUAL_SCALE = 3.0
# Two megabytes of them in single precision, written and read again while they are in a processor's cache.
LOGITS_AT_ONCE = 2**19


class MeanHead(nn.Module, ABC):
    r"""Head that tells the expression of each cell and gene.

    Parameters
    ----------
    n_hidden, n_genes
        Number of decoder units and of genes.
    n_residual
        Number of residual factors, which follow the decoder's activations in the input, times :data:`RESIDUAL_SCALE`.
    compositional
        Whether the expression of a cell sums to one.
    """

    def __init__(self, n_hidden: int, n_genes: int, *, n_residual: int = 0, compositional: bool = True) -> None:
        super().__init__()
        self.linear = nn.Linear(n_hidden + n_residual, n_genes)
        self.n_residual = n_residual
        self.compositional = compositional
        with torch.no_grad():
            self.linear.weight[:, n_hidden:] /= RESIDUAL_SCALE

    @property
    def residual_loadings(self) -> Float[Tensor, "genes residual"]:
        """What residual factors of one add to what the linear map gives."""
        return RESIDUAL_SCALE * self.linear.weight[:, self.linear.in_features - self.n_residual :]

    @abstractmethod
    def expression(self, hidden: Float[Tensor, "*samples cells hidden"]) -> Float[Tensor, "*samples cells genes"]:
        """Return expression per unit of depth.

        Parameters
        ----------
        hidden
            Activations of the decoder.
        """

    def write_expression(
        self,
        hidden: Float[Tensor, "samples cells hidden"],
        scale: CellValues,
        columns: Int[Tensor, "chosen"] | None,
        result: Float[Tensor, "cells chosen"],
        *,
        add: bool,
    ) -> None:
        """Write expression, summed over samples and scaled, without holding that of more than one sample.

        Parameters
        ----------
        hidden
            Activations of the decoder.
        scale
            Of each cell.
        columns
            Genes of the columns of the result, or ``None`` for all.
        result
            Where to write.
        add
            Whether to add to what is there.
        """
        for of_sample in hidden:
            self._write(of_sample, scale, columns, result, add)
            add = True

    def _write(
        self,
        hidden: Float[Tensor, "cells hidden"],
        scale: CellValues,
        columns: Int[Tensor, "chosen"] | None,
        result: Float[Tensor, "cells chosen"],
        add: bool,
    ) -> None:
        expression = self.expression(hidden)
        expression = expression if columns is None else expression[:, columns]
        if add:
            result.addcmul_(expression, scale.unsqueeze(-1))
        else:
            torch.mul(expression, scale.unsqueeze(-1), out=result)


class ExpressionHead(MeanHead):
    r"""Expected expression per unit of depth.

    With the library size as depth this is a share, :math:`\rho = \operatorname{softmax}(W h + b)`, which sums to one
    over the genes of a cell. With size factors it is a rate, :math:`\rho = \operatorname{softplus}(W h + b)`.

    Parameters
    ----------
    n_hidden, n_genes, n_residual, compositional
        As for :class:`MeanHead`.
    """

    def initialise(self, expression: GeneValues) -> None:
        """Start from the mean expression of each gene.

        Parameters
        ----------
        expression
            Mean over cells of counts per unit of depth.
        """
        start = expression.clamp_min(float(expression[expression > 0].min()) / 2)
        with torch.no_grad():
            self.linear.bias.copy_(start.log() if self.compositional else start + torch.log(-torch.expm1(-start)))

    def forward(self, hidden: Float[Tensor, "*samples cells hidden"]) -> Float[Tensor, "*samples cells genes"]:
        """Return the expression of each cell and gene.

        Parameters
        ----------
        hidden
            Activations of the decoder.
        """
        logits = full_precision(self.linear(hidden))
        return logits.softmax(dim=-1) if self.compositional else functional.softplus(logits)

    @override
    def expression(self, hidden: Float[Tensor, "*samples cells hidden"]) -> Float[Tensor, "*samples cells genes"]:
        expression: Tensor = self(hidden)
        return expression

    @override
    def _write(
        self,
        hidden: Float[Tensor, "cells hidden"],
        scale: CellValues,
        columns: Int[Tensor, "chosen"] | None,
        result: Float[Tensor, "cells chosen"],
        add: bool,
    ) -> None:
        # Passes over (cells, genes) are what expression costs: logits that are in the cache still become what is
        # wanted where it is wanted.
        plain = hidden.dtype == torch.float32 and not torch.is_autocast_enabled(hidden.device.type)
        if self.compositional and result.device.type == "cpu" and plain:
            genes = None if columns is None else columns.numpy()
            weight, bias = self.linear.weight.detach(), self.linear.bias.detach()
            rows = max(1, LOGITS_AT_ONCE // len(bias))
            parts = (part.split(rows) for part in (hidden.detach(), scale, result))
            for some, scales, results in zip(*parts, strict=True):
                logits = dense_product(some, weight, bias).numpy()
                write_compositions(logits, scales.numpy(), genes, results.numpy(), add=add)
        else:
            super()._write(hidden, scale, columns, result, add)

    def expected_counts(
        self, hidden: Float[Tensor, "*samples cells hidden"], depth: Float[Tensor, "*#samples cells"]
    ) -> Float[Tensor, "*samples cells genes"] | Composition:
        """Return expected counts: depth times expression, kept from underflow to an impossible zero.

        Parameters
        ----------
        hidden
            Activations of the decoder.
        depth
            Library size in counts, or size factor.
        """
        if self.compositional:
            return Composition(linear_logits(self.linear, hidden), depth)
        return (self.expression(hidden) * depth.unsqueeze(-1)).add_(SMALLEST_MEAN)


class LogExpressionHead(MeanHead):
    r"""Expected log-normalised expression, :math:`y = W h + b`.

    Parameters
    ----------
    n_hidden, n_genes, n_residual
        As for :class:`MeanHead`.
    compositional
        Whether the expression that it stands for sums to one per cell.
    """

    def initialise(self, log_mean: GeneValues) -> None:
        """Start from the mean of each gene.

        Parameters
        ----------
        log_mean
            Mean over cells of the log-normalised values.
        """
        with torch.no_grad():
            self.linear.bias.copy_(log_mean)

    def forward(self, hidden: Float[Tensor, "*samples cells hidden"]) -> Float[Tensor, "*samples cells genes"]:
        """Return the expected log-normalised values.

        Parameters
        ----------
        hidden
            Activations of the decoder.
        """
        return full_precision(self.linear(hidden))

    @override
    def expression(self, hidden: Float[Tensor, "*samples cells hidden"]) -> Float[Tensor, "*samples cells genes"]:
        # The values taken back from the log, none below zero.
        expression = torch.expm1(self(hidden).clamp_min(0))
        if not self.compositional:
            return expression
        return expression / expression.sum(-1, keepdim=True).clamp_min(torch.finfo(expression.dtype).tiny)
