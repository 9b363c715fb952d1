"""What lies on straight lines through a latent space."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int

from scvae_ext.diagnostics._judged_models import Judged, log_normalised_counts
from scvae_ext.models import SCVAE, Autoencoder
from scvae_ext.models.cells import Cells, evaluating

__all__ = ["N_STEPS", "LineMeasures", "measure_lines", "measure_path"]

N_STEPS = 20
"""Equal steps that a line is cut into."""


@dataclass(frozen=True)
class LineMeasures:
    """How decoded expression changes along the line between the latent points of two cells.

    Parameters
    ----------
    chord
        Distance between the expression of the two ends.
    detour
        Length of the way over that distance: one if it is straight.
    largest_step
        Largest of the equal latent steps over their mean: one if expression changes evenly, the number of steps if
        it jumps.
    gap
        Distance of the loneliest point of the way to the expression of the nearest training cell, over the chord.
    """

    chord: Float[np.ndarray, "pairs"]
    detour: Float[np.ndarray, "pairs"]
    largest_step: Float[np.ndarray, "pairs"]
    gap: Float[np.ndarray, "pairs"]


def measure_path(
    values: Float[np.ndarray, "points pairs genes"], others: Float[np.ndarray, "cells genes"]
) -> LineMeasures:
    """Measure ways through expression, of which the first and the last point are the two cells.

    Parameters
    ----------
    values
        Expression at points that are equally far from each other in the latent space.
    others
        Expression of other cells.
    """
    steps = np.linalg.norm(np.diff(values, axis=0), axis=-1)
    chord = np.linalg.norm(values[-1] - values[0], axis=-1)
    length = steps.sum(0)
    among = torch.from_numpy(others)
    loneliest = np.max([torch.cdist(torch.from_numpy(point), among).amin(1).numpy() for point in values], axis=0)
    # Ends that are decoded alike have no way between them.
    safe = np.where(chord > 0, chord, np.nan)
    return LineMeasures(
        chord, length / safe, steps.max(0) * len(steps) / np.where(length > 0, length, np.nan), loneliest / safe
    )


def measure_lines(
    judged: Judged,
    model: SCVAE | Autoencoder,
    pairs: Int[np.ndarray, "pairs 2"],
    others: Int[np.ndarray, "chosen"],
) -> LineMeasures:
    """Decode points on the line between the latent points of two cells, with the covariates of the first.

    Expression is that of a library of 10,000 counts, on a log scale.

    Parameters
    ----------
    judged, model
        The model.
    pairs
        Positions of the two cells.
    others
        Positions of the cells whose expression is taken for that of real cells.
    """
    source = model._own_source()
    parts = []
    with evaluating(model.module):
        cells = Cells(source, others, model.device, None)
        decoded = np.concatenate(
            [
                log_normalised_counts(judged.expected(judged.centre(minibatch), minibatch)).cpu().numpy()
                for _, minibatch in cells
            ]
        )
        for part in np.array_split(pairs, max(1, len(pairs) // 100)):
            first, second = (source.minibatch(side).to(model.device) for side in part.T)
            start, end = judged.centre(first), judged.centre(second)
            values = [
                log_normalised_counts(judged.expected(torch.lerp(start, end, share), first)).cpu().numpy()
                for share in np.linspace(0, 1, N_STEPS + 1).tolist()
            ]
            parts.append(measure_path(np.stack(values), decoded))
    return LineMeasures(
        *(np.concatenate([getattr(part, name) for part in parts]) for name in LineMeasures.__annotations__)
    )
