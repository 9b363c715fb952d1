import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import spearmanr
from stores import stored

from scvae_ext import SCVAE, MultiomeVAE
from scvae_ext.datasets import synthetic_counts
from scvae_ext.diagnostics import evidence, posterior_collapse, zero_inflation
from scvae_ext.models.cells import shared_noise

KEY = "accessibility"


def set_up(adata):
    MultiomeVAE.setup_anndata(adata, batch_key="batch", accessibility_obsm_key=KEY, peak_names_uns_key="peaks")
    return adata


@pytest.fixture(scope="module")
def truth():
    return synthetic_counts(1500, 80, n_batches=2, n_peaks=200, seed=1)


@pytest.fixture(scope="module")
def model(truth):
    """Trained where accessibility was measured in the first batch alone."""
    adata = truth.copy()
    there = (adata.obs["batch"] == "batch_1").to_numpy()
    matrix = adata.obsm[KEY].toarray()
    matrix[there] = 0
    adata.obsm[KEY] = matrix
    with pytest.warns(UserWarning, match="genes alone"):
        set_up(adata)
    model = MultiomeVAE(adata, n_latent=8, n_hidden=64)
    model.train(enable_progress_bar=False)
    return model


@pytest.fixture
def small():
    return set_up(synthetic_counts(120, 30, n_batches=2, n_peaks=25))


def trained(adata, **options):
    model = MultiomeVAE(adata, n_hidden=16, n_latent=3, **options)
    model.train(max_steps=30, enable_progress_bar=False)
    return model


@pytest.mark.slow
class TestAgainstTruth:
    def test_probabilities_are_nearer_to_the_truth_than_what_was_seen(self, model, truth):
        there = (truth.obs["batch"] == "batch_0").to_numpy()
        # The model's depth is relative to the mean number of accessible peaks: compare at the observed depth.
        depth = truth.obs["accessibility_depth"].to_numpy()[:, None]
        expected = -np.expm1(-depth * truth.obsm["accessibility_rate"])[there]
        found = model.get_accessibility(depth="observed", key_added=None).to_numpy()[there]
        share = truth.obsm[KEY].toarray()[there].mean(0)
        error, of_share = np.mean((found - expected) ** 2), np.mean((share - expected) ** 2)
        assert error < 0.25 * of_share
        within = [spearmanr(found[:, peak], expected[:, peak])[0] for peak in range(0, 200, 10)]
        assert np.mean(within) > 0.8

    def test_accessibility_is_predicted_where_genes_alone_were_measured(self, model, truth):
        hidden = (truth.obs["batch"] == "batch_1").to_numpy()
        rate = truth.obsm["accessibility_rate"][hidden]
        found = model.get_accessibility(key_added=None).to_numpy()[hidden]
        within = [spearmanr(found[:, peak], rate[:, peak])[0] for peak in range(0, 200, 10)]
        assert np.mean(within) > 0.7
        by_type = truth.obs["cell_type"][hidden]
        of_types = pd.DataFrame(rate).groupby(by_type.to_numpy(), observed=True).transform("mean").to_numpy()
        baseline = [spearmanr(of_types[:, peak], rate[:, peak])[0] for peak in range(0, 200, 10)]
        assert np.mean(within) > np.mean(baseline) - 0.05

    def test_the_latent_space_mixes_cells_with_and_without_peaks(self, model, truth):
        from sklearn.neighbors import KNeighborsClassifier

        latent = model.get_latent_representation(key_added=None)
        for key, least, most in (("cell_type", 0.85, 1.0), ("batch", 0.0, 0.7)):
            names = truth.obs[key].astype(str)
            score = KNeighborsClassifier(15).fit(latent[::2], names[::2]).score(latent[1::2], names[1::2])
            assert least <= score <= most, (key, score)

    def test_the_evidence_is_that_of_both(self, model, truth):
        cells = np.flatnonzero(truth.obs["batch"] == "batch_0")[:60]
        of_both = model.get_marginal_ll(indices=cells, n_mc_samples=300)
        assert of_both > model.get_elbo(indices=cells)
        alone = SCVAE(model.adata, n_latent=8, n_hidden=64)
        alone.train(max_steps=300, enable_progress_bar=False)
        assert of_both < alone.get_marginal_ll(indices=cells, n_mc_samples=300) - 20


