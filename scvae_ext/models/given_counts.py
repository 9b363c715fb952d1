"""Expression of cells given their own counts, and not their latent state alone."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int

from scvae_ext.likelihoods import expected_rate_ratio
from scvae_ext.models.cells import Cells, shared_noise, target_batches
from scvae_ext.models.inference import expected_depth
from scvae_ext.modules import VAE

__all__ = ["expression_given_counts"]


def expression_given_counts(
    module: VAE,
    cells: Cells,
    batches: Sequence[int],
    genes: Int[np.ndarray, "chosen"] | None,
    depth: float | str,
    n_samples: int,
    seed: int,
) -> Float[np.ndarray, "cells chosen"]:
    r"""Return :math:`\mathbb E[\rho_g(z) u_g \mid x]`, normalised so that it sums to the depth of the cell.

    What multiplies the expression of a state, :math:`u`, belongs to the cell and is carried over to other batches. With
    size factors nothing is normalised.

    Parameters
    ----------
    module, cells, batches, genes, depth, n_samples, seed
        As for :func:`~scvae_ext.models.inference.normalized_expression`.
    """
    n_genes = cells.source.n_genes if genes is None else len(genes)
    expression = np.empty((len(cells), n_genes), dtype=np.float32)
    noise = shared_noise(n_samples, module.encoder.mean.out_features, seed, cells.device)
    columns = slice(None) if genes is None else torch.from_numpy(genes).to(cells.device)
    head = module.mean_head
    for rows, minibatch in cells:
        posterior, seen = module.encode(minibatch), minibatch.counts.dense()
        log_library = None if posterior.log_library is None else posterior.log_library.loc
        targets = target_batches(minibatch, batches)
        total = seen.new_zeros(minibatch.n_cells, n_genes)
        for one in noise:
            state = posterior.qz.loc + posterior.qz.scale * one
            ratio = expected_rate_ratio(module.decode(state, minibatch, log_library), seen)
            for target in targets:
                of_cell = head.expression(module.decode_hidden(state, minibatch, target)) * ratio
                if head.compositional:
                    of_cell /= of_cell.sum(dim=-1, keepdim=True)
                total += of_cell[:, columns]
        if depth == "latent":
            scale = expected_depth(module, minibatch, posterior.log_library)
        else:
            scale = seen.new_full((minibatch.n_cells,), float(depth))
        total *= (scale / (len(noise) * len(targets))).unsqueeze(-1)
        expression[rows] = total.cpu().numpy()
    return expression
