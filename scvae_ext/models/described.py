"""Groups of new cells, and which of them a reference describes."""

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.spatial.distance import cdist

from scvae_ext.models.cells import Cells
from scvae_ext.models.inference import latent_parameters
from scvae_ext.models.novelty import elbo_of, replicate_of, without_labels
from scvae_ext.modules import VAE
from scvae_ext.random_state import seeded

__all__ = ["are_described", "groups_of_states", "standardised_elbo"]

N_GROUPS, CELLS_OF_A_GROUP, N_ITERATIONS = 16, 10, 10
N_REPLICATES, N_SAMPLES = 10, 3
# Cells whose ELBO is so many standard deviations below the median are taken as unlike the reference; of a Gaussian one
# cell in 740 would be. Fewer cells than these have no median to speak of.
MOST_BELOW, FEWEST_CELLS = 3.0, 20
MAD_TO_STD = 1.4826


def groups_of_states(module: VAE, cells: Cells, seed: int) -> tuple[Int[np.ndarray, "cells"], int]:
    """Return groups of cells by their posterior means (k-means, at most 16), and how many there are.

    Parameters
    ----------
    module, cells
        Of what.
    seed
        Of the start.
    """
    n_groups = max(1, min(N_GROUPS, len(cells) // CELLS_OF_A_GROUP))
    if n_groups == 1:
        return np.zeros(len(cells), dtype=np.int64), 1
    means = latent_parameters(module, cells)[0].astype(np.float64)
    centres = means[np.random.default_rng(seed).choice(len(means), n_groups, replace=False)]
    for _ in range(N_ITERATIONS):
        group = cdist(means, centres, "sqeuclidean").argmin(1)
        n_cells = np.bincount(group, minlength=n_groups)
        sums = np.stack([np.bincount(group, column, n_groups) for column in means.T], axis=1)
        # A group that has lost all its cells stays where it is.
        centres = np.where(n_cells[:, None] > 0, sums / np.maximum(n_cells, 1)[:, None], centres)
    return group.astype(np.int64), n_groups


def standardised_elbo(module: VAE, cells: Cells, seed: int) -> Float[np.ndarray, "cells"]:
    """Return by how many standard deviations the ELBO of a cell differs from that of cells drawn at its own posterior.

    Ten are drawn for each, of genes alone, with its total count. Labels play no part.

    Parameters
    ----------
    module, cells
        Of what; the likelihood is one of counts.
    seed
        Of all draws.
    """
    difference, spread = np.empty(len(cells)), np.empty(len(cells))
    with seeded(seed):  # torch's distributions draw from the default generator alone
        for rows, given in cells:
            minibatch = without_labels(module, given)
            qz = module.encode(minibatch).qz
            drawn = np.stack(
                [
                    elbo_of(module, replicate_of(module, minibatch, torch.normal(qz.loc, qz.scale)), N_SAMPLES)
                    for _ in range(N_REPLICATES)
                ]
            )
            difference[rows] = elbo_of(module, minibatch, N_SAMPLES) - drawn.mean(0)
            spread[rows] = drawn.std(0, ddof=1)
    return difference / np.maximum(spread, np.finfo(float).tiny)


def are_described(z: Float[np.ndarray, "cells"], batch: Int[np.ndarray, "cells"]) -> Bool[np.ndarray, "cells"]:
    """Return which cells are not far below most of their batch.

    Parameters
    ----------
    z
        What :func:`standardised_elbo` gives.
    batch
        Batch of each cell.
    """
    described = np.ones(len(z), dtype=bool)
    for code in np.unique(batch):
        of_batch = z[batch == code]
        if len(of_batch) < FEWEST_CELLS:
            continue
        median = np.median(of_batch)
        spread = max(1.0, MAD_TO_STD * np.median(np.abs(of_batch - median)))
        described[batch == code] = of_batch >= median - MOST_BELOW * spread
    return described
