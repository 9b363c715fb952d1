"""How much a model leaves open about each cell."""

from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from scvae_ext.analysis import gaussian_entropy, gaussian_information, label_probabilities
from scvae_ext.models.cells import Cells
from scvae_ext.models.inference import draw_latent, latent_mean, latent_parameters
from scvae_ext.models.subsets import place_among, some_of_each
from scvae_ext.modules import VAE

__all__ = ["Labels", "cell_uncertainty"]

# Step of finite differences, in standard deviations of the prior where the cell is.
STEP = 0.05
# Derivatives are held in double precision.
COPIES_OF_SLOPES = 2

Labels = tuple[Int[np.ndarray, "known"], tuple[str, ...]]


def cell_uncertainty(
    module: VAE,
    cells: Cells,
    known: Cells,
    labels: Labels | None,
    own: Int[np.ndarray, "cells"],
    n_neighbors: int,
    n_samples: int,
    num_cells_posterior: int | None,
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
    n_neighbors, n_samples
        Neighbours of a draw, and draws of each cell.
    num_cells_posterior
        Labelled cells to look among, drawn at random where there are more; all where ``None``.
    seed
        Of all draws.

    Raises
    ------
    ValueError
        If there are no more cells with a label than neighbours are asked for.
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
    labelled = some_of_each(np.where(codes >= 0, 0, -1), 1, num_cells_posterior, seed)
    if len(labelled) <= n_neighbors:
        of_these = "" if num_cells_posterior is None else f" (num_cells_posterior={num_cells_posterior})"
        raise ValueError(
            f"n_neighbors={n_neighbors} needs more cells with a label than the {len(labelled)} that are looked at"
            f"{of_these}."
        )
    place = place_among(labelled, known.source.n_cells, own)
    states = latent_mean(module, replace(known, positions=labelled), n_samples, seed)
    draws = draw_latent(module, cells, n_samples, seed)
    probability = label_probabilities(draws, states, codes[labelled], len(label_names), place, n_neighbors)
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

    Its precision is :math:`\Lambda + J^\top \operatorname{diag}(v)^{-1} J` with the variance v of the counts and the
    derivatives J of their mean by z: the Fisher information of the mean, and the precision of the prior.
    """
    n_latent = module.n_latent
    entropy = np.empty(len(cells))
    for rows, minibatch in cells.limited(COPIES_OF_SLOPES * n_latent * cells.source.n_genes):
        posterior = module.encode(minibatch)
        centre = posterior.qz.loc
        log_library = None if posterior.log_library is None else posterior.log_library.loc
        scale = module.decode(centre, minibatch, log_library).variance.sqrt()
        prior = _prior_precision(module, centre[:, :n_latent])
        slopes = []
        for dimension, length in enumerate((STEP * prior.rsqrt()).T):
            step = torch.zeros_like(centre)
            step[:, dimension] = length
            above, below = (module.decode(centre + sign * step, minibatch, log_library).mean for sign in (1, -1))
            slopes.append((above - below) / (2 * length.unsqueeze(1) * scale))
        slope = torch.stack(slopes, dim=1).double()
        precision = torch.diag_embed(prior.double()) + slope @ slope.mT
        constant = n_latent * np.log(2 * np.pi * np.e)
        entropy[rows] = 0.5 * (constant - torch.logdet(precision)).cpu().numpy()
    return entropy


def _prior_precision(module: VAE, z: Float[Tensor, "cells latent"]) -> Float[Tensor, "cells latent"]:
    r"""Return the precision of each dimension of the prior at some points: one for a standard normal prior.

    Of a mixture it is that of its Gaussians, averaged by how probably the point is of each of them,
    :math:`\sum_k p(k \mid z) / s_k^2`. The negative second derivative of :math:`\log p(z)` is less than that by the
    spread of the Gaussians' gradients, which between two of them leaves no precision at all, and so no Gaussian.
    """
    if module.prior is None:
        return torch.ones_like(z)
    components = module.prior.components(module.encoder)
    log_joint = components.log_prob(z.unsqueeze(1)).sum(-1) + module.prior.logits.log_softmax(0)
    precision: Tensor = log_joint.softmax(-1) @ components.variance.reciprocal()
    return precision
