"""The genes that cells have the most counts of."""

import numpy as np
from jaxtyping import Int

from scvae_ext.models.cells import Cells

__all__ = ["most_counts"]


def most_counts(cells: Cells, n_genes: int) -> Int[np.ndarray, "chosen"]:
    """Return the positions of the genes with the most counts, ascending.

    Parameters
    ----------
    cells
        The cells.
    n_genes
        Number of genes at most.
    """
    total = np.zeros(cells.source.n_genes)
    for _, minibatch in cells:
        counts = minibatch.counts
        total += np.bincount(
            counts.gene_index.cpu().numpy(), counts.values.double().cpu().numpy(), minlength=counts.n_genes
        )
    return np.sort(np.argsort(-total, kind="stable")[:n_genes])
