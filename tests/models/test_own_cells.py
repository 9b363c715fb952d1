import numpy as np
import pandas as pd
import pytest

from scvae_ext.models.own_cells import own_positions


@pytest.fixture
def positions(model):
    def positions(adata, indices=None):
        adata, cells = model._cells(adata, indices, None, True)
        return own_positions(adata, cells, model.adata, model._own_source()).tolist()

    return positions


CHOSEN = [50, 3, 119]


@pytest.mark.parametrize(
    "choose",
    [
        lambda adata: adata[CHOSEN],
        lambda adata: adata[CHOSEN].copy(),
        lambda adata: adata[CHOSEN].copy()[:, ::-1].copy(),
        lambda adata: adata[::-1][[69, 116, 0]],
        lambda adata: adata[adata.obs_names[CHOSEN]],
    ],
    ids=["view", "copy", "genes in another order", "view of a view", "by name"],
)
def test_cells_of_a_view_or_copy_are_the_models_own(positions, adata, choose):
    assert positions(choose(adata)) == CHOSEN
    assert positions(choose(adata), [2, 0]) == [119, 50]


def test_a_mask_and_a_slice_make_views_as_well(positions, adata):
    assert positions(adata[np.arange(120) % 40 == 1]) == [1, 41, 81]
    assert positions(adata[10:40:10]) == [10, 20, 30]


@pytest.mark.filterwarnings("ignore:.* genes are missing")
@pytest.mark.parametrize("is_view", [True, False])
def test_cells_with_fewer_genes_are_compared_by_those(positions, adata, is_view):
    some = adata[CHOSEN, :20]
    assert positions(some if is_view else some.copy()) == CHOSEN


def test_cells_that_share_a_name_by_chance_are_others(positions, adata):
    other = adata[CHOSEN].copy()
    other.obs_names = adata.obs_names[[3, 50, 119]]
    assert positions(other) == [-1, -1, 119]
    other.obs_names = ["a", "b", "c"]
    assert positions(other) == [-1, -1, -1]


def test_a_view_of_what_was_sorted_since_is_matched_by_name(positions, model, adata):
    view = adata[[0, 1]]
    adata._inplace_subset_obs(np.arange(120)[::-1])
    # Names of the view are those of before, its counts those of now.
    assert positions(view) == [-1, -1]


def test_names_that_are_not_unique_say_that_cells_cannot_be_told(model, adata):
    names = adata.obs_names.tolist()
    names[7] = names[3]
    adata.obs_names = names
    with pytest.warns(UserWarning, match="1 cells have a name .* 'cell_3', and are taken for other"):
        model.get_cell_uncertainty(adata[CHOSEN].copy(), labels_key="cell_type")
    # A view needs no names.
    found = model.get_cell_uncertainty(adata[CHOSEN], labels_key="cell_type", key_added=None)
    expected = model.get_cell_uncertainty(indices=CHOSEN, labels_key="cell_type", key_added=None)
    pd.testing.assert_frame_equal(found, expected)
