import numpy as np
import pandas as pd
import pytest

from scvae_ext.models.groups import GroupPair, cells_of_groups, select_groups, select_samples


@pytest.fixture
def obs():
    types = pd.Categorical(["b", "a", "b", "c", "a", None], categories=["c", "unused", "b", "a"])
    return pd.DataFrame(
        {"type": types, "donor": list("xxyyxy"), "age": [1, 2, 3, 4, 5, 6]}, index=[f"cell{i}" for i in range(6)]
    )


def _select(obs, groupby=None, group1=None, group2=None, idx1=None, idx2=None):
    return select_groups(obs, groupby, group1, group2, idx1, idx2)


def test_all_groups_with_cells_in_the_order_of_their_categories(obs):
    groups = _select(obs, "type")
    assert groups.names == ("c", "b", "a")
    assert groups.of_cell.tolist() == [1, 2, 1, 0, 2, -1]
    assert groups.pairs == (GroupPair(0, None), GroupPair(1, None), GroupPair(2, None))
    assert groups.size(1) == 2


def test_cells_of_other_groups_are_left_out_where_two_are_compared(obs):
    groups = _select(obs, "type", "a", "b")
    assert groups.pairs == (GroupPair(2, 1),)
    assert groups.of_cell.tolist() == [1, 2, 1, -2, 2, -2]


def test_several_groups_against_one(obs):
    assert _select(obs, "type", ["a", "c"], "b").pairs == (GroupPair(2, 1), GroupPair(0, 1))
    assert _select(obs, "type", None, "b").pairs == (GroupPair(0, 1), GroupPair(2, 1))


def test_numbers_as_groups_go_by_their_text(obs):
    groups = _select(obs, "age", "3", "4")
    assert groups.of_cell[[2, 3]].tolist() == [groups.names.index("3"), groups.names.index("4")]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("group", [1, 1.0, np.float32(1), "1", "1.0"])
def test_whole_numbers_are_the_same_group_however_they_are_stored(obs, group):
    for dtype in (int, float, "category"):
        column = obs.assign(replicate=np.array([1, 2, 1, 3, 2, 1]).astype(dtype if dtype != "category" else float))
        if dtype == "category":
            column["replicate"] = column["replicate"].astype("category")
        groups = _select(column, "replicate", group, 2)
        assert (groups.names, groups.pairs) == (("1", "2", "3"), (GroupPair(0, 1),))
        assert cells_of_groups(column, "replicate", group).notna().tolist() == [True, False, True, False, False, True]
        assert select_samples(column, "replicate")[1] == ("1", "2", "3")


@pytest.mark.usefixtures("unchecked")
def test_a_group_is_not_compared_with_itself_under_another_name(obs):
    with pytest.raises(ValueError, match="both name 3"):
        _select(obs, "age", "3", 3.0)


@pytest.mark.parametrize(
    ("idx1", "idx2", "expected"),
    [
        ([0, 1], [4], [0, 0, -2, -2, 1, -2]),
        ([True, False, False, False, False, False], None, [0, -1, -1, -1, -1, -1]),
        ("age > 4", "donor == 'x' and age < 3", [1, 1, -2, -2, 0, 0]),
        (["cell3"], ["cell0", "cell2"], [1, -2, 1, 0, -2, -2]),
    ],
)
def test_cells_by_hand(obs, idx1, idx2, expected):
    groups = _select(obs, idx1=idx1, idx2=idx2)
    assert groups.of_cell.tolist() == expected
    assert groups.pairs == (GroupPair(0, None if idx2 is None else 1),)


def test_a_query_takes_the_cells_that_match_and_no_others_of_their_name(obs):
    obs.index = ["cell"] * 3 + ["other"] * 3
    assert _select(obs, idx1="age > 4").of_cell.tolist() == [-1, -1, -1, -1, 0, 0]
    assert _select(obs, idx1="index == 'cell'", idx2="type == 'c'").of_cell.tolist() == [0, 0, 0, 1, -2, -2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "groupby is missing: name a column of adata.obs \\('type', 'donor', 'age'\\)"),
        ({"groupby": "typ"}, "groupby='typ' is not a column.*'type', 'donor', 'age'.*Did you mean 'type'"),
        ({"groupby": "type", "group1": "d"}, "group1='d' is not in.*which holds 'c', 'b', 'a'"),
        ({"groupby": "type", "group1": "unused"}, "group1='unused' is not in"),
        ({"groupby": "type", "group1": "a", "group2": "B"}, "group2='B' is not in.*holds 'c', 'b', 'a'"),
        ({"groupby": "type", "group1": "a", "group2": "a"}, "both name 'a'"),
        ({"groupby": "type", "group1": []}, "group1 is an empty list.*'c', 'b', 'a'"),
        ({"groupby": "type", "idx1": [0]}, "pass one or the other"),
        ({"idx2": [0]}, "without idx1"),
        ({"idx1": [0, 1], "idx2": [1, 2]}, "1 cells are both in idx1 and in idx2, 'cell1'"),
        ({"idx1": "age > 10"}, "selects no cell"),
        ({"idx1": "weight > 10"}, "cannot be used as a query.*'type', 'donor', 'age'"),
        ({"idx1": [17]}, "idx1 holds 17"),
        ({"idx1": []}, "idx1 selects no cell"),
    ],
)
def test_errors_say_what_exists(obs, arguments, message):
    with pytest.raises((ValueError, IndexError), match=message):
        _select(obs, **arguments)


def test_a_column_without_a_value_has_no_groups(obs):
    with pytest.raises(ValueError, match=r"groupby='nothing': no cell has a value.*'type', 'donor', 'age', 'nothing'"):
        _select(obs.assign(nothing=np.nan), "nothing")


def test_one_group_has_nothing_to_be_compared_with(obs):
    with pytest.raises(ValueError, match="one group alone, 'same'"):
        _select(obs.assign(same="same"), "same")
    same = obs["donor"].where(obs["donor"] == "x")
    assert _select(obs.assign(same=same), "same").pairs == (GroupPair(0, None),)
    with pytest.raises(ValueError, match="one group alone, 'x'"):
        _select(obs.assign(same=same), "same", group2="x")


def test_samples_are_numbered_by_name(obs):
    codes, names = select_samples(obs, "donor")
    assert names == ("x", "y")
    assert codes.tolist() == [0, 0, 1, 1, 0, 1]


def test_every_cell_needs_a_sample(obs):
    with pytest.raises(ValueError, match=r"1 cells have no value in adata\.obs"):
        select_samples(obs, "type")
    with pytest.raises(ValueError, match=r"sample_key=.donr.*Did you mean .donor."):
        select_samples(obs, "donr")


def test_positions_are_integers(obs):
    assert np.issubdtype(_select(obs, "type").of_cell.dtype, np.int64)


@pytest.mark.parametrize(
    ("select", "argument"), [(lambda obs, key: _select(obs, key), "groupby"), (select_samples, "sample_key")]
)
def test_a_column_must_be_one_and_its_values_have_names_of_their_own(obs, select, argument):
    mixed = obs.assign(mixed=np.array([1, "1", 2, 1, "1", 2], dtype=object))
    with pytest.raises(ValueError, match=rf"{argument}: adata.obs\['mixed'\] holds.*read the same: '1'.*astype\(str\)"):
        select(mixed, "mixed")
    twice = pd.concat([obs, obs[["donor"]]], axis=1)
    with pytest.raises(ValueError, match=rf"{argument}: adata.obs has 2 columns called 'donor'. Rename or drop"):
        select(twice, "donor")
    assert _select(twice, "type").names == ("c", "b", "a")
