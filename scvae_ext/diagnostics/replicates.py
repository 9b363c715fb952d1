"""Data sets that a model would have produced, reduced to statistics while they are drawn."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from scvae_ext.diagnostics.replicated import STATISTICS, Moments, Replicated
from scvae_ext.minibatch import Minibatch
from scvae_ext.models.cells import Cells, evaluating
from scvae_ext.modules import VAE
from scvae_ext.random_state import seeded

__all__ = ["N_BINS", "Latent", "Replicates", "draw_replicates"]

Latent = Literal["posterior", "prior"]

N_BINS = 40
"""Bins of the histogram of the probability integral transform."""


@dataclass(frozen=True, eq=False)
class Replicates:
    """What is kept of the replicated data sets.

    Parameters
    ----------
    genes, cells
        Each statistic, by gene and by cell.
    correlation
        Correlation of log1p counts between the genes of each pair.
    pairs
        Positions of both genes of a pair.
    pit_counts
        Histogram over cells of each gene's randomised probability integral transform, in equal bins.
    """

    genes: dict[str, Replicated]
    cells: dict[str, Replicated]
    correlation: Replicated
    pairs: Int[np.ndarray, "pairs 2"]
    pit_counts: Int[np.ndarray, "genes bins"]


def draw_replicates(
    module: VAE, cells: Cells, n_samples: int, latent: Latent, correlated: Int[np.ndarray, "chosen"], seed: int
) -> Replicates:
    """Draw data sets like the observed one, and compare their statistics with its own.

    Memory holds a part of the samples of one minibatch at a time, and sums.

    Parameters
    ----------
    module, cells
        The model, and the cells whose library sizes, batches and covariates are taken.
    n_samples
        Number of data sets.
    latent
        Where z is drawn from.
    correlated
        Positions of the genes whose correlations are computed.
    seed
        Seed of all draws.
    """
    n_genes = cells.source.n_genes
    of_genes = _GeneSums(n_samples, n_genes)
    of_cells: list[dict[str, Replicated]] = []
    observed_products, products = _Products(1, len(correlated)), _Products(n_samples, len(correlated))
    pit_counts = np.zeros(n_genes * N_BINS, dtype=np.int64)
    columns = torch.from_numpy(correlated).to(cells.device)
    rng = np.random.default_rng(seed)
    with evaluating(module), seeded(seed):  # torch's distributions draw from the default generator alone
        for _, minibatch in cells:
            observed = minibatch.counts.dense()
            of_genes.observe(observed)
            observed_products.add(slice(0, 1), observed[None][..., columns])
            below, ties = (torch.zeros_like(observed) for _ in range(2))
            parts = []
            for rows, counts in _replicates(module, cells, minibatch, n_samples, latent):
                of_genes.add(rows, counts)
                products.add(rows, counts[..., columns])
                below += (counts < observed).sum(0)
                ties += (counts == observed).sum(0)
                parts.append(Moments.of(counts, -1))
            of_cells.append(_compare(Moments.of(observed, -1), _stack(parts)))
            pit_counts += _pit_histogram(below, ties, n_samples, rng)
    pairs = np.column_stack(np.triu_indices(len(correlated), k=1))
    correlation = Replicated.compare(observed_products.correlation(pairs)[0], products.correlation(pairs))
    return Replicates(
        genes=of_genes.compare(),
        cells={
            name: Replicated(*(np.concatenate([getattr(part[name], field) for part in of_cells]) for field in _FIELDS))
            for name in STATISTICS
        },
        correlation=correlation,
        pairs=correlated[pairs],
        pit_counts=pit_counts.reshape(n_genes, N_BINS),
    )


_FIELDS = ("observed", "expected", "median", "lower", "upper", "tail")


def _replicates(
    module: VAE, cells: Cells, minibatch: Minibatch, n_samples: int, latent: Latent
) -> Iterator[tuple[slice, Float[Tensor, "samples cells genes"]]]:
    """Iterate over samples of a minibatch, as many at once as fit into memory."""
    n_cells = minibatch.n_cells
    posterior = module.encode(minibatch) if latent == "posterior" else None
    end = 0
    for size in cells.samples_at_once(n_cells, n_samples):
        if posterior is None:
            z = module.sample_prior(size * n_cells).view(size, n_cells, -1)
            of_library = module.library_prior(minibatch)
        else:
            z, of_library = posterior.qz.sample((size,)), posterior.log_library
        log_library = None if of_library is None else of_library.sample((size,))
        px = module.decode(z, minibatch, log_library)
        counts = module.likelihood.draw_counts(px, module.depth(minibatch, log_library))
        start, end = end, end + size
        yield slice(start, end), counts


class _GeneSums:
    """Sums of each gene over all cells, in the observed data and in each replicate."""

    def __init__(self, n_samples: int, n_genes: int) -> None:
        self.observed = Moments.zero(n_genes)
        self.replicated = Moments.zero(n_samples, n_genes)

    def observe(self, counts: Float[Tensor, "cells genes"]) -> None:
        self._add(self.observed, Moments.of(counts, -2), slice(None))
        self.observed.n += len(counts)
        self.replicated.n = self.observed.n

    def add(self, rows: slice, counts: Float[Tensor, "samples cells genes"]) -> None:
        self._add(self.replicated, Moments.of(counts, -2), rows)

    @staticmethod
    def _add(to: Moments, moments: Moments, rows: slice) -> None:
        to.total[rows] += moments.total
        to.squares[rows] += moments.squares
        to.zeros[rows] += moments.zeros

    def compare(self) -> dict[str, Replicated]:
        return _compare(self.observed, self.replicated)


class _Products:
    """Sums from which correlations of log1p counts between genes follow, for each sample."""

    def __init__(self, n_samples: int, n_genes: int) -> None:
        self.n = np.zeros(n_samples)
        self.total = np.zeros((n_samples, n_genes))
        self.product = np.zeros((n_samples, n_genes, n_genes))

    def add(self, rows: slice, counts: Float[Tensor, "samples cells genes"]) -> None:
        logs = counts.log1p()
        self.n[rows] += counts.shape[1]
        self.total[rows] += logs.sum(1, dtype=torch.float64).cpu().numpy()
        self.product[rows] += (logs.mT @ logs).cpu().numpy()

    def correlation(self, pairs: Int[np.ndarray, "pairs 2"]) -> Float[np.ndarray, "samples pairs"]:
        """Return correlations; NaN where a gene does not vary."""
        mean = self.total / self.n[:, None]
        covariance = self.product / self.n[:, None, None] - mean[:, :, None] * mean[:, None, :]
        variance = np.einsum("sgg->sg", covariance)
        first, second = pairs.T
        scale = np.sqrt(np.maximum(variance[:, first], 0.0) * np.maximum(variance[:, second], 0.0))
        correlation = np.full(scale.shape, np.nan)
        # Products are summed in single precision: what is left of a gene that does not vary is rounding.
        np.divide(covariance[:, first, second], scale, out=correlation, where=scale > 1e-6)
        return correlation.clip(-1.0, 1.0)


def _compare(observed: Moments, replicated: Moments) -> dict[str, Replicated]:
    of_observed, of_replicated = observed.statistics(), replicated.statistics()
    return {name: Replicated.compare(of_observed[name], of_replicated[name]) for name in STATISTICS}


def _stack(parts: list[Moments]) -> Moments:
    return Moments(
        np.concatenate([part.total for part in parts]),
        np.concatenate([part.squares for part in parts]),
        np.concatenate([part.zeros for part in parts]),
        parts[0].n,
    )


def _pit_histogram(
    below: Float[Tensor, "cells genes"], ties: Float[Tensor, "cells genes"], n_samples: int, rng: np.random.Generator
) -> Int[np.ndarray, "entries"]:
    """Return, gene by gene, how many of the transforms of a minibatch fall into each bin."""
    randomised = rng.random(below.shape)
    # The observed count is one more tie: its rank among all n_samples + 1 is then uniform if they are exchangeable.
    pit = (below.cpu().numpy() + randomised * (ties.cpu().numpy() + 1)) / (n_samples + 1)
    n_genes = pit.shape[1]
    bins = np.minimum((pit * N_BINS).astype(np.int64), N_BINS - 1)
    return np.bincount((np.arange(n_genes) * N_BINS + bins).ravel(), minlength=n_genes * N_BINS)
