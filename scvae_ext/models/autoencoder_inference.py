"""What getters of an autoencoder compute, minibatch by minibatch."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int

from scvae_ext.models.cells import Cells, target_batches
from scvae_ext.modules import DeterministicAutoencoder

__all__ = ["autoencoder_expression", "autoencoder_latent"]


def autoencoder_latent(module: DeterministicAutoencoder, cells: Cells) -> Float[np.ndarray, "cells latent"]:
    """Return the latent point of each cell.

    Parameters
    ----------
    module, cells
        Of what.
    """
    latent = np.empty((len(cells), module.latent.out_features), dtype=np.float32)
    for rows, minibatch in cells:
        latent[rows] = module.encode(minibatch).cpu().numpy()
    return latent


def autoencoder_expression(
    module: DeterministicAutoencoder,
    cells: Cells,
    batches: Sequence[int],
    genes: Int[np.ndarray, "chosen"] | None,
    library_size: float,
) -> Float[np.ndarray, "cells chosen"]:
    """Return the reconstructed expression of each cell and gene.

    Parameters
    ----------
    module, cells
        Of what.
    batches, genes
        As for :func:`~scvae_ext.models.inference.normalized_expression`.
    library_size
        Total that a cell's expression is scaled to.
    """
    n_genes = cells.source.n_genes if genes is None else len(genes)
    expression = np.empty((len(cells), n_genes), dtype=np.float32)
    for rows, minibatch in cells:
        latent = module.encode(minibatch)
        decoded = [
            module.head.expression(module.decode_hidden(latent, minibatch, target))
            for target in target_batches(minibatch, batches)
        ]
        values = torch.stack(decoded).mean(0).cpu().numpy() * library_size
        expression[rows] = values if genes is None else values[:, genes]
    return expression
