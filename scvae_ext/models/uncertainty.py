"""How much a model leaves open about each cell."""

from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int

from scvae_ext.analysis import gaussian_entropy, gaussian_information, label_probabilities
from scvae_ext.models.cells import BATCH_SIZE, Cells
from scvae_ext.models.inference import draw_latent, latent_mean, latent_parameters
from scvae_ext.modules import VAE

__all__ = ["Labels", "cell_uncertainty"]

# Step of finite differences, in standard deviations of the prior.
STEP = 0.05
# Entries of (cells, latent, genes) at once: 64 MB in single precision.
MAX_ENTRIES = 2**24

Labels = tuple[Int[np.ndarray, "known"], tuple[str, ...]]


def cell_uncertainty(
    module: VAE,
    cells: Cells,
    known: Cells,
    labels: Labels | None,
    own: Int[np.ndarray, "cells"],
    n_neighbours: int,
    n_samples: int,
    seed: int,
) -> pd.DataFrame:
    """Return one row a cell, columns as for :meth:`~scvae_ext.SCVAE.get_cell_uncertainty`.

    Parameters
    ----------
    module, cells
        Of what.
    known
        Cells of the aggregated posterior, all of their source, among which neighbours are looked for.
    labels
        Label of each of them, -1 for none, and the names of the labels; ``None`` for no such columns.
    own
        Position of each cell among them, -1 where it is none of them.
    n_neighbours, n_samples, seed
        Neighbours of a draw, draws of each cell, and their seed.

    Raises
    ------
    ValueError
        If fewer cells have a label than neighbours are asked for.
    """
    mean, variance = latent_parameters(module, known)
    own_variance = latent_parameters(module, cells)[1]
    columns = {
        "entropy": gaussian_entropy(own_variance),
        "information": gaussian_information(own_variance, mean, variance),
        "laplace_entropy": _laplace_entropy(module, cells),
    }
    names = cells.source.obs_names[cells.positions]
    if labels is None:
        return pd.DataFrame(columns, index=names)
    codes, label_names = labels
    labelled = np.flatnonzero(codes >= 0)
    if len(labelled) <= n_neighbours:
        raise ValueError(
            f"n_neighbors={n_neighbours} needs more cells with a label than the {len(labelled)} that there are."
        )
    # Its last entry is that of cells that are none of them.
    place = np.full(known.source.n_cells + 1, -1)
    place[labelled] = np.arange(len(labelled))
    states = latent_mean(module, replace(known, positions=labelled), n_samples, seed)
    draws = draw_latent(module, cells, n_samples, seed)
    probability = label_probabilities(draws, states, codes[labelled], len(label_names), place[own], n_neighbours)
    best = probability.argmax(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        entropy = -np.where(probability > 0, probability * np.log(probability), 0.0).sum(axis=1)
    return pd.DataFrame(columns, index=names).assign(
        label_entropy=entropy,
        label_probability=probability.max(axis=1),
        label=pd.Categorical.from_codes(best, categories=pd.Index(label_names)),
    )


def _laplace_entropy(module: VAE, cells: Cells) -> Float[np.ndarray, "cells"]:
    r"""Return the entropy of the Gaussian that the decoder's curvature at the posterior mean gives, in nats.

    Its precision is :math:`I + J^\top \operatorname{diag}(v)^{-1} J` with the variance v of the counts and the
    derivatives J of their mean by z: the Fisher information of the mean, and that of a standard normal prior.
    """
    n_latent = module.n_latent
    entropy = np.empty(len(cells))
    most = max(1, MAX_ENTRIES // (n_latent * cells.source.n_genes))
    for rows, minibatch in replace(cells, batch_size=min(cells.batch_size or BATCH_SIZE, most)):
        posterior = module.encode(minibatch)
        centre = posterior.qz.loc
        log_library = None if posterior.log_library is None else posterior.log_library.loc
        scale = module.decode(centre, minibatch, log_library).variance.sqrt()
        slopes = []
        for dimension in range(n_latent):
            step = torch.zeros_like(centre)
            step[:, dimension] = STEP
            above, below = (module.decode(centre + sign * step, minibatch, log_library).mean for sign in (1, -1))
            slopes.append((above - below) / (2 * STEP * scale))
        slope = torch.stack(slopes, dim=1).double()
        precision = torch.eye(n_latent, dtype=slope.dtype, device=slope.device) + slope @ slope.mT
        constant = n_latent * np.log(2 * np.pi * np.e)
        entropy[rows] = 0.5 * (constant - torch.logdet(precision)).cpu().numpy()
    return entropy
