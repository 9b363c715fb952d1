import numpy as np
import pytest
import scipy.sparse as sp
import torch

from scvae_ext.kernels import cell_offsets, log1p_of, sparse_product, transposed_sparse_product


@pytest.fixture(params=[1, 8])
def n_threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture
def matrix():
    rng = np.random.default_rng(0)
    counts = sp.random(100, 60, density=0.2, format="lil", dtype=np.float32, random_state=rng)
    counts[3] = 0
    counts[-1] = 0
    counts = sp.csr_matrix(counts)
    return counts, (counts.data, counts.indices.astype(np.int64), counts.indptr.astype(np.int64))


def test_products_are_those_of_scipy_in_double_precision(matrix, n_threads):
    counts, parts = matrix
    rng = np.random.default_rng(1)
    weight, dense = (rng.standard_normal((n, 72)).astype(np.float32) for n in (60, 100))
    product = sparse_product(*parts, weight)
    transposed = transposed_sparse_product(*parts, dense, 60)
    assert product.dtype == transposed.dtype == np.float32
    np.testing.assert_allclose(product, counts.astype(float) @ weight.astype(float), atol=1e-5)
    np.testing.assert_allclose(transposed, counts.astype(float).T @ dense.astype(float), atol=1e-5)
    assert not product[[3, -1]].any()


def test_double_precision_is_kept(matrix):
    counts, (values, genes, offsets) = matrix
    weight = np.random.default_rng(1).standard_normal((60, 5))
    np.testing.assert_allclose(
        sparse_product(values.astype(float), genes, offsets, weight), counts.astype(float) @ weight
    )


def test_offsets_of_cells_some_of_which_have_no_values():
    cells = np.array([1, 1, 1, 4, 4, 5])
    assert cell_offsets(cells, 8).tolist() == [0, 0, 3, 3, 3, 5, 6, 6, 6]
    assert cell_offsets(cells[:0], 2).tolist() == [0, 0, 0]


def test_log1p_of_counts_is_exact_to_two_units_of_the_last_place():
    counts = np.concatenate([np.arange(0, 2000), np.geomspace(2e3, 1e9, 500).round()]).astype(np.float32)
    exact = np.log1p(counts.astype(float))
    np.testing.assert_array_less(abs(log1p_of(counts) - exact), 2 * np.spacing(exact.astype(np.float32)) + 1e-45)
