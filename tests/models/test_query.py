import numpy as np
import pandas as pd
import pytest

from scvae_ext.models.query import select_cells, select_genes, select_options

CELLS = pd.Index(["c0", "c1", "c2", "c3"])
GENES = ["Actb", "Cd4", "Cd8a"]
pytestmark = pytest.mark.usefixtures("unchecked")


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (None, [0, 1, 2, 3]),
        ([2, 0], [2, 0]),
        ([-1, -4], [3, 0]),
        (np.array([1, 1]), [1, 1]),
        (range(2), [0, 1]),
        (slice(1, None), [1, 2, 3]),
        (np.int64(2), [2]),
        ([True, False, False, True], [0, 3]),
        (pd.Series([False, True, True, False], index=CELLS), [1, 2]),
        (pd.Series([False, True, True, False], index=CELLS, dtype="boolean"), [1, 2]),
        (pd.Series([False, True, True, False], index=CELLS, dtype="category"), [1, 2]),
        (pd.array([False, True, True, False], dtype="boolean"), [1, 2]),
        (["c3", "c1"], [3, 1]),
        (CELLS[::-1], [3, 2, 1, 0]),
        ("c2", [2]),
    ],
)
def test_cells_come_in_the_order_asked_for(asked, expected):
    assert select_cells(asked, CELLS).tolist() == expected


@pytest.mark.parametrize(
    ("asked", "error", "message"),
    [
        ([True, False], ValueError, "mask of 2 entries, but there are 4 cells"),
        ([False] * 4, ValueError, "selects no cell"),
        ([], ValueError, "selects no cell"),
        ([4], IndexError, r"holds 4, but there are 4 cells \(0 to 3\)"),
        ([-5], IndexError, "holds -5"),
        (np.zeros((2, 2), dtype=int), ValueError, "2 axes"),
        (["c9"], ValueError, "'c9', not among adata.obs_names"),
        (["x", "y"], ValueError, "holds 'x', 'y', not among"),
        ([1.0], ValueError, "1.0"),
        ({1}, ValueError, "set"),
        (pd.Series([True] * 4, index=CELLS[::-1]), ValueError, "index"),
        (pd.Series([True] * 4, index=CELLS[::-1], dtype="boolean"), ValueError, "mask whose index is not"),
        (
            pd.Series([True, None, False, False], index=CELLS, dtype="boolean"),
            ValueError,
            r"1 of 4 values are missing.*fillna\(False\)",
        ),
    ],
)
def test_cells_that_do_not_exist_are_refused(asked, error, message):
    with pytest.raises(error, match=message):
        select_cells(asked, CELLS)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int16, np.uint64])
def test_positions_of_any_dtype(dtype):
    names = pd.RangeIndex(70_000).astype(str)
    assert select_cells(np.array([3, 100], dtype=dtype), names).tolist() == [3, 100]
    if np.issubdtype(dtype, np.signedinteger):
        assert select_cells(np.array([-1], dtype=dtype), names).tolist() == [69_999]
    else:
        with pytest.raises(IndexError, match="holds"):
            select_cells(np.array([np.iinfo(dtype).max], dtype=dtype), names[:200])


def test_names_that_are_not_unique_cannot_name_cells():
    with pytest.raises(ValueError, match=r"not unique.*positions"):
        select_cells(["a"], pd.Index(["a", "a"]))
    assert select_cells([1], pd.Index(["a", "a"])).tolist() == [1]


@pytest.mark.parametrize("as_type", [list, tuple, np.array, pd.Index, pd.Series])
def test_genes_come_in_the_order_asked_for(as_type):
    assert select_genes(as_type(["Cd8a", "Actb"]), GENES).tolist() == [2, 0]


def test_all_genes():
    assert select_genes(None, GENES) is None


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("Cd4", r"one string: pass a list, \['Cd4'\]"),
        ([], "empty"),
        (["Cd4", "Cd4"], "'Cd4' more than once"),
        (["CD4"], "'CD4'.*Nearest: 'Cd4'"),
        (["Cd8"], "'Cd8'.*Nearest: .*'Cd8a'"),
        (["zzz", "yyy", "xxx"], "holds 'zzz', 'yyy', 'xxx', not among"),
        (["CD4", "zzz"], "holds 'CD4', 'zzz'.*Nearest to 'CD4': 'Cd4'"),
        (["g1", "g2", "g3", "g4", "g5", "g6", "g7"], "holds 'g1', 'g2', 'g3', 'g4', 'g5' and 2 more, not among"),
        ([0], "names of genes"),
        ({"Cd4"}, "set"),
    ],
)
def test_genes_that_do_not_exist_are_refused(asked, message):
    with pytest.raises(ValueError, match=message):
        select_genes(asked, GENES)


@pytest.mark.parametrize(
    ("asked", "expected"),
    [(None, []), ("b", [1]), (["b", "a"], [1, 0]), (np.array(["a"]), [0]), (pd.Index(["b"]), [1])],
)
def test_categories_by_name(asked, expected):
    assert select_options("transform_batch", asked, ("a", "b"), "batch") == expected


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("asked", [2, 2.0, np.float32(2), np.array([2.0]), "2"])
def test_categories_that_are_numbers_in_the_data(asked):
    assert select_options("transform_batch", asked, ("1", "2"), "batch") == [1]


@pytest.mark.parametrize(
    ("asked", "valid", "message"),
    [
        ("c", ("a", "b"), "transform_batch holds 'c'.*'batch'.*'a', 'b'"),
        (["a", "c"], ("a", "b"), "'c'"),
        ([], ("a", "b"), "empty list"),
        ("a", (), "batch_key"),
    ],
)
def test_categories_that_do_not_exist_are_refused(asked, valid, message):
    with pytest.raises(ValueError, match=message):
        select_options("transform_batch", asked, valid, "batch")
