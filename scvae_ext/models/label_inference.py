"""What a trained module with a prior of labels says about cells, minibatch by minibatch."""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from scvae_ext.analysis import LabelCalibration, fit_label_calibration
from scvae_ext.models.cells import Cells, shared_noise
from scvae_ext.modules import VAE, LabelPrior
from scvae_ext.random_state import seeded
from scvae_ext.types import CellIndices, CellsByLatent

__all__ = ["calibrate_labels", "label_probabilities", "labels_of"]

N_FOLDS, N_SAMPLES = 5, 50
# Of cells with and without a label each: enough for two numbers, whatever the size of the data.
MOST_CELLS = 20_000
LEAST_CELLS = 10


def labels_of(module: VAE) -> LabelPrior:
    """Return the prior, which knows the labels.

    Parameters
    ----------
    module
        A module that was built with labels.
    """
    assert isinstance(module.prior, LabelPrior)
    return module.prior


def label_probabilities(module: VAE, cells: Cells, n_samples: int, seed: int) -> Float[np.ndarray, "cells labels"]:
    r"""Return :math:`\mathbb E_{q(z \mid x)}[p(y \mid z)]` of each cell and label.

    Parameters
    ----------
    module, cells
        Of what.
    n_samples, seed
        Samples of the posterior, the same noise for all cells, and their seed.
    """
    prior = labels_of(module)
    probabilities = np.empty((len(cells), prior.n_labels), dtype=np.float32)
    noise = shared_noise(n_samples, module.encoder.mean.out_features, seed, cells.device)
    for rows, minibatch in cells:
        qz = module.encode(minibatch).qz
        samples = (qz.loc + qz.scale * noise.unsqueeze(1))[..., : module.n_latent]
        probabilities[rows] = prior.label_log_probs(samples).exp().mean(0).cpu().numpy()
    return probabilities


def calibrate_labels(
    prior: LabelPrior, mean: CellsByLatent, variance: CellsByLatent, label: CellIndices, seed: int
) -> LabelCalibration:
    """Ask how often a prior that starts from some of the labels is right about the others.

    Labels are held out in five parts. They have had no part in where the networks place cells: that of a cell which was
    trained on with its label would be found again, whatever the label is.

    Parameters
    ----------
    prior
        A prior of this shape; it is left as it is.
    mean, variance
        Of the posterior of each cell, from a training without labels.
    label
        Label of each cell.
    seed
        Seed of the parts, and of samples.
    """
    random = np.random.default_rng(seed)
    codes = label.cpu().numpy()
    # The others of a label with one cell say nothing about it.
    has_others = np.bincount(codes, minlength=prior.n_labels + 1)[: prior.n_labels] > 1
    known = np.flatnonzero((codes < prior.n_labels) & np.append(has_others, False)[codes.clip(max=prior.n_labels)])
    if len(known) < LEAST_CELLS:
        return LabelCalibration()
    others = np.setdiff1d(np.arange(len(codes)), known)
    known, others = (
        np.sort(random.choice(cells, min(MOST_CELLS, len(cells)), replace=False)) for cells in (known, others)
    )
    cells = torch.from_numpy(np.concatenate([known, others])).to(mean.device)
    mean, variance, label = mean[cells], variance[cells], label[cells]
    part = np.empty(len(known), dtype=np.int64)
    for of_label in np.unique(codes[known]):
        place = np.flatnonzero(codes[known] == of_label)
        part[place] = random.permutation(len(place)) % N_FOLDS
    probabilities = np.zeros((len(known), prior.n_labels))
    for held_out in (np.flatnonzero(part == number) for number in range(N_FOLDS)):
        hidden = label.clone()
        hidden[torch.from_numpy(held_out).to(label.device)] = prior.n_labels
        probabilities[held_out] = _said_of(prior, mean, variance, hidden, held_out, seed)
    return fit_label_calibration(probabilities, codes[known])


def _said_of(
    prior: LabelPrior, mean: Tensor, variance: Tensor, label: Tensor, cells: np.ndarray, seed: int
) -> Float[np.ndarray, "held_out labels"]:
    """Return the probabilities of labels of some cells, by a prior that starts from the labels of others."""
    generator = torch.Generator().manual_seed(seed)
    with seeded(seed):
        other = LabelPrior(prior.n_labels, mean.shape[1], prior.n_per_label).to(mean.device)
    other.initialise(mean, variance, label, generator)
    noise = torch.randn(N_SAMPLES, 1, mean.shape[1], generator=generator).to(mean.device)
    samples = mean[cells] + variance[cells].sqrt() * noise
    with torch.no_grad():
        return other.label_log_probs(samples).exp().mean(0).double().cpu().numpy()
