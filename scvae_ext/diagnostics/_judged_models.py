"""The probabilistic and the deterministic model behind one face, so that the same is asked of both."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from scvae_ext.likelihoods import depth, log_normalised_matrix
from scvae_ext.likelihoods.statistics import LOG_TARGET_DEPTH
from scvae_ext.minibatch import Minibatch, SparseCounts
from scvae_ext.models import SCVAE, Autoencoder
from scvae_ext.models.cells import Cells
from scvae_ext.modules import VAE, DeterministicAutoencoder
from scvae_ext.types import CellsByGenes, CellValues

__all__ = [
    "Deterministic",
    "Judged",
    "Probabilistic",
    "both_halves",
    "log_normalised_counts",
    "minibatches_of",
    "shares",
]

MINIBATCH = 256


@runtime_checkable
class Judged(Protocol):
    """What a comparison asks of a model of counts."""

    def centre(self, minibatch: Minibatch) -> Float[Tensor, "cells state"]:
        """Return the latent point of each cell: the mean of its posterior, where there is one."""

    def draw(self, minibatch: Minibatch) -> Float[Tensor, "cells state"]:
        """Return a latent point of each cell that its counts leave possible."""

    def expected(self, state: Float[Tensor, "cells state"], minibatch: Minibatch) -> CellsByGenes:
        """Return the share that each gene is expected to have of a cell's counts."""

    def counts(self, state: Float[Tensor, "cells state"], minibatch: Minibatch) -> CellsByGenes:
        """Draw counts at latent points, with the library size and covariates of cells."""

    def squared_error(self, minibatch: Minibatch, n_samples: int) -> CellValues:
        """Return the mean squared error of the log-normalised values expected for each cell."""


@dataclass(frozen=True)
class Probabilistic:
    """A VAE: points are draws from posteriors, counts are draws from its likelihood.

    Parameters
    ----------
    module
        The trained network.
    """

    module: VAE

    def centre(self, minibatch: Minibatch) -> Float[Tensor, "cells state"]:
        """As :meth:`Judged.centre`."""
        mean: Tensor = self.module.encode(minibatch).qz.loc
        return mean

    def draw(self, minibatch: Minibatch) -> Float[Tensor, "cells state"]:
        """As :meth:`Judged.draw`."""
        sample: Tensor = self.module.encode(minibatch).qz.sample()
        return sample

    def expected(self, state: Float[Tensor, "cells state"], minibatch: Minibatch) -> CellsByGenes:
        """As :meth:`Judged.expected`."""
        return shares(self.module.decode(state, minibatch).mean)

    def counts(self, state: Float[Tensor, "cells state"], minibatch: Minibatch) -> CellsByGenes:
        """As :meth:`Judged.counts`."""
        sample: Tensor = self.module.decode(state, minibatch).sample()
        return sample

    def squared_error(self, minibatch: Minibatch, n_samples: int) -> CellValues:
        """As :meth:`Judged.squared_error`; the expectation is a mean over draws, whose variance is taken off again."""
        compositional = minibatch.size_factor is None
        observed = log_normalised_matrix(minibatch, compositional=compositional)
        scale = (LOG_TARGET_DEPTH if compositional else 1.0) / depth(minibatch).unsqueeze(-1)
        total, squares = torch.zeros_like(observed), torch.zeros_like(observed)
        for _ in range(n_samples):
            values = torch.log1p(self.counts(self.draw(minibatch), minibatch) * scale)
            total += values
            squares += values.square()
        mean = total / n_samples
        of_mean = (squares / n_samples - mean.square()) / (n_samples - 1)
        return ((mean - observed).square() - of_mean).mean(-1)


@dataclass(frozen=True)
class Deterministic:
    """An autoencoder: one point a cell, and for want of a likelihood the least noise that counts have, Poisson.

    Parameters
    ----------
    module
        The trained network.
    """

    module: DeterministicAutoencoder

    def centre(self, minibatch: Minibatch) -> Float[Tensor, "cells state"]:
        """As :meth:`Judged.centre`."""
        return self.module.encode(minibatch)

    def draw(self, minibatch: Minibatch) -> Float[Tensor, "cells state"]:
        """As :meth:`Judged.draw`: the one point there is."""
        return self.module.encode(minibatch)

    def expected(self, state: Float[Tensor, "cells state"], minibatch: Minibatch) -> CellsByGenes:
        """As :meth:`Judged.expected`."""
        return shares(self.module.head.expression(self.module.decode_hidden(state, minibatch)))

    def counts(self, state: Float[Tensor, "cells state"], minibatch: Minibatch) -> CellsByGenes:
        """As :meth:`Judged.counts`."""
        return torch.poisson(self.expected(state, minibatch) * minibatch.library_size.unsqueeze(-1))

    def squared_error(self, minibatch: Minibatch, n_samples: int) -> CellValues:
        """As :meth:`Judged.squared_error`, which is what it was trained on."""
        return self.module.objective(minibatch).mse


def shares(expression: CellsByGenes) -> CellsByGenes:
    """Return values that sum to one in each cell; equal ones where all are zero.

    Parameters
    ----------
    expression
        Values that are not negative.
    """
    total = expression.sum(-1, keepdim=True)
    return torch.where(total > 0, expression / total.clamp_min(1e-30), 1.0 / expression.shape[-1])


def log_normalised_counts(counts: Float[Tensor, "*samples cells genes"]) -> Float[Tensor, "*samples cells genes"]:
    r"""Return :math:`\log(1 + 10^4 x / \ell)`, the library size being the sum of these very counts.

    Parameters
    ----------
    counts
        Counts, or shares.
    """
    return torch.log1p(counts * (LOG_TARGET_DEPTH / counts.sum(-1, keepdim=True).clamp_min(1e-30)))


def minibatches_of(
    model: SCVAE | Autoencoder, positions: Int[np.ndarray, "chosen"]
) -> Iterator[tuple[slice, Minibatch]]:
    """Read cells of the AnnData that a model was trained on, a few hundred at a time.

    Parameters
    ----------
    model
        The model.
    positions
        Positions of the cells.
    """
    return iter(Cells(model._own_source(), positions, model.device, MINIBATCH))


def both_halves(minibatch: Minibatch, rng: np.random.Generator) -> tuple[Minibatch, Minibatch]:
    r"""Split the counts of each cell: each molecule goes to one of two cells with probability one half.

    :math:`x' \sim \operatorname{Binomial}(x, 1/2)` and :math:`x - x'` are independent given the rate of a Poisson
    count. Size factors are halved as well.

    Parameters
    ----------
    minibatch
        The cells.
    rng
        Source of randomness.
    """
    counts = minibatch.counts
    first = torch.from_numpy(rng.binomial(counts.values.cpu().numpy().astype(np.int64), 0.5)).to(counts.values)
    return _with_counts(minibatch, first), _with_counts(minibatch, counts.values - first)


def _with_counts(minibatch: Minibatch, values: Float[Tensor, "nonzero"]) -> Minibatch:
    """Return the cells with half of their molecules, entries of zero left out."""
    old = minibatch.counts
    kept = values > 0
    library_size: CellValues = old.sum_per_cell(values)
    return replace(
        minibatch,
        counts=SparseCounts(values[kept], old.cell_index[kept], old.gene_index[kept], old.n_cells, old.n_genes),
        library_size=library_size,
        size_factor=None if minibatch.size_factor is None else minibatch.size_factor / 2,
    )
