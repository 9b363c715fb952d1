import hashlib
import json

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from scvae_ext import SCVAE, Autoencoder
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


@pytest.mark.parametrize(
    ("getter", "options"),
    [
        ("get_latent_representation", {}),
        ("get_latent_representation", {"out": "latent.h5ad"}),
        ("get_normalized_expression", {}),
        ("get_feature_correlation_matrix", {}),
        ("get_cell_uncertainty", {}),
        ("get_novelty", {}),
        ("differential_expression", {"groupby": "cell_type"}),
        ("differential_abundance", {"sample_key": "batch"}),
    ],
)
def test_a_key_with_a_slash_could_not_be_read_again(model, getter, options, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"key_added='a/b' has a slash in it.*pass 'a_b'"):
        getattr(model, getter)(key_added="a/b", **options)
    assert list(tmp_path.iterdir()) == []


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


def test_results_do_not_take_the_place_of_what_the_model_reads(simulated):
    adata = simulated.copy()
    names = {"batch": "x_supported", "cell_type": "x_elbo", "age": "x_error"}
    adata.obs = adata.obs.rename(columns=names).assign(x_entropy=adata.obs["batch"], sample=adata.obs["age"] % 4)
    adata.layers["x_median"] = adata.X.copy()
    SCVAE.setup_anndata(
        adata,
        layer="x_median",
        batch_key="x_supported",
        labels_key="x_elbo",
        categorical_covariate_keys=["x_entropy"],
        continuous_covariate_keys=["x_error"],
    )
    model = SCVAE(adata, n_hidden=16, n_latent=3)
    model.train(max_steps=1, enable_progress_bar=False)
    before = adata.copy()
    everywhere = list(adata.var_names)[::-1]
    for write, slot, key in (
        (lambda: model.get_normalized_expression(key_added="x_median"), "layers", "x_median"),
        (lambda: model.get_normalized_expression(gene_list=everywhere, key_added="x_median"), "layers", "x_median"),
        (lambda: model.get_normalized_expression(interval=0.9, key_added="x"), "layers", "x_median"),
        (lambda: model.counterfactual({"x_supported": "batch_1"}, key_added="x"), "layers", "x_median"),
        (
            lambda: model.counterfactual({"x_supported": "batch_1"}, gene_list=["gene_1"], key_added="x"),
            "obs",
            "x_supported",
        ),
        (lambda: model.get_cell_uncertainty(key_added="x"), "obs", "x_entropy"),
        (lambda: model.get_novelty(key_added="x", n_replicates=10), "obs", "x_elbo"),
        (lambda: model.differential_abundance(sample_key="sample", key_added="x"), "obs", "x_error"),
        (lambda: model.differential_expression(groupby="x_elbo", key_added="scvae_ext"), "uns", "scvae_ext"),
    ):
        with pytest.raises(ValueError, match=rf"key_added='\w+' would replace adata.{slot}\['{key}'\].*key_added=None"):
            write()
    assert model._replicate is None
    pd.testing.assert_frame_equal(adata.obs, before.obs)
    for slot in ("layers", "obsm", "uns"):
        assert set(getattr(adata, slot)) == set(getattr(before, slot))
    assert (adata.layers["x_median"] != before.layers["x_median"]).nnz == 0
    assert adata.uns["scvae_ext"] == before.uns["scvae_ext"]
    model.get_normalized_expression(gene_list=["gene_1"], key_added="x_median")
    assert list(adata.obsm["x_median"].columns) == ["gene_1"]
    model.get_latent_representation(key_added="x_median")
    assert adata.obsm["x_median"].shape == (120, 3)


def test_the_autoencoder_does_not_replace_its_counts_either(simulated):
    adata = simulated.copy()
    adata.layers["counts"] = adata.X.copy()
    Autoencoder.setup_anndata(adata, layer="counts")
    model = Autoencoder(adata, n_hidden=16, n_latent=3)
    model.train(max_steps=1, enable_progress_bar=False)
    with pytest.raises(ValueError, match=r"would replace adata.layers\['counts'\]"):
        model.get_normalized_expression(key_added="counts")
    model.get_latent_representation(key_added="counts")