def test_results_are_written_with_their_provenance_and_survive_a_file(small, tmp_path):
    model = trained(small)
    frame = model.get_accessibility()
    assert list(frame.columns) == model.peak_names == [f"peak_{i}" for i in range(25)]
    assert frame.to_numpy().min() > 0
    assert frame.to_numpy().max() < 1
    np.testing.assert_array_equal(small.obsm["scvae_accessibility"], frame)
    small.write_h5ad(tmp_path / "cells.h5ad")
    back = ad.read_h5ad(tmp_path / "cells.h5ad")
    np.testing.assert_array_equal(back.obsm["scvae_accessibility"], frame)
    assert '"depth": "mean"' in back.uns["scvae_ext"]


def test_peaks_and_cells_are_in_the_order_asked_for(small):
    model = trained(small)
    every = model.get_accessibility(key_added=None)
    names, cells = ["peak_7", "peak_2"], small.obs_names[[9, 4, 77]]
    some = model.get_accessibility(peak_list=names, indices=cells, batch_size=2)
    pd.testing.assert_frame_equal(some, every.loc[cells, names], rtol=1e-4)
    assert "scvae_accessibility" not in small.obsm


def test_depth_and_batch_can_be_set(small):
    model = trained(small)
    at_mean = model.get_accessibility(key_added=None)
    observed = model.get_accessibility(depth="observed", key_added=None)
    n_seen = small.obsm[KEY].toarray().sum(axis=1)
    deep = n_seen > n_seen[model.train_indices].mean()
    assert (observed[deep] > at_mean[deep]).all(axis=None)
    assert (observed[~deep] <= at_mean[~deep] + 1e-6).all(axis=None)
    both = model.get_accessibility(transform_batch=["batch_0", "batch_1"], key_added=None)
    each = [model.get_accessibility(transform_batch=name, key_added=None) for name in ("batch_0", "batch_1")]
    pd.testing.assert_frame_equal(both, (each[0] + each[1]) / 2, rtol=1e-4)


def test_a_large_result_goes_to_a_file(small, tmp_path):
    model = trained(small)
    path = model.get_accessibility(out=tmp_path / "accessibility.h5ad")
    written = ad.read_h5ad(path)
    assert list(written.var_names) == model.peak_names
    np.testing.assert_allclose(written.X, model.get_accessibility(key_added=None), rtol=1e-4)
    assert "scvae_accessibility" not in small.obsm


def test_genes_and_peaks_of_other_cells_are_matched_by_name(small):
    model = trained(small)
    expected = model.get_accessibility(key_added=None)
    other = small[:, ::-1].copy()
    order = np.random.default_rng(0).permutation(25)
    other.obsm[KEY] = other.obsm[KEY][:, order]
    other.uns["peaks"] = np.array(other.uns["peaks"])[order]
    pd.testing.assert_frame_equal(model.get_accessibility(other), expected, rtol=1e-4)


def test_a_saved_model_says_the_same(small, tmp_path):
    model = trained(small)
    model.save(tmp_path / "model")
    loaded = MultiomeVAE.load(tmp_path / "model", small)
    pd.testing.assert_frame_equal(loaded.get_accessibility(key_added=None), model.get_accessibility(key_added=None))
    assert loaded.get_elbo() == model.get_elbo()


@pytest.mark.parametrize("kind", ["backed", "lazy h5ad", "lazy zarr"])
def test_stored_cells_give_the_same(small, kind, tmp_path):
    model = trained(small)
    expected = model.get_accessibility(key_added=None)
    with stored(small, kind, tmp_path) as there:
        pd.testing.assert_frame_equal(model.get_accessibility(there, key_added=None), expected, rtol=1e-3)
        assert np.isfinite(trained(there).get_elbo())


def test_names_that_come_from_zarr_are_those_that_went_into_it(small, tmp_path):
    model = trained(small)
    model.save(tmp_path / "model")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        small.write_zarr(tmp_path / "cells.zarr")
    there = ad.read_zarr(tmp_path / "cells.zarr")
    loaded = MultiomeVAE.load(tmp_path / "model", there)
    assert loaded.peak_names == model.peak_names
    pd.testing.assert_frame_equal(loaded.get_accessibility(key_added=None), model.get_accessibility(key_added=None))
    assert trained(set_up(there)).peak_names == model.peak_names


