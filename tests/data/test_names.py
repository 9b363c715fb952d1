import numpy as np
import pytest

from scvae_ext.data.names import category_names, find_category, shorten, unknown_key


def test_shorten():
    assert shorten(["a", "b"]) == "'a', 'b'"
    assert shorten(range(12), 3) == "'0', '1', '2' and 9 more"


@pytest.mark.parametrize(
    ("value", "position"), [(1, 0), (1.0, 0), ("1", 0), (np.float32(2.5), 1), ("01", None), (True, None), (25, None)]
)
def test_categories_asked_for_by_number_or_name(value, position):
    assert find_category(value, ("1", "2.5")) == position


@pytest.mark.parametrize(
    ("value", "known"),
    [("run.0", "run"), ("run", "run.0"), ("v1.0", "v1"), ("1.0.0", "1.0"), ("nan.0", "nan"), (".0", ""), ("1_0", "10")],
)
def test_text_that_ends_like_a_decimal_is_another_category(value, known):
    assert find_category(value, (known,)) is None
    assert find_category(value, (known, value)) == 1


def test_whole_numbers_are_found_with_and_without_decimals():
    assert [find_category(value, ("-1", "2.0")) for value in (-1, "-1.0", 2, "2")] == [0, 0, 1, 1]


def test_whole_numbers_lose_their_decimals_where_all_are_whole():
    assert category_names([1.0, 2.0]) == ["1", "2"]
    assert category_names(np.array([1.0, 2.5])) == ["1.0", "2.5"]
    assert category_names([1, "a", True]) == ["1", "a", "True"]


def test_an_unknown_key_is_told_with_the_nearest():
    assert (
        str(unknown_key("the key was", "Batch", ["batch", "donor"])) == "the key was not found. Did you mean 'batch'?"
    )
    assert str(unknown_key("the key was", "xyz", ["batch"])) == "the key was not found. There are: 'batch'."
    assert str(unknown_key("the key was", "xyz", [])) == "the key was not found. There are none."
