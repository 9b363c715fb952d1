import numpy as np

from scvae_ext.models.subsets import place_among, some_of_each

CODES = np.array([0, 1, 0, -1, 0, 1, 0])


def test_no_more_of_a_group_than_asked_for_and_all_of_a_small_one():
    chosen = some_of_each(CODES, 2, 3, seed=0)
    assert (np.diff(chosen) > 0).all()
    assert np.bincount(CODES[chosen]).tolist() == [3, 2]
    assert some_of_each(CODES, 2, None, seed=0).tolist() == [0, 1, 2, 4, 5, 6]


def test_a_cell_that_was_not_chosen_has_no_place():
    assert place_among(np.array([1, 4]), 7, np.array([4, 0, -1, 1, 6])).tolist() == [1, -1, -1, 0, -1]
