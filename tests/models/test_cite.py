import json
import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score
from stores import stored

from scvae_ext import SCVAE, CiteVAE
from scvae_ext.datasets import synthetic_counts
from scvae_ext.diagnostics import evidence, posterior_collapse, zero_inflation

KEY = "protein_expression_obsm_key"
HIDDEN = ["protein_0", "protein_3", "protein_6"]


def with_a_gap(adata):
    """Hide some proteins in one batch."""
    there = (adata.obs["batch"] == "batch_1").to_numpy()
    adata.obsm["protein"].loc[there, HIDDEN] = np.nan
    with pytest.warns(UserWarning, match="not measured there"):
        CiteVAE.setup_anndata(adata, batch_key="batch", **{KEY: "protein"})
    return adata


@pytest.fixture(scope="module")
def truth():
    return synthetic_counts(1500, 100, n_batches=2, n_proteins=9, seed=1)


@pytest.fixture(scope="module")
def model(truth):
    model = CiteVAE(with_a_gap(truth.copy()), n_latent=8, n_hidden=64)
    model.train(enable_progress_bar=False)
    return model


@pytest.fixture
def small():
    adata = synthetic_counts(120, 30, n_batches=2, n_proteins=4)
    CiteVAE.setup_anndata(adata, batch_key="batch", **{KEY: "protein"})
    return adata


def trained(adata, **options):
    model = CiteVAE(adata, n_hidden=16, n_latent=3, **options)
    model.train(max_steps=30, enable_progress_bar=False)
    return model


@pytest.mark.slow
class TestAgainstTruth:
    def test_foreground_is_told_from_background_and_probabilities_hold(self, model, truth):
        there = truth.obsm["protein_foreground"].to_numpy().astype(bool)
        seen = model.adata.obsm["protein"].notna().to_numpy()
        given_counts = model.get_protein_foreground_probability(key_added=None).to_numpy()
        assert roc_auc_score(there[seen], given_counts[seen]) > 0.98
        # Counts say more than the state alone, and nothing where nothing was counted.
        of_state = model.get_protein_foreground_probability(given="state", key_added=None).to_numpy()
        assert roc_auc_score(there[seen], of_state[seen]) < 0.97
        assert roc_auc_score(there[~seen], of_state[~seen]) > 0.85
        np.testing.assert_array_equal(given_counts[~seen], of_state[~seen])
        for low in (0.0, 0.25, 0.5, 0.75):
            inside = seen & (given_counts >= low) & (given_counts < low + 0.25)
            assert there[inside].mean() == pytest.approx(given_counts[inside].mean(), abs=0.07)

    def test_denoised_proteins_are_nearer_to_expected_counts_than_what_was_counted(self, model, truth):
        seen = model.adata.obsm["protein"].notna().to_numpy()
        mean, counts = truth.obsm["protein_mean"].to_numpy(), truth.obsm["protein"].to_numpy()

        def error(values):
            return np.square(np.log1p(values[seen]) - np.log1p(mean[seen])).mean()

        options = {"include_background": True, "key_added": None}
        assert error(model.get_protein_expression(given="counts", **options).to_numpy()) < 0.8 * error(counts)

    def test_background_is_taken_off(self, model, truth):
        seen = model.adata.obsm["protein"].notna().to_numpy()
        there = truth.obsm["protein_foreground"].to_numpy().astype(bool)
        expression = model.get_protein_expression(given="counts", key_added=None).to_numpy()
        mean = truth.obsm["protein_mean"].to_numpy()
        assert expression[seen & ~there].sum() < 0.25 * mean[seen & ~there].sum()
        assert expression[seen & there].sum() == pytest.approx(mean[seen & there].sum(), rel=0.1)

    def test_hidden_proteins_are_predicted(self, model, truth):
        there = (truth.obs["batch"] == "batch_1").to_numpy()
        predicted = model.get_protein_expression(indices=there, include_background=True, key_added=None)
        counts = truth.obsm["protein"][there]
        # The mean of a type is all that can be known; half of the cells of a type that is shuffled would give zero.
        for name in HIDDEN:
            by_type = truth.obsm["protein"].groupby(truth.obs["cell_type"], observed=True)[name].transform("mean")
            best = spearmanr(by_type[there], counts[name]).statistic
            assert spearmanr(predicted[name], counts[name]).statistic > 0.85 * best

    def test_draws_have_the_distribution_of_what_was_counted(self, model, truth):
        draws = model.posterior_predictive_proteins(n_samples=20, seed=1)
        assert draws.shape == (20, 1500, 9)
        assert (draws == np.rint(draws)).all()
        seen = model.adata.obsm["protein"].notna().to_numpy()
        for protein in range(9):
            counts = truth.obsm["protein"].to_numpy()[seen[:, protein], protein]
            drawn = draws[:, seen[:, protein], protein]
            assert np.log1p(drawn).mean() == pytest.approx(np.log1p(counts).mean(), abs=0.1)
            assert np.log1p(drawn).std() == pytest.approx(np.log1p(counts).std(), abs=0.15)

    def test_evidence_is_above_the_elbo_and_of_both(self, model):
        result = evidence(model, n_samples=200).to_frame()
        assert result["log_evidence"].mean() > result["elbo"].mean()
        held_out = model.validation_indices
        assert result["log_evidence"].mean() == pytest.approx(model.get_marginal_ll(indices=held_out), abs=0.5)
        assert result["elbo"].mean() == pytest.approx(model.get_elbo(indices=held_out), abs=0.5)


