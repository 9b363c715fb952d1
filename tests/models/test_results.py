import hashlib
import json

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from scvae_ext.models.results import weights_hash, write_result

PROVENANCE = {"version": "1", "arguments": {"seed": 0}}


def _record(adata, slot):
    return json.loads(adata.uns["scvae_ext"])["results"][slot]


def test_a_result_for_all_cells_is_written_as_it_is(adata):
    values = np.arange(240, dtype=np.float32).reshape(120, 2)
    write_result(adata, "obsm", "X_new", values, np.arange(120), PROVENANCE)
    assert adata.obsm["X_new"].dtype == np.float32
    np.testing.assert_array_equal(adata.obsm["X_new"], values)


def test_cells_that_were_not_asked_for_get_nan(adata):
    write_result(adata, "layers", "new", np.ones((2, 30), dtype=np.float32), np.array([5, 3]), PROVENANCE)
    layer = adata.layers["new"]
    assert np.flatnonzero(np.isfinite(layer).all(1)).tolist() == [3, 5]
    assert np.isnan(np.delete(layer, [3, 5], axis=0)).all()


def test_rows_go_to_their_cells(adata):
    order = np.random.default_rng(0).permutation(120)
    write_result(adata, "obs", "score", order.astype(np.float32), order, PROVENANCE)
    np.testing.assert_array_equal(adata.obs["score"], np.arange(120))


def test_named_columns_make_a_data_frame(adata):
    write_result(adata, "obsm", "genes", np.ones((120, 2), dtype=np.float32), np.arange(120), PROVENANCE, ["a", "b"])
    expected = pd.DataFrame(1.0, index=adata.obs_names, columns=["a", "b"], dtype=np.float32)
    pd.testing.assert_frame_equal(adata.obsm["genes"], expected)


def test_a_cell_asked_for_twice_is_ambiguous(adata):
    with pytest.raises(ValueError, match=r"more than once.*key_added=None"):
        write_result(adata, "obsm", "new", np.ones((2, 2), dtype=np.float32), np.array([1, 1]), PROVENANCE)
    assert "new" not in adata.obsm


def test_a_column_without_a_name_is_refused_before_it_is_written(adata):
    with pytest.raises(ValueError, match=r"a column of adata.obsm\['k'\] would be empty.*key_added=None"):
        write_result(adata, "obsm", "k", np.zeros((120, 2)), np.arange(120), {}, ["a", ""])
    assert "k" not in adata.obsm


def test_where_a_result_came_from_is_recorded_with_its_time(adata):
    write_result(adata, "obsm", "new", np.ones((120, 2), dtype=np.float32), np.arange(120), PROVENANCE)
    record = _record(adata, 'obsm["new"]')
    assert PROVENANCE.items() <= record.items()
    age = pd.Timestamp.now("UTC") - pd.Timestamp(record["written"])
    assert pd.Timedelta(-1, "s") <= age < pd.Timedelta(1, "min")


def test_a_view_becomes_an_anndata_of_its_own(simulated):
    view = simulated[:10]
    write_result(view, "obsm", "new", np.ones((10, 2), dtype=np.float32), np.arange(10), PROVENANCE)
    assert not view.is_view
    assert "new" not in simulated.obsm


def test_results_survive_a_round_trip(adata, round_trip):
    write_result(adata, "obsm", "new", np.ones((120, 2), dtype=np.float32), np.arange(120), PROVENANCE)
    again = round_trip(adata)
    np.testing.assert_array_equal(again.obsm["new"], adata.obsm["new"])
    assert _record(again, 'obsm["new"]') == _record(adata, 'obsm["new"]')


def test_the_fingerprint_is_that_of_names_and_bytes():
    module = nn.Linear(2, 1)
    digest = hashlib.sha256()
    for name in ("bias", "weight"):
        digest.update(name.encode() + getattr(module, name).detach().numpy().tobytes())
    assert weights_hash(module) == digest.hexdigest()[:16]


def test_the_fingerprint_changes_with_any_weight():
    module = nn.Linear(2, 1)
    before = weights_hash(module)
    with torch.no_grad():
        module.weight[0, 1] += 1e-6
    assert weights_hash(module) != before
