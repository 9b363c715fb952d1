"""Posterior draws with known content, as a model would hand them over."""

import numpy as np
import torch

from scvae_ext.analysis import PosteriorDraws, group_moments
from scvae_ext.minibatch import SparseCounts


def draws_of(counts, expression, theta=None, fitted=None, chunks=1):
    """Cut dense arrays of cells by genes into chunks of draws, one draw a cell; depth is the total count."""
    counts = np.asarray(counts, dtype=np.float32)
    pieces = np.array_split(np.arange(len(counts)), chunks)
    for piece in pieces:
        values = torch.from_numpy(counts[piece])
        drawn = torch.as_tensor(expression[piece], dtype=torch.float32).unsqueeze(0)
        seen = drawn if fitted is None else torch.as_tensor(fitted[piece], dtype=torch.float32).unsqueeze(0)
        inverse_dispersion = None if theta is None else torch.full((1, counts.shape[1]), float(theta))
        rows = slice(int(piece[0]), int(piece[-1]) + 1)
        yield PosteriorDraws(
            rows, drawn, seen, SparseCounts.from_dense(values), values.sum(1, keepdim=True), inverse_dispersion
        )


def moments_of(counts, expression, group, theta=None, fitted=None, chunks=1):
    """Sum such draws by group."""
    draws = draws_of(counts, expression, theta, fitted, chunks)
    return group_moments(draws, np.asarray(group), int(np.max(group)) + 1, np.shape(counts)[1])