def test_a_protein_that_a_batch_lacks_is_decoded_where_it_was_measured(model):
    there = np.flatnonzero(model.adata.obs["batch"] == "batch_1")[:20]
    options = {"indices": there, "key_added": None, "n_samples": 1}
    own, other = (model.get_protein_expression(transform_batch=batch, **options) for batch in ("batch_1", "batch_0"))
    observed = model.get_protein_expression(**options)
    pd.testing.assert_frame_equal(observed, own)
    pd.testing.assert_frame_equal(own[HIDDEN], other[HIDDEN])
    assert not np.allclose(own["protein_1"], other["protein_1"])
    both = model.get_protein_expression(transform_batch=["batch_0", "batch_1"], **options)
    np.testing.assert_allclose(both["protein_1"], (own["protein_1"] + other["protein_1"]) / 2, rtol=1e-5)
    pd.testing.assert_frame_equal(both[HIDDEN], other[HIDDEN])
    assert model.proteins_measured.loc["batch_1"].sum() == 6


def test_draws_of_a_protein_that_a_batch_lacks_are_as_where_it_was_measured():
    adata = synthetic_counts(90, 20, n_batches=3, n_proteins=3)
    batch = adata.obs["batch"].to_numpy()
    adata.obsm["protein"].loc[batch == "batch_2", ["protein_0", "protein_1"]] = np.nan
    with pytest.warns(UserWarning, match="not measured there"):
        CiteVAE.setup_anndata(adata, batch_key="batch", **{KEY: "protein"})
    model = trained(adata)
    with torch.no_grad():
        # A batch of its own for each count, and nonsense where none was learned.
        model.module.proteins.likelihood.log_background.copy_(torch.tensor([[0.0] * 3, [6.0] * 3, [12.0] * 3]))
    draws = model.posterior_predictive_proteins(n_samples=300, seed=1)
    expected = model.get_protein_expression(n_samples=100, include_background=True, key_added=None).to_numpy()
    lacking = batch == "batch_2"
    for cells, proteins in ((lacking, [0, 1]), (lacking, [2]), (~lacking, [0, 1, 2])):
        chosen = np.ix_(cells, proteins)
        assert draws[:, *chosen].mean() == pytest.approx(expected[chosen].mean(), rel=0.1)
    # One batch or the other each time, and the same one for both proteins.
    is_high = np.log1p(draws[:, lacking, :2]) > 4
    assert is_high.mean() == pytest.approx(0.5, abs=0.05)
    assert (is_high[..., 0] == is_high[..., 1]).mean() > 0.95


def test_results_are_written_with_provenance_and_survive_h5ad(small, tmp_path):
    model = trained(small)
    latent, genes = model.get_latent_representation(), model.get_normalized_expression()
    proteins, foreground = model.get_protein_expression(), model.get_protein_foreground_probability()
    np.testing.assert_allclose(genes.sum(1), 1, rtol=1e-4)
    small.write_h5ad(tmp_path / "cells.h5ad")
    back = ad.read_h5ad(tmp_path / "cells.h5ad")
    np.testing.assert_array_equal(back.obsm["X_scvae"], latent)
    pd.testing.assert_frame_equal(back.obsm["scvae_protein"], proteins, check_names=False)
    pd.testing.assert_frame_equal(back.obsm["scvae_protein_foreground"], foreground, check_names=False)
    results = json.loads(back.uns["scvae_ext"])["results"]
    assert results['obsm["scvae_protein"]']["model"] == "CiteVAE"
    assert results['obsm["scvae_protein"]']["arguments"]["include_background"] is False