def test_the_same_seed_gives_the_same_weights_and_the_history_tells_peaks_from_genes(small):
    models = [trained(small.copy()), trained(small.copy())]
    assert "reconstruction_accessibility_validation" in models[0].history
    pd.testing.assert_frame_equal(
        models[0].history.drop(columns="seconds"), models[1].history.drop(columns="seconds"), check_exact=True
    )


@pytest.mark.parametrize("options", [{"gene_likelihood": "zinb"}, {"prior": "mixture"}, {"encode_covariates": True}])
def test_options_train(small, options):
    assert np.isfinite(trained(small, **options).get_elbo())


def test_what_is_about_genes_works_as_with_scvae(small):
    model = trained(small)
    assert model.get_normalized_expression().shape == (120, 30)
    assert len(model.differential_expression(groupby="cell_type", group1="type_0", group2="type_1")) == 30
    assert posterior_collapse(model).n_cells == 120
    assert len(evidence(model, n_samples=100).to_frame()) > 0
    alone = SCVAE(small, n_hidden=16, n_latent=3)
    assert alone.registry.peaks is None
    assert alone.module.accessibility is None


@pytest.mark.parametrize("how", ["replaced", "in place", "names"])
def test_changed_peaks_are_read_anew(small, how):
    if how == "in place":
        small.obsm[KEY] = small.obsm[KEY].toarray()
    model = trained(small)
    before = model.get_latent_representation(key_added=None)
    if how == "names":
        small.uns["peaks"] = np.asarray(small.uns["peaks"])[::-1].copy()
    elif how == "in place":
        small.obsm[KEY][:] = small.obsm[KEY][::-1].copy()
    else:
        small.obsm[KEY] = small.obsm[KEY][::-1].copy()
    after = model.get_latent_representation(key_added=None)
    assert np.abs(after - before).max() > 1e-4
    np.testing.assert_allclose(model.get_latent_representation(small.copy(), key_added=None), after, rtol=1e-5)


@pytest.mark.usefixtures("unchecked")
def test_mistakes_say_what_to_type_instead(small):
    model = trained(small)
    alone = synthetic_counts(50, 10)
    SCVAE.setup_anndata(alone)
    cases = [
        (lambda: MultiomeVAE(alone), ValueError, r"call MultiomeVAE\.setup_anndata"),
        (lambda: MultiomeVAE(small, gene_likelihood="normal"), ValueError, "do not add up"),
        (lambda: MultiomeVAE(small, prior="vamp"), ValueError, "knows no peaks"),
        (lambda: MultiomeVAE(small, n_latents=3), TypeError, "n_latent"),
        (lambda: model.get_accessibility(peak_list=["peak_99"]), ValueError, "the model's peaks"),
        (lambda: model.get_accessibility(depth="median"), ValueError, 'use "mean" or "observed"'),
        (lambda: model.get_normalized_expression(interval=0.9), ValueError, "encodes accessibility as well"),
        (lambda: zero_inflation(model), TypeError, "of chromatin as well: train an SCVAE"),
        (lambda: model.get_accessibility(key_added=KEY), ValueError, r"replace adata.obsm\['accessibility'\]"),
        (
            lambda: model.differential_accessibility(groupby="cell_type", key_added="peaks"),
            ValueError,
            r"replace adata.uns\['peaks'\]",
        ),
        (lambda: MultiomeVAE(small).get_accessibility(), RuntimeError, "has not been trained"),
    ]
    for call, error, message in cases:
        with pytest.raises(error, match=message), warnings.catch_warnings():
            call()


def test_it_is_the_mean_over_the_posterior_in_the_batch_that_is_asked_for(small):
    model = trained(small)
    found = model.get_accessibility(indices=np.arange(9), transform_batch="batch_1", n_samples=4, key_added=None)
    module = model.module
    with torch.no_grad():
        minibatch = model._own_source().minibatch(np.arange(9))
        qz = module.encode(minibatch).qz
        state = qz.loc + qz.scale * shared_noise(4, 3, 0, torch.device("cpu"))
        hidden = module.decode_hidden(state, minibatch, torch.ones(9, dtype=torch.int64))
        rate = module.accessibility.likelihood.log_rate(hidden).exp()
    np.testing.assert_allclose(found, (1 - (-rate).exp()).mean(0), rtol=1e-3, atol=1e-6)
