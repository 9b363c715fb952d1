import numpy as np
import pytest
import scipy.sparse as sp

from scvae_ext.data.matrix import InMemoryCounts, as_csr, select_genes

KINDS = {
    "csr float32": sp.csr_matrix,
    "csr float64": lambda x: sp.csr_matrix(x, dtype=np.float64),
    "csr int64": lambda x: sp.csr_matrix(x.astype(np.int64)),
    "csr uint16": lambda x: sp.csr_matrix(x.astype(np.uint16)),
    "csc float32": sp.csc_matrix,
    "csc int32": lambda x: sp.csc_matrix(x.astype(np.int32)),
    "csr_array": sp.csr_array,
    "csc_array float64": lambda x: sp.csc_array(x, dtype=np.float64),
    "coo": sp.coo_matrix,
    "dense float32": np.array,
    "dense float64": lambda x: x.astype(np.float64),
    "dense float16": lambda x: x.astype(np.float16),
    "dense int64": lambda x: x.astype(np.int64),
    "dense Fortran": np.asfortranarray,
    "dense strided": lambda x: np.repeat(x, 2, axis=1)[:, ::2],
}


def require_canonical(csr, dense):
    assert isinstance(csr, sp.csr_matrix)
    assert csr.dtype == np.float32
    fresh = sp.csr_matrix((csr.data, csr.indices, csr.indptr), shape=csr.shape)
    assert fresh.has_canonical_format
    assert csr.nnz == np.count_nonzero(dense)
    np.testing.assert_array_equal(csr.toarray(), dense)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_the_same_numbers(counts, kind):
    require_canonical(as_csr(KINDS[kind](counts)), counts)


def test_booleans(counts):
    require_canonical(as_csr(counts > 1), (counts > 1).astype(np.float32))


def test_dense_conversion_by_blocks(counts, monkeypatch):
    monkeypatch.setattr("scvae_ext.data.matrix._ENTRIES_PER_CHUNK", 7 * counts.shape[1])
    require_canonical(as_csr(counts), counts)


def test_float32_csr_is_not_copied(counts):
    csr = sp.csr_matrix(counts)
    for given in (csr, sp.csr_array(counts)):
        assert np.shares_memory(as_csr(given).data, given.data)
        assert np.shares_memory(as_csr(given).indices, given.indices)


def untidy(counts):
    """The same counts with unsorted indices, explicit zeros, and an entry stored in two parts."""
    indptr, indices, data = [0], [], []
    for row in counts:
        columns = np.flatnonzero(row)[::-1]
        zero = np.flatnonzero(row == 0)[:1]
        indices += [*columns, columns[0], *zero]
        data += [*(row[columns] - np.eye(len(columns))[0] * 5), 5, *np.zeros(len(zero))]
        indptr.append(len(indices))
    return sp.csr_matrix((np.array(data, dtype=np.float32), indices, indptr), shape=counts.shape)


def test_untidy_csr_is_tidied_in_a_copy(counts):
    given = untidy(counts)
    before = given.data.copy(), given.indices.copy(), given.indptr.copy()
    assert not given.has_canonical_format
    require_canonical(as_csr(given), counts)
    for array, kept in zip((given.data, given.indices, given.indptr), before, strict=True):
        np.testing.assert_array_equal(array, kept)


def test_csr_with_explicit_zeros_alone(counts):
    given = sp.csr_matrix(counts + 1)
    given.data -= 1
    require_canonical(as_csr(given), counts)
    assert given.nnz == counts.size


@pytest.mark.parametrize("wrong", [np.array([["a"]]), np.ones((2, 2), dtype=complex), np.array([[object()]])])
def test_what_is_not_a_number_is_refused(wrong):
    with pytest.raises(TypeError, match=f"must hold real numbers, but its dtype is {wrong.dtype}"):
        as_csr(wrong)


def test_select_genes_moves_drops_and_adds(counts):
    position = np.full(40, -1)
    position[[5, 0, 39]] = [0, 3, 1]
    expected = np.zeros((60, 5), dtype=np.float32)
    expected[:, [0, 3, 1]] = counts[:, [5, 0, 39]]
    csr = sp.csr_matrix(counts)
    require_canonical(select_genes(csr, position, 5), expected)
    np.testing.assert_array_equal(csr.toarray(), counts)


def test_select_genes_that_none_has(counts):
    selected = select_genes(sp.csr_matrix(counts), np.full(40, -1), 3)
    assert selected.shape == (60, 3)
    assert selected.nnz == 0


def test_in_memory_chunks_cover_the_rows_in_order(counts, monkeypatch):
    monkeypatch.setattr("scvae_ext.data.matrix._ROWS_PER_CHUNK", 7)
    matrix = InMemoryCounts(sp.csr_matrix(counts))
    starts, parts = zip(*matrix.chunks(), strict=True)
    assert starts == tuple(range(0, 60, 7))
    np.testing.assert_array_equal(np.vstack([part.toarray() for part in parts]), counts)
    assert all(np.shares_memory(part.data, matrix.csr.data) for part in parts)


def test_matrices_with_the_same_entries_are_equal(counts):
    matrix = InMemoryCounts(as_csr(counts))
    assert matrix.equals(InMemoryCounts(as_csr(sp.csc_array(counts * (1 + 1e-6)))))
    for other in (counts[::-1], counts[:, ::-1], counts[:-1], np.where(counts == counts.max(), 1, counts)):
        assert not matrix.equals(InMemoryCounts(as_csr(other)))