def test_order_names_and_copies_do_not_matter(small):
    model = trained(small)
    expected = model.get_protein_expression(key_added=None)
    chosen = model.get_protein_expression(indices=[5, 2], protein_list=["protein_3", "protein_1"], key_added=None)
    pd.testing.assert_frame_equal(chosen, expected.iloc[[5, 2]][["protein_3", "protein_1"]], rtol=1e-4)
    other = small[::-1, ::-1].copy()
    other.obsm["protein"] = other.obsm["protein"].iloc[:, ::-1]
    found = model.get_protein_expression(other, key_added=None)
    pd.testing.assert_frame_equal(found.loc[expected.index], expected, rtol=1e-4)
    assert model.get_elbo(other, n_samples=1) == pytest.approx(model.get_elbo(n_samples=1), abs=1.0)


def test_a_change_of_proteins_in_place_is_seen(small):
    model = trained(small)
    before = model.get_latent_representation(key_added=None)
    small.obsm["protein"].iloc[3] += 200
    after = model.get_latent_representation(key_added=None)
    assert not np.allclose(before[3], after[3])
    np.testing.assert_array_equal(np.delete(before, 3, 0), np.delete(after, 3, 0))


def test_scores_are_those_of_genes_and_of_the_proteins_that_were_measured(small):
    there = (small.obs["batch"] == "batch_1").to_numpy()
    small.obsm["protein"].loc[there, "protein_2"] = np.nan
    with pytest.warns(UserWarning, match="not measured there"):
        CiteVAE.setup_anndata(small, batch_key="batch", **{KEY: "protein"})
    model = trained(small)
    scores = (model.get_elbo, model.get_reconstruction_error, model.get_marginal_ll)
    before = [score(return_mean=False) for score in scores]
    # Nobody has seen what was not measured, and the encoder does not see it either.
    small.obsm["protein"].loc[there, "protein_2"] = 7
    for score, values in zip(scores, before, strict=True):
        np.testing.assert_array_equal(score(return_mean=False), values)
        assert score() == pytest.approx(values.mean())
    chosen = np.flatnonzero(there)[[7, 2]]
    np.testing.assert_allclose(model.get_marginal_ll(indices=chosen, return_mean=False), before[2][chosen], atol=0.5)
    small.obsm["protein"].loc[there, "protein_1"] = 5000
    for score, values, sign in zip(scores, before, (-1, 1, -1), strict=True):
        change = sign * (score(return_mean=False) - values)
        assert (change[there] > 1).all()


def test_it_is_saved_and_loaded(small, tmp_path):
    model = trained(small)
    model.save(tmp_path / "model")
    loaded = CiteVAE.load(tmp_path / "model", small)
    pd.testing.assert_frame_equal(
        loaded.get_protein_expression(key_added=None), model.get_protein_expression(key_added=None)
    )
    assert loaded.protein_names == model.protein_names
    with pytest.raises(ValueError, match="holds a CiteVAE, not a SCVAE"):
        SCVAE.load(tmp_path / "model")


def test_cells_on_disk_give_the_same_as_in_memory(small, tmp_path):
    expected = trained(small)
    small.write_h5ad(tmp_path / "cells.h5ad")
    backed = ad.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    np.testing.assert_allclose(
        expected.get_protein_expression(backed, key_added=None),
        expected.get_protein_expression(key_added=None),
        rtol=1e-4,
    )
    model = CiteVAE(backed, n_hidden=16, n_latent=3)
    model.train(max_steps=30, enable_progress_bar=False)
    assert model.get_elbo() == pytest.approx(expected.get_elbo(), abs=15)
    written = model.get_normalized_expression(out=tmp_path / "expression.h5ad")
    np.testing.assert_allclose(ad.read_h5ad(written).X.sum(1), 1, rtol=1e-4)


