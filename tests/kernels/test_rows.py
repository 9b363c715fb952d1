import numpy as np
import pytest
import scipy.sparse as sp
import torch

from scvae_ext.kernels import gathered_rows


@pytest.fixture(scope="module")
def matrix():
    """300 rows, of which every seventh is empty."""
    rng = np.random.default_rng(0)
    dense = rng.poisson(0.4, (300, 53)).astype(np.float32)
    dense[::7] = 0
    return sp.csr_matrix(dense)


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
@pytest.mark.parametrize("n_threads", [1, 8])
@pytest.mark.parametrize(
    "positions", [np.arange(300), np.arange(299, -1, -1), np.array([5, 5, 0, 299, 7]), np.array([7]), np.array([], int)]
)
def test_rows_are_those_that_scipy_reads(matrix, positions, dtype, n_threads):
    expected = matrix[positions]
    places = np.arange(len(positions)) % 4
    before = torch.get_num_threads()
    torch.set_num_threads(n_threads)
    try:
        values, cells, genes, offsets, totals = gathered_rows(
            matrix.data, matrix.indices.astype(dtype), matrix.indptr.astype(dtype), positions, places
        )
    finally:
        torch.set_num_threads(before)
    np.testing.assert_array_equal(values, expected.data)
    np.testing.assert_array_equal(genes, expected.indices)
    np.testing.assert_array_equal(offsets, expected.indptr)
    np.testing.assert_array_equal(cells, np.repeat(places, np.diff(expected.indptr)))
    np.testing.assert_array_equal(totals, expected.toarray().sum(1))
    assert (values.dtype, cells.dtype, genes.dtype) == (np.float32, np.int64, np.int64)


def test_totals_of_large_counts_are_those_of_double_precision():
    # In single precision, ones are lost beside 2^24.
    values = np.array([2.0**24, *[1.0] * 1000], dtype=np.float32)
    parts = gathered_rows(values, np.arange(1001, dtype=np.int32), np.array([0, 1001]), np.array([0]), np.array([0]))
    assert parts[4][0] == 2**24 + 1000


def test_the_matrix_is_copied(matrix):
    before = matrix.data.copy()
    values, *_ = gathered_rows(matrix.data, matrix.indices, matrix.indptr, np.arange(300), np.arange(300))
    values += 1
    np.testing.assert_array_equal(matrix.data, before)
