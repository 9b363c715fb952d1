"""Inverse dispersions and standard deviations, of genes or read from the decoder."""

from typing import Any, Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from scvae_ext.nn.precision import full_precision
from scvae_ext.types import CellIndices, GeneValues

__all__ = ["Dispersion", "DispersionKind"]

DispersionKind = Literal["gene", "gene-batch", "gene-label", "gene-cell"]

# Beyond exp(23) = 1e10 a negative binomial cannot be told from a Poisson, below exp(-10) all counts are zero.
LOG_DISPERSION_RANGE = (-10.0, 23.0)


class Dispersion(nn.Module):
    r"""Inverse dispersion :math:`\theta > 0` (or a standard deviation), held as its logarithm.

    The counts of a rare gene say little about its dispersion: by maximum likelihood it would run away to zero or to
    infinity, and describe cells that were not trained on badly. The prior
    :math:`\log\theta_g \sim \mathcal N(m, 0.5^2)` with :math:`m` the mean over genes lets genes borrow from each other.

    Parameters
    ----------
    kind
        One value a gene (``"gene"``), a gene and batch (``"gene-batch"``), a gene and label (``"gene-label"``), or a
        gene and cell, read from the decoder (``"gene-cell"``).
    n_hidden, n_genes, n_batches, n_labels
        Numbers of decoder units, genes, batches and labels.
    """

    def __init__(self, kind: DispersionKind, n_hidden: int, n_genes: int, n_batches: int, n_labels: int) -> None:
        super().__init__()
        self.kind = kind
        rows = {"gene-batch": (n_batches,), "gene-label": (n_labels,)}.get(kind, ())
        self.log_value = nn.Parameter(torch.zeros(*rows, n_genes))
        self.of_cell = nn.Linear(n_hidden, n_genes, bias=False) if kind == "gene-cell" else None

    PRIOR_STD = 0.5

    def initialise(self, value: GeneValues) -> None:
        """Start from one value a gene.

        Parameters
        ----------
        value
            Estimates of each gene, for example by moments.
        """
        with torch.no_grad():
            self.log_value.copy_(value.log().expand_as(self.log_value))

    def log_prior(self) -> Float[Tensor, ""]:
        r"""Return :math:`-2 \sum_g (\log\theta_g - m)^2`, the log density of the prior up to a constant."""
        log_density: Tensor = _GaussianAroundMean.apply(self.log_value, self.PRIOR_STD)  # type: ignore[no-untyped-call]
        return log_density

    def forward(
        self, hidden: Float[Tensor, "*samples cells hidden"], batch: CellIndices, label: CellIndices
    ) -> Float[Tensor, "*cells genes"]:
        """Return the values, of shape (genes,) for ``"gene"`` and (..., cells, genes) otherwise.

        Parameters
        ----------
        hidden, batch, label
            Activations of the decoder, batch and label of each cell. Residual factors behind the activations are
            left out.
        """
        log_value: Tensor = self.log_value
        if self.of_cell is not None:
            log_value = log_value + full_precision(self.of_cell(hidden[..., : self.of_cell.in_features]))
        value = _bounded_exp(log_value)
        rows = {"gene-batch": batch, "gene-label": label}
        return value[rows[self.kind]] if self.kind in rows else value

    def of_genes(self) -> GeneValues:
        """Return the values of kind ``"gene"``, without recording how they came about."""
        return _bounded_exp(self.log_value.detach())

    def gradient_of_genes(self, value: GeneValues, by_value: GeneValues, of_log_prior: float) -> GeneValues:
        """Return the derivative by ``log_value`` of kind ``"gene"``.

        Parameters
        ----------
        value, by_value
            From :meth:`of_genes`, and the derivative by them.
        of_log_prior
            Derivative by :meth:`log_prior`.
        """
        log_value = self.log_value.detach()
        by_log_value = torch.ops.aten.hardtanh_backward(by_value * value, log_value, *LOG_DISPERSION_RANGE)
        by_log_value.add_(log_value - log_value.mean(), alpha=-(self.PRIOR_STD**-2) * of_log_prior)
        return cast(Tensor, by_log_value)


def _bounded_exp(log_value: Tensor) -> Tensor:
    value: Tensor = functional.hardtanh(log_value, *LOG_DISPERSION_RANGE).exp()
    return value


class _GaussianAroundMean(torch.autograd.Function):
    r""":math:`-\sum_i (v_i - \bar v)^2 / (2 s^2)` over rows, with its derivative :math:`-(v_i - \bar v) / s^2`."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, std: float) -> Tensor:
        deviation = values - values.mean(dim=-1, keepdim=True)
        ctx.save_for_backward(deviation)
        ctx.precision = std**-2
        return deviation.square().sum() * (-0.5 * std**-2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (deviation,) = ctx.saved_tensors
        return deviation * (-ctx.precision * grad), None