@pytest.mark.parametrize("kind", ["lazy h5ad", "lazy zarr"])
def test_a_lazy_anndata_gives_the_same_as_in_memory(small, kind, tmp_path):
    expected = trained(small)
    proteins = expected.get_protein_expression(key_added=None)
    latent = expected.get_latent_representation(key_added=None)
    with stored(small, kind, tmp_path) as lazy:
        pd.testing.assert_frame_equal(expected.get_protein_expression(lazy, key_added=None), proteins, rtol=1e-4)
        found = expected.get_latent_representation(lazy, key_added=None)
        np.testing.assert_allclose(found, latent, rtol=1e-4, atol=1e-5)
        assert np.isfinite(trained(lazy).get_elbo())


@pytest.mark.parametrize("kind", [np.asarray, sp.csr_matrix, lambda frame: frame.astype("Int64")])
def test_every_kind_of_matrix_gives_the_same_model(small, kind):
    expected = trained(small.copy()).get_protein_expression(key_added=None)
    small.obsm["protein"] = kind(small.obsm["protein"])
    CiteVAE.setup_anndata(small, batch_key="batch", **{KEY: "protein"})
    np.testing.assert_array_equal(trained(small).get_protein_expression(key_added=None), expected)


def test_history_tells_proteins_from_genes_and_the_same_seed_the_same_weights(small):
    models = [trained(small.copy()), trained(small.copy())]
    assert "reconstruction_proteins_validation" in models[0].history
    pd.testing.assert_frame_equal(
        models[0].history.drop(columns="seconds"), models[1].history.drop(columns="seconds"), check_exact=True
    )


def test_the_posterior_can_be_asked_whether_it_collapsed(small):
    assert posterior_collapse(trained(small)).n_cells == 120


def test_genes_are_compared_between_groups(small):
    frame = trained(small).differential_expression(groupby="cell_type", group1="type_0", group2="type_1")
    assert len(frame) == 30


@pytest.mark.parametrize("options", [{"gene_likelihood": "zinb"}, {"prior": "mixture"}, {"encode_covariates": True}])
def test_options_train(small, options):
    assert np.isfinite(trained(small, **options).get_elbo())


def test_genes_alone_can_be_modelled_on_the_same_set_up(small):
    model = SCVAE(small, n_hidden=16, n_latent=3)
    assert model.registry.proteins is None
    assert model.module.proteins is None
    model.train(max_steps=10, enable_progress_bar=False)
    assert np.isfinite(model.get_elbo())


@pytest.mark.usefixtures("unchecked")
def test_mistakes_say_what_to_type_instead(small):
    model = trained(small)
    genes_alone = synthetic_counts(50, 10)
    SCVAE.setup_anndata(genes_alone)
    cases = [
        (lambda: CiteVAE(genes_alone), ValueError, "call CiteVAE.setup_anndata"),
        (lambda: CiteVAE.setup_anndata(genes_alone), ValueError, "adata.obsm has 'latent'"),
        (lambda: CiteVAE(small, gene_likelihood="normal"), ValueError, "do not add up"),
        (lambda: CiteVAE(small, prior="vamp"), ValueError, "knows no proteins"),
        (lambda: CiteVAE(small, n_latents=3), TypeError, "n_latent"),
        (lambda: model.get_protein_expression(protein_list=["protein_9"]), ValueError, "the model's proteins"),
        (lambda: model.get_protein_expression(protein_list="protein_1"), ValueError, r"pass a list, \['protein_1'\]"),
        (lambda: model.get_protein_expression(given="cells"), ValueError, 'use "counts" or "state"'),
        (
            lambda: model.get_protein_foreground_probability(transform_batch="batch_0"),
            ValueError,
            "another batch than the one",
        ),
        (lambda: model.get_normalized_expression(interval=0.9), ValueError, "train an SCVAE on the genes"),
        (lambda: zero_inflation(model), TypeError, "train an SCVAE on the genes"),
        (lambda: model.get_protein_expression(key_added="protein"), ValueError, r"replace adata.obsm\['protein'\]"),
        (lambda: model.get_protein_foreground_probability(key_added="protein"), ValueError, "which the model reads"),
        (lambda: model.get_latent_representation(key_added="protein"), ValueError, "which the model reads"),
        (lambda: CiteVAE(small).get_protein_expression(), RuntimeError, "has not been trained"),
    ]
    for call, error, message in cases:
        with pytest.raises(error, match=message), warnings.catch_warnings():
            call()
