"""Products of sparse counts with a dense weight, in both directions."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from scvae_ext.kernels.compiled import compiled, in_threads

__all__ = ["sparse_product", "transposed_sparse_product"]

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.int64]

_LEAST_CELLS, _LEAST_COLUMNS = 16, 32


def sparse_product(values: Floats, gene_index: Ints, offsets: Ints, weight: Floats) -> Floats:
    """Return the product of a sparse matrix and a dense one.

    Parameters
    ----------
    values, gene_index
        Values that are not zero, cell by cell, and their genes.
    offsets
        For each cell the position of its first value, and behind them the number of values.
    weight
        Dense matrix of shape (genes, columns).

    Returns
    -------
    Matrix of shape (cells, columns).
    """
    product = np.zeros((offsets.size - 1, weight.shape[1]), dtype=weight.dtype)
    in_threads(
        lambda first, last: _sum_of_rows(first, last, values, gene_index, offsets, weight, product),
        len(product),
        _LEAST_CELLS,
    )
    return product


def transposed_sparse_product(values: Floats, gene_index: Ints, offsets: Ints, dense: Floats, n_genes: int) -> Floats:
    """Return the product of the transpose of a sparse matrix and a dense one.

    Parameters
    ----------
    values, gene_index, offsets
        As for :func:`sparse_product`.
    dense
        Dense matrix of shape (cells, columns).
    n_genes
        Number of columns of the sparse matrix.

    Returns
    -------
    Matrix of shape (genes, columns).
    """
    product = np.zeros((n_genes, dense.shape[1]), dtype=dense.dtype)
    in_threads(
        lambda first, last: _spread_over_rows(first, last, values, gene_index, offsets, dense, product),
        dense.shape[1],
        _LEAST_COLUMNS,
    )
    return product


@compiled()
def _sum_of_rows(
    first: int, last: int, values: Floats, gene_index: Ints, offsets: Ints, weight: Floats, product: Floats
) -> None:
    for cell in range(first, last):
        total = product[cell]
        for entry in range(offsets[cell], offsets[cell + 1]):
            value, row = values[entry], weight[gene_index[entry]]
            for column in range(total.size):
                total[column] += value * row[column]


@compiled()
def _spread_over_rows(
    first: int, last: int, values: Floats, gene_index: Ints, offsets: Ints, dense: Floats, product: Floats
) -> None:
    # Threads share columns out rather than cells, so that no two of them write to one place.
    for cell in range(offsets.size - 1):
        row = dense[cell, first:last]
        for entry in range(offsets[cell], offsets[cell + 1]):
            value, total = values[entry], product[gene_index[entry], first:last]
            for column in range(row.size):
                total[column] += value * row[column]
