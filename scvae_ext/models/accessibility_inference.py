"""What getters of chromatin accessibility compute, minibatch by minibatch, from a trained module and cells."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int

from scvae_ext.models.cells import Cells, shared_noise
from scvae_ext.models.protein_inference import weighted_batches
from scvae_ext.modules import VAE, AccessibilityModality

__all__ = ["accessibility"]


def accessibility(
    module: VAE,
    cells: Cells,
    batches: Sequence[int],
    chosen: Int[np.ndarray, "chosen"] | None,
    n_samples: int,
    seed: int,
    *,
    observed_depth: bool,
) -> Float[np.ndarray, "cells peaks"]:
    """Return the probability of each peak to be found accessible.

    Parameters
    ----------
    module, cells
        Of what.
    batches
        Batches to decode with, averaged over; the observed ones where empty. Where accessibility was not measured in
        these, all batches in which it was take their place.
    chosen
        Positions of the peaks; all where ``None``.
    n_samples, seed
        Samples of the posterior, and their seed.
    observed_depth
        Whether at the depth of each cell, or at the mean of all.
    """
    modality = _accessibility_of(module)
    result = np.empty((len(cells), modality.n_peaks if chosen is None else len(chosen)), dtype=np.float32)
    noise = shared_noise(n_samples, module.encoder.mean.out_features, seed, cells.device)
    peaks = None if chosen is None else torch.from_numpy(chosen).to(cells.device)
    for rows, minibatch in cells:
        qz = module.encode(minibatch).qz
        depth = modality.depth(minibatch) if observed_depth else torch.ones_like(minibatch.library_size)
        total = qz.loc.new_zeros(minibatch.n_cells, result.shape[1])
        for one in noise:
            sample = qz.loc + qz.scale * one
            for batch, weight in weighted_batches(modality.measured.unsqueeze(-1), minibatch, batches):
                log_rate = modality.likelihood(module.decode_hidden(sample, minibatch, batch), depth, peaks)
                total += weight * -torch.expm1(-log_rate.exp())
        result[rows] = (total / len(noise)).cpu().numpy()
    return result


def _accessibility_of(module: VAE) -> AccessibilityModality:
    assert module.accessibility is not None
    return module.accessibility
