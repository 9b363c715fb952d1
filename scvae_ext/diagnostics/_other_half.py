"""How well one half of a cell's molecules is predicted from the other."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.special import xlogy

from scvae_ext.diagnostics._judged_models import Judged, both_halves, log_normalised_counts, minibatches_of
from scvae_ext.models import SCVAE, Autoencoder
from scvae_ext.models.cells import evaluating

__all__ = ["LEVELS", "OtherHalf", "correlations", "deviances", "predict_other_half"]

LEVELS = np.round(np.arange(0.05, 1.0, 0.05), 2)
"""Levels of predictive intervals."""
N_ABUNDANT = 50
# Weight of the mean cell in every prediction, lest a single zero where a count was seen decides all.
WEIGHT_OF_MEAN = 0.01


@dataclass(frozen=True)
class OtherHalf:
    """Predictions of the second halves of cells from the first ones.

    Parameters
    ----------
    deviance
        Poisson deviance of each cell, in twice nats.
    of_mean
        The same where the mean cell is the prediction.
    correlation
        Over genes, of each cell, between predicted and observed deviation from the other cells.
    inside
        Share of each cell's counts inside central predictive intervals of each of :data:`LEVELS`.
    is_predicted
        Which of the cells had molecules in both halves; the others are left out.
    """

    deviance: Float[np.ndarray, "predicted"]
    of_mean: Float[np.ndarray, "predicted"]
    correlation: Float[np.ndarray, "predicted"]
    inside: Float[np.ndarray, "predicted levels"]
    is_predicted: Bool[np.ndarray, "cells"]


def predict_other_half(
    judged: Judged,
    model: SCVAE | Autoencoder,
    positions: Int[np.ndarray, "cells"],
    mean_cell: Float[np.ndarray, "genes"],
    n_samples: int,
    seed: int,
) -> OtherHalf:
    r"""Encode half of the molecules of each cell, and predict the others.

    Expected shares are the mean over draws of the latent point. Intervals are judged by the randomised probability
    integral transform of the second half among draws of its counts, for the 50 genes of the most counts.

    Parameters
    ----------
    judged, model
        The model.
    positions
        Positions of the cells.
    mean_cell
        Share of each gene in training cells, all above zero.
    n_samples
        Draws a cell.
    seed
        Seed of the halves, which are the same for every model, and of the draws.
    """
    rng = np.random.default_rng(seed)
    abundant = np.sort(np.argsort(-mean_cell, kind="stable")[:N_ABUNDANT])
    columns = torch.from_numpy(abundant).to(model.device)
    predicted, observed, inside = [], [], []
    with evaluating(model.module):
        for _, minibatch in minibatches_of(model, positions):
            first, second = both_halves(minibatch, rng)
            truth = second.counts.dense()
            of_genes = truth[:, columns]
            total = torch.zeros_like(truth)
            below, ties = torch.zeros_like(of_genes), torch.zeros_like(of_genes)
            for _ in range(n_samples):
                state = judged.draw(first)
                total += judged.expected(state, second)
                drawn = judged.counts(state, second)[:, columns]
                below += drawn < of_genes
                ties += drawn == of_genes
            # The observed count is one more tie: its rank is then uniform if it is exchangeable with the draws.
            rank = below.cpu().numpy() + rng.random(below.shape) * (ties.cpu().numpy() + 1)
            from_middle = np.abs(2 * rank / (n_samples + 1) - 1)
            inside.append((from_middle[:, None, :] <= LEVELS[:, None]).mean(-1))
            predicted.append((total / n_samples).double().cpu().numpy())
            observed.append(truth.double().cpu().numpy())
            # A cell without molecules in a half has nothing to encode, or nothing to predict.
            observed[-1][first.library_size.cpu().numpy() == 0] = 0
    share, counts = np.concatenate(predicted), np.concatenate(observed)
    kept = counts.sum(1) > 0
    share, counts = share[kept], counts[kept]
    share = (1 - WEIGHT_OF_MEAN) * share + WEIGHT_OF_MEAN * mean_cell
    return OtherHalf(
        deviance=deviances(counts, share),
        of_mean=deviances(counts, np.broadcast_to(mean_cell, counts.shape)),
        correlation=correlations(_logs(share), _logs(counts)),
        inside=np.concatenate(inside)[kept],
        is_predicted=kept,
    )


def _logs(values: Float[np.ndarray, "cells genes"]) -> Float[np.ndarray, "cells genes"]:
    logs: np.ndarray = log_normalised_counts(torch.from_numpy(values)).numpy()
    return logs


def deviances(
    counts: Float[np.ndarray, "cells genes"], share: Float[np.ndarray, "cells genes"]
) -> Float[np.ndarray, "cells"]:
    r"""Return :math:`2 \sum_g x_g \log\{x_g / (\ell p_g)\}`, the Poisson deviance of each cell given its total.

    Parameters
    ----------
    counts
        Counts x.
    share
        Predicted shares p, which sum to one.
    """
    expected = counts.sum(1, keepdims=True) * share
    result: np.ndarray = 2 * (xlogy(counts, counts) - xlogy(counts, expected)).sum(1)
    return result


def correlations(
    predicted: Float[np.ndarray, "cells genes"], observed: Float[np.ndarray, "cells genes"]
) -> Float[np.ndarray, "cells"]:
    """Return the correlation over genes of each cell's deviations from the mean over cells.

    It is zero for a cell that is predicted to be like the mean of all.

    Parameters
    ----------
    predicted, observed
        Expression on a log scale.
    """
    sides = []
    for values in (predicted, observed):
        centred = values - values.mean(0)
        centred -= centred.mean(1, keepdims=True)
        norm = np.linalg.norm(centred, axis=1, keepdims=True)
        # What rounding leaves of equal predictions has no direction.
        sides.append(np.where(norm > 1e-6, centred / np.maximum(norm, 1e-6), 0.0))
    result: np.ndarray = np.einsum("cg,cg->c", *sides)
    return result
