"""Simulated accessibility of chromatin."""

import numpy as np
from jaxtyping import Bool, Float, Int

__all__ = ["draw_peaks"]

_SHARE, _LOG_RATE_SD = 0.08, 1.0
_BATCH_EFFECT_SD = 0.2
_LOADING_SD = 0.5
_LOG_DEPTH_SD = 0.5


def draw_peaks(
    generator: np.random.Generator,
    n_peaks: int,
    latent: Float[np.ndarray, "cells latent"],
    batch: Int[np.ndarray, "cells"],
) -> tuple[Bool[np.ndarray, "cells peaks"], Float[np.ndarray, "cells peaks"], Float[np.ndarray, "cells"]]:
    """Return which peaks are accessible, their rates, and the depth of each cell, as :func:`synthetic_counts` has them.

    Parameters
    ----------
    generator
        Source of the draws.
    n_peaks
        How many.
    latent
        Latent position of each cell.
    batch
        Batch of each cell.
    """
    n_cells, n_latent = latent.shape
    n_batches = int(batch.max()) + 1
    baseline = generator.normal(np.log(_SHARE), _LOG_RATE_SD, n_peaks)
    loadings = generator.normal(0, _LOADING_SD / np.sqrt(n_latent), (n_latent, n_peaks))
    effect = generator.normal(0, _BATCH_EFFECT_SD, (n_batches, n_peaks)) * (n_batches > 1)
    rate = np.exp(baseline + latent @ loadings + effect[batch])
    depth = np.exp(generator.normal(0, _LOG_DEPTH_SD, n_cells))
    accessible = generator.random(rate.shape) < -np.expm1(-depth[:, None] * rate)
    # A cell without any is drawn its most probable peak.
    empty = np.flatnonzero(~accessible.any(axis=1))
    accessible[empty, rate[empty].argmax(axis=1)] = True
    return accessible, rate, depth
