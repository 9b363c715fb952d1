"""Products of sparse counts with a dense weight, in both directions."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from scvae_ext.kernels.compiled import compiled
from scvae_ext.kernels.elementary import log1p
from scvae_ext.kernels.team import in_team, integers, matrix, next_range, task, vector

__all__ = ["cell_offsets", "log1p_of", "sparse_product", "transposed_sparse_product"]

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.int64]

_MULTIPLICATIONS_AT_A_TIME = 2**18


def sparse_product(values: Floats, gene_index: Ints, offsets: Ints, weight: Floats) -> Floats:
    """Return the product of a sparse matrix and a dense one.

    Parameters
    ----------
    values, gene_index
        Values that are not zero, cell by cell, and their genes.
    offsets
        For each cell the position of its first value, and behind them the number of values.
    weight
        Dense matrix of shape (genes, columns), of the type of the values.

    Returns
    -------
    Matrix of shape (cells, columns).
    """
    product = np.empty((offsets.size - 1, weight.shape[1]), dtype=weight.dtype)
    if weight.dtype == np.float32:
        per_row = max(1, values.size * weight.shape[1] // max(1, len(product)))
        arrays = (*map(np.ascontiguousarray, (values, gene_index, offsets, weight)), product)
        in_team(_product_task, arrays, len(product), max(1, _MULTIPLICATIONS_AT_A_TIME // per_row))
    else:
        _sum_of_rows(0, len(product), values, gene_index, offsets, weight, product)
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
    return sparse_product(*_transposed(values, gene_index, offsets, n_genes), dense)


@task
def _product_task(words: Any) -> None:
    values, gene_index, offsets = vector(words, 0), integers(words, 1), integers(words, 2)
    weight, product = matrix(words, 3), matrix(words, 4)
    first, last = next_range(words)
    while first < last:
        _sum_of_rows(first, last, values, gene_index, offsets, weight, product)
        first, last = next_range(words)


@compiled()
def _sum_of_rows(
    first: int, last: int, values: Floats, gene_index: Ints, offsets: Ints, weight: Floats, product: Floats
) -> None:
    for cell in range(first, last):
        total = product[cell]
        total[:] = 0
        entry, stop = offsets[cell], offsets[cell + 1]
        # Four at a time, so that the total is read and written once for four rows of the weight.
        while entry + 4 <= stop:
            a, b, c, d = values[entry], values[entry + 1], values[entry + 2], values[entry + 3]
            of_a, of_b = weight[gene_index[entry]], weight[gene_index[entry + 1]]
            of_c, of_d = weight[gene_index[entry + 2]], weight[gene_index[entry + 3]]
            for column in range(total.size):
                total[column] += (a * of_a[column] + b * of_b[column]) + (c * of_c[column] + d * of_d[column])
            entry += 4
        while entry < stop:
            value, row = values[entry], weight[gene_index[entry]]
            for column in range(total.size):
                total[column] += value * row[column]
            entry += 1


@compiled()
def _transposed(values: Floats, gene_index: Ints, offsets: Ints, n_genes: int) -> tuple[Floats, Ints, Ints]:
    """Return the values gene by gene, their cells, and the position of each gene's first value."""
    gene_offsets = np.zeros(n_genes + 1, dtype=np.int64)
    for gene in gene_index:
        gene_offsets[gene + 1] += 1
    for gene in range(n_genes):
        gene_offsets[gene + 1] += gene_offsets[gene]
    by_gene, cell_index = np.empty_like(values), np.empty_like(gene_index)
    free = gene_offsets[:-1].copy()
    for cell in range(offsets.size - 1):
        for entry in range(offsets[cell], offsets[cell + 1]):
            place = free[gene_index[entry]]
            by_gene[place], cell_index[place] = values[entry], cell
            free[gene_index[entry]] = place + 1
    return by_gene, cell_index, gene_offsets


@compiled()
def cell_offsets(cell_index: Ints, n_cells: int) -> Ints:
    """Return the position of each cell's first value, and behind them the number of values.

    Parameters
    ----------
    cell_index
        Cell of each value, ascending.
    n_cells
        Number of cells, some of which may have no value.
    """
    offsets = np.empty(n_cells + 1, dtype=np.int64)
    entry = 0
    for cell in range(n_cells):
        while entry < cell_index.size and cell_index[entry] < cell:
            entry += 1
        offsets[cell] = entry
    offsets[n_cells] = cell_index.size
    return offsets


@compiled()
def log1p_of(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return log(1 + value) of each value from zero on, in single precision.

    Parameters
    ----------
    values
        Of one dimension.
    """
    result = np.empty_like(values)
    for entry in range(values.size):
        result[entry] = log1p(values[entry])
    return result
