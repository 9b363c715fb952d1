"""What a trained module with a prior of labels says about cells, minibatch by minibatch."""

import numpy as np
from jaxtyping import Float

from scvae_ext.models.cells import Cells, shared_noise
from scvae_ext.modules import VAE, LabelPrior

__all__ = ["label_probabilities", "labels_of"]


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
