import json

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from stores import stored

from scvae_ext import SemiSupervisedVAE
from scvae_ext.data import Registry, align, read_registry
from scvae_ext.datasets import synthetic_counts


@pytest.fixture
def adata():
    adata = synthetic_counts(60, 20, n_types=3)
    labels = adata.obs["cell_type"].astype(str)
    labels.iloc[::2] = "Unknown"
    adata.obs["known"] = labels
    return adata


def set_up(adata, **options):
    SemiSupervisedVAE.setup_anndata(adata, labels_key="known", **options)
    return read_registry(adata)


def test_the_category_of_unlabelled_cells_comes_last_whatever_its_name(adata):
    registry = set_up(adata)
    assert registry.label_categories == ("type_0", "type_1", "type_2", "Unknown")
    assert registry.unlabeled_category == "Unknown"
    label = align(adata, registry).label.numpy()
    assert (label[::2] == 3).all()
    names = np.array(registry.label_categories)
    np.testing.assert_array_equal(names[label[1::2]], adata.obs["cell_type"].astype(str)[1::2])


@pytest.mark.parametrize("kind", ["missing", "categorical", "both"])
def test_missing_values_are_unlabelled_as_well(adata, kind):
    expected = align(adata, set_up(adata)).label
    labels = adata.obs["known"].copy()
    labels[labels == "Unknown"] = np.nan
    if kind == "categorical":
        labels = labels.astype("category")
    elif kind == "both":
        labels.iloc[0] = "Unknown"
    adata.obs["known"] = labels
    registry = set_up(adata)
    assert registry.label_categories[-1] == "Unknown"
    np.testing.assert_array_equal(align(adata, registry).label, expected)
    pd.testing.assert_series_equal(adata.obs["known"], labels, check_names=False)  # nothing of the user's is changed


def test_numbers_with_missing_values_are_named_as_without(adata):
    adata.obs["known"] = np.where(np.arange(60) % 2 == 0, np.nan, np.arange(60) % 3)
    registry = set_up(adata)
    assert registry.label_categories == ("0", "1", "2", "Unknown")
    label = align(adata, registry).label.numpy()
    np.testing.assert_array_equal(label[1::2], (np.arange(60) % 3)[1::2])
    # The same labels as whole numbers, of other cells.
    other = adata[1::2].copy()
    other.obs["known"] = other.obs["known"].astype(int)
    np.testing.assert_array_equal(align(other, registry).label, label[1::2])


def test_cells_whose_labels_nobody_knows_need_no_column(adata):
    registry = set_up(adata)
    del adata.obs["known"]
    assert (align(adata, registry).label == 3).all()


def test_all_cells_may_have_a_label(adata):
    adata.obs["known"] = adata.obs["cell_type"]
    registry = set_up(adata)
    assert registry.label_categories == ("type_0", "type_1", "type_2", "Unknown")
    assert (align(adata, registry).label < 3).all()


def test_another_name_for_cells_without_a_label(adata):
    adata.obs["known"] = adata.obs["known"].replace("Unknown", "?")
    assert set_up(adata, unlabeled_category="?").label_categories[-1] == "?"


def test_the_set_up_survives_json_and_a_file(adata, tmp_path):
    registry = set_up(adata)
    assert Registry.from_dict(json.loads(json.dumps(registry.to_dict()))) == registry
    adata.write_h5ad(tmp_path / "cells.h5ad")
    assert read_registry(ad.read_h5ad(tmp_path / "cells.h5ad")) == registry


@pytest.mark.parametrize("kind", ["backed", "zarr", "lazy h5ad"])
def test_labels_of_stored_cells(adata, kind, tmp_path):
    adata.obs["known"] = adata.obs["known"].astype("category")
    registry = set_up(adata)
    expected = align(adata, registry).label
    with stored(adata, kind, tmp_path) as there:
        np.testing.assert_array_equal(align(there, registry).label, expected)


def test_a_registry_without_unlabelled_cells_is_written_as_before(adata):
    from scvae_ext import SCVAE

    SCVAE.setup_anndata(adata, labels_key="known")
    assert "unlabeled_category" not in read_registry(adata).to_dict()


def test_mistakes_say_what_to_type_instead(adata):
    with pytest.raises(ValueError, match="Did you mean 'Unknown'"):
        set_up(adata, unlabeled_category="unknown")
    registry = set_up(adata)
    other = adata.copy()
    other.obs["known"] = other.obs["known"].replace("type_1", "type_9")
    with pytest.raises(ValueError, match=r"not there at set-up: 'type_9' .* Known are: 'type_0'.* drop or rename it"):
        align(other, registry)
    one = adata.copy()
    one.obs["known"] = np.where(one.obs["known"] == "Unknown", "Unknown", "cell")
    with pytest.raises(ValueError, match=r"has 1 label beside .* two are needed"):
        set_up(one)
    with pytest.raises(ValueError, match="labels_key says which labels are known, and is missing"):
        SemiSupervisedVAE.setup_anndata(adata)
    labels = adata.obs["known"]
    for name in ("unassigned", ""):
        adata.obs["known"] = labels.replace("Unknown", name)
        with pytest.warns(UserWarning, match=rf"'{name}' .* pass unlabeled_category='{name}'"):
            set_up(adata)


def test_models_without_use_for_labels_take_new_ones_as_not_known(adata):
    registry = set_up(adata)
    expected = align(adata, registry).label
    adata.obs["known"] = adata.obs["known"].replace("type_1", "type_9")
    found = align(adata, registry, labels_matter=False).label
    unknown = len(registry.label_categories) - 1
    changed = (adata.obs["known"] == "type_9").to_numpy()
    assert (found[changed] == unknown).all()
    assert (found[~changed] == expected[~changed]).all()
