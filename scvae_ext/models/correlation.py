"""Draws of expression, from which genes are correlated."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from scvae_ext.analysis import pearson_correlation, spearman_correlation
from scvae_ext.minibatch import Minibatch
from scvae_ext.models.cells import Cells, target_batches
from scvae_ext.modules import VAE
from scvae_ext.random_state import seeded

__all__ = ["CorrelationType", "gene_correlation"]

CorrelationType = Literal["spearman", "pearson"]
# Draws whose quantiles separate ranks.
N_SAMPLE = 8192


def gene_correlation(
    module: VAE,
    cells: Cells,
    batches: Sequence[int],
    genes: Int[np.ndarray, "chosen"] | None,
    correlation_type: CorrelationType,
    rna_size_factor: float,
    n_samples: int,
    seed: int,
    *,
    predictive: bool,
) -> Float[np.ndarray, "chosen chosen"]:
    """Return the correlation of genes over draws of all cells, the mean over batches to decode in.

    Parameters
    ----------
    module, cells
        Of what.
    batches
        Batches to decode with; the observed ones where empty.
    genes
        Positions of the genes, or ``None`` for all.
    correlation_type
        Which correlation.
    rna_size_factor
        What expression is multiplied with, and the depth of counts.
    n_samples, seed
        Draws of each cell, and their seed.
    predictive
        Whether counts are drawn rather than taken at their mean.

    Raises
    ------
    ValueError
        If the type of correlation is not known.
    """
    if correlation_type not in get_args(CorrelationType):
        raise ValueError(f'correlation_type={correlation_type!r} is not known: use "spearman" or "pearson".')
    found = []
    for targets in [[batch] for batch in batches] or [[]]:
        draws = partial(
            _draws,
            module,
            batches=targets,
            genes=genes,
            depth=rna_size_factor,
            n_samples=n_samples,
            seed=seed,
            predictive=predictive,
        )
        if correlation_type == "pearson":
            found.append(pearson_correlation(value.log1p() for value in draws(cells)))
        else:
            n_cells = min(len(cells), max(1, N_SAMPLE // n_samples))
            chosen = np.linspace(0, len(cells) - 1, n_cells).round().astype(np.int64)
            some = replace(cells, positions=cells.positions[chosen])
            found.append(spearman_correlation(partial(draws, cells), draws(some)))
    mean: np.ndarray = np.mean(found, axis=0)
    return mean


def _draws(
    module: VAE,
    cells: Cells,
    batches: Sequence[int],
    genes: Int[np.ndarray, "chosen"] | None,
    depth: float,
    n_samples: int,
    seed: int,
    *,
    predictive: bool,
) -> Iterator[Float[Tensor, "draws chosen"]]:
    """Yield draws of some cells at a time, the same on every pass."""
    columns = None if genes is None else torch.from_numpy(genes).to(cells.device)
    seeds = np.random.default_rng(seed)
    for _, minibatch in cells:
        qz = module.encode(minibatch).qz
        target = target_batches(minibatch, batches)[0]
        for n_at_once in cells.samples_at_once(minibatch.n_cells, n_samples):
            with seeded(int(seeds.integers(2**31))):  # torch's distributions draw from the default generator alone
                sample = qz.loc + qz.scale * torch.randn(n_at_once, *qz.loc.shape, device=cells.device)
                hidden = module.decode_hidden(sample, minibatch, target)
                if predictive:
                    values = _counts(module, hidden, depth, minibatch, target)
                else:
                    values = depth * module.likelihood.expression(hidden)
            values = values if columns is None else values[..., columns]
            yield values.flatten(0, 1)


def _counts(
    module: VAE, hidden: Tensor, depth: float, minibatch: Minibatch, batch: Tensor | None
) -> Float[Tensor, "samples cells genes"]:
    """Draw the counts of cells that are all of one depth."""
    of_cell = minibatch.library_size.new_full(hidden.shape[:-1], depth)
    px = module.likelihood(hidden, of_cell, minibatch.batch if batch is None else batch, minibatch.label)
    return module.likelihood.draw_counts(px, of_cell)
