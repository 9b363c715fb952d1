import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from scvae_ext.data.matrix import InMemoryCounts
from scvae_ext.data.validation import Entry, require_counts, scan_counts, sum_rows


def scan(dense):
    cells = pd.Index([f"c{i}" for i in range(dense.shape[0])])
    genes = pd.Index([f"g{i}" for i in range(dense.shape[1])])
    return scan_counts(InMemoryCounts(sp.csr_matrix(dense)).chunks(), cells, genes, "adata.X")


def test_totals(counts):
    counts[7] = 0
    counts[:, 3] = 0
    facts = scan(counts)
    np.testing.assert_array_equal(facts.total_per_cell, counts.sum(1, dtype=np.float64))
    np.testing.assert_array_equal(facts.total_per_gene, counts.sum(0, dtype=np.float64))
    assert facts.first_fraction is None
    assert facts.n_nonzero == np.count_nonzero(counts)


@pytest.mark.parametrize("filled", [[], [0], [4], [0, 4], [1, 3]])
def test_sum_rows_with_empty_rows(filled):
    dense = np.zeros((5, 3), dtype=np.float32)
    dense[filled] = [1, 0, 5]
    np.testing.assert_array_equal(sum_rows(sp.csr_matrix(dense)), dense.sum(1))


def test_totals_of_large_counts_are_exact():
    dense = np.full((3000, 2), 2.0**20, dtype=np.float32)
    dense[:, 1] += 1
    facts = scan(dense)
    np.testing.assert_array_equal(facts.total_per_cell, 2.0**21 + 1)
    np.testing.assert_allclose(facts.total_per_gene, [3000 * 2.0**20, 3000 * (2.0**20 + 1)], rtol=1e-6)


@settings(max_examples=50, deadline=None)
@given(
    place=st.tuples(st.integers(0, 4), st.integers(0, 39)),
    value=st.sampled_from([-1.0, -0.5, np.nan, np.inf, -np.inf]),
    later=st.tuples(st.integers(0, 4), st.integers(0, 39)),
)
def test_the_first_invalid_entry_is_found_wherever_it_is(place, value, later):
    dense = np.ones((5, 40), dtype=np.float32)
    dense[later] = -7
    dense[place] = value
    row, column = min(place, later)
    rule = "negative" if dense[row, column] < 0 else "finite"
    with pytest.raises(ValueError, match=rf"cell 'c{row}', gene 'g{column}' of adata.X .*{rule}.*layer='counts'"):
        scan(dense)


def test_an_invalid_entry_at_the_end_of_a_large_matrix_is_found():
    dense = np.ones((700, 211), dtype=np.float32)
    dense[-1, -1] = np.nan
    with pytest.raises(ValueError, match=r"cell 'c699', gene 'g210' of adata.X is nan: counts must be finite"):
        scan(dense)


@settings(max_examples=50, deadline=None)
@given(places=st.lists(st.tuples(st.integers(0, 699), st.integers(0, 210)), min_size=1, max_size=3, unique=True))
def test_the_first_fraction_is_found_wherever_it_is(places):
    dense = np.ones((700, 211), dtype=np.float32)
    for number, place in enumerate(places):
        dense[place] = 1.5 + number
    row, column = min(places)
    expected = Entry(f"c{row}", f"g{column}", float(dense[row, column]))
    assert scan(dense).first_fraction == expected


def test_a_fraction_does_not_hide_a_later_negative_entry():
    dense = np.ones((4, 4), dtype=np.float32)
    dense[0, 0], dense[3, 3] = 0.5, -2
    with pytest.raises(ValueError, match=r"cell 'c3', gene 'g3' of adata.X is -2: counts cannot be negative"):
        scan(dense)


def test_require_counts_says_what_to_do():
    require_counts(None, "adata.X", "nb")
    with pytest.raises(ValueError, match="needs raw counts") as caught:
        require_counts(Entry("AAAC", "CD3D", 1.7346), "adata.X", "nb")
    assert str(caught.value) == (
        "gene_likelihood='nb' needs raw counts, but cell 'AAAC', gene 'CD3D' of adata.X is 1.7346, not a whole number. "
        "Pass the layer that holds raw counts to setup_anndata, layer='counts' for example, "
        "or choose gene_likelihood='normal'."
    )
