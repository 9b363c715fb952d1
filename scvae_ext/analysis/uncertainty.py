"""How much the posterior of a cell leaves open."""

import numpy as np
from jaxtyping import Float, Int

__all__ = ["gaussian_entropy", "gaussian_information", "label_probabilities"]


def gaussian_entropy(variance: Float[np.ndarray, "cells latent"]) -> Float[np.ndarray, "cells"]:
    r"""Return the differential entropy :math:`\frac12 \sum_d \log(2\pi e\,\sigma_d^2)` of each cell, in nats.

    It is the logarithm of the volume that the posterior fills, up to a constant, and depends on the units of z.

    Parameters
    ----------
    variance
        Posterior variance of each cell.
    """
    entropy: Float[np.ndarray, cells] = 0.5 * np.log(2 * np.pi * np.e * variance.astype(np.float64)).sum(1)
    return entropy


def gaussian_information(
    variance: Float[np.ndarray, "cells latent"],
    known_mean: Float[np.ndarray, "known latent"],
    known_variance: Float[np.ndarray, "known latent"],
) -> Float[np.ndarray, "cells"]:
    r"""Return by how many nats each posterior is narrower than the spread of all cells.

    .. math:: \frac12 \sum_d \log \frac{V_d}{\sigma_d^2}, \qquad
              V_d = \operatorname{Var}_m(\mu_{md}) + \operatorname{mean}_m(\sigma_{md}^2)

    with the variance :math:`V` of the aggregated posterior. It does not depend on the units of z; a latent dimension
    that is not used adds nothing, and a cell whose counts say nothing has about zero.

    Parameters
    ----------
    variance
        Posterior variance of each cell.
    known_mean, known_variance
        Posterior of the cells that make up the aggregated one.
    """
    spread = known_mean.astype(np.float64).var(0) + known_variance.astype(np.float64).mean(0)
    information: Float[np.ndarray, cells] = 0.5 * (np.log(spread) - np.log(variance.astype(np.float64))).sum(1)
    return information


def label_probabilities(
    draws: Float[np.ndarray, "samples cells latent"],
    known: Float[np.ndarray, "known latent"],
    label: Int[np.ndarray, "known"],
    n_labels: int,
    own: Int[np.ndarray, "cells"],
    n_neighbours: int,
) -> Float[np.ndarray, "cells labels"]:
    """Return the mean share of each label among the nearest known cells of posterior draws.

    Parameters
    ----------
    draws
        Draws of each cell's posterior.
    known, label
        Labelled cells and their labels.
    n_labels
        Number of labels.
    own
        Position of each cell among the labelled ones, -1 where it is not one of them; no cell is its own neighbour.
    n_neighbours
        Number of neighbours.
    """
    from sklearn.neighbors import NearestNeighbors  # 65 MB, which training need not load

    index = NearestNeighbors(n_neighbors=n_neighbours + 1).fit(known)
    total = np.zeros((draws.shape[1], n_labels))
    cells = np.arange(draws.shape[1])
    for draw in draws:
        found = index.kneighbors(draw, return_distance=False)
        is_own = found == own[:, None]
        # Where the cell itself is not among them, the furthest is one too many.
        is_own[~is_own.any(axis=1), -1] = True
        kept = found[~is_own].reshape(len(cells), n_neighbours)
        np.add.at(total, (cells[:, None], label[kept]), 1.0)
    return total / (len(draws) * n_neighbours)
