"""Draws from the posterior of normalized expression, handed from models to analyses some cells at a time."""

from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor

from scvae_ext.minibatch import SparseCounts

__all__ = ["PosteriorDraws"]


@dataclass(frozen=True)
class PosteriorDraws:
    r"""What a model says about the expression of some cells, beside what was counted in them.

    The model's mean of the counts is ``depth`` times ``fitted``. An analysis takes an iterable of these, so that it
    holds the samples of a few cells at a time.

    Parameters
    ----------
    rows
        Which of the cells that were asked for these are.
    expression
        Draws of expression per unit of depth, averaged over the batches that cells are to be compared in. Sums to one
        per cell where depth is the library size.
    fitted
        The same draws in the batch in which each cell was observed; the very same tensor where no other is asked for.
    counts
        Observed counts; zero where nothing was measured.
    depth
        Library size in counts, or size factor; the same for all genes, or one for each.
    inverse_dispersion
        :math:`\theta` of the negative binomial, or ``None`` where the likelihood has none.
    measured
        Whether each gene, or whatever takes its place, was measured in a cell; all were where ``None``.
    """

    rows: slice
    expression: Float[Tensor, "samples cells genes"]
    fitted: Float[Tensor, "samples cells genes"]
    counts: SparseCounts
    depth: Float[Tensor, "cells #genes"]
    inverse_dispersion: Float[Tensor, "#cells genes"] | None
    measured: Bool[Tensor, "cells genes"] | None = None
