"""Simulated counts of surface proteins, some of which are background."""

import numpy as np
from jaxtyping import Float, Int

__all__ = ["draw_proteins"]

_SHARE_WHERE_PRESENT, _SHARE_ELSEWHERE = 0.95, 0.05
_LOG_BACKGROUND, _LOG_BACKGROUND_SD = np.log(10.0), 0.7
_STAINING_SD = 0.3
_LEAST_RATIO, _LARGEST_RATIO = 3.0, 30.0
_LOADING_SD = 0.4
_INVERSE_DISPERSION = 5.0


def draw_proteins(
    generator: np.random.Generator,
    n_proteins: int,
    cell_type: Int[np.ndarray, "cells"],
    batch: Int[np.ndarray, "cells"],
    deviation: Float[np.ndarray, "cells latent"],
) -> dict[str, Float[np.ndarray, "cells proteins"]]:
    """Return counts and their truth by the keys of ``obsm``, as :func:`synthetic_counts` describes them.

    Parameters
    ----------
    generator
        Source of the draws.
    n_proteins
        How many.
    cell_type, batch
        Type and batch of each cell.
    deviation
        Latent position of each cell about the centre of its type.
    """
    n_types, n_batches, n_latent = int(cell_type.max()) + 1, int(batch.max()) + 1, deviation.shape[1]
    present = generator.random((n_types, n_proteins)) < 0.5
    # Every protein is somewhere, and not everywhere, where there are two types.
    present[np.arange(n_proteins) % n_types, np.arange(n_proteins)] = True
    if n_types > 1:
        present[(np.arange(n_proteins) + 1) % n_types, np.arange(n_proteins)] = False
    share = np.where(present, _SHARE_WHERE_PRESENT, _SHARE_ELSEWHERE)[cell_type]
    foreground = generator.random(share.shape) < share
    log_background = generator.normal(_LOG_BACKGROUND, _LOG_BACKGROUND_SD, n_proteins)
    staining = generator.normal(0, _STAINING_SD, (n_batches, n_proteins)) * (n_batches > 1)
    log_ratio = generator.uniform(np.log(_LEAST_RATIO), np.log(_LARGEST_RATIO), n_proteins)
    loadings = generator.normal(0, _LOADING_SD / np.sqrt(n_latent), (n_latent, n_proteins))
    background = np.exp(log_background + staining[batch])
    mean = background * np.exp(foreground * (log_ratio + deviation @ loadings))
    counts = generator.poisson(generator.gamma(_INVERSE_DISPERSION, mean / _INVERSE_DISPERSION))
    return {
        "protein": counts.astype(np.float64),
        "protein_foreground": foreground.astype(np.float64),
        "protein_mean": mean,
        "protein_background": background,
    }
