import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from stores import stored

from scvae_ext import SCVAE, SemiSupervisedVAE
from scvae_ext.datasets import synthetic_counts
from scvae_ext.diagnostics import (
    conditional_independence,
    evidence,
    gradient_estimators,
    posterior_collapse,
    posterior_predictive_check,
)


def hide(adata, n_known, seed=0):
    """Leave the labels of so many cells of each type."""
    types = adata.obs["cell_type"].astype(str)
    random = np.random.default_rng(seed)
    chosen = np.concatenate([random.choice(np.flatnonzero(types == name), n_known, False) for name in types.unique()])
    known = np.zeros(adata.n_obs, dtype=bool)
    known[chosen] = True
    adata.obs["known"] = types.where(known)
    return known


@pytest.fixture(scope="module")
def truth():
    # Few counts of a cell, so that one in ten is of a type that its counts do not tell.
    adata = synthetic_counts(1500, 100, n_types=4, n_batches=2, library_size=80, seed=3)
    hide(adata, 40)
    return adata


@pytest.fixture(scope="module")
def model(truth):
    adata = truth.copy()
    SemiSupervisedVAE.setup_anndata(adata, labels_key="known", batch_key="batch")
    model = SemiSupervisedVAE(adata, n_hidden=64)
    model.train(enable_progress_bar=False)
    return model


def right(probabilities, adata):
    """Log-probability of the true type, stated probability of the predicted one, and whether it is right."""
    types = adata.obs["cell_type"].astype(str)
    column = probabilities.columns.get_indexer(types)
    values = probabilities.to_numpy()
    of_truth = values[np.arange(len(types)), column]
    return np.log(of_truth), values.max(axis=1), values.argmax(axis=1) == column


@pytest.fixture
def small():
    adata = synthetic_counts(120, 30, n_types=3, n_batches=2)
    hide(adata, 6)
    SemiSupervisedVAE.setup_anndata(adata, labels_key="known", batch_key="batch")
    return adata


def trained(adata, **options):
    model = SemiSupervisedVAE(adata, n_hidden=16, n_latent=3, **options)
    model.train(max_steps=30, enable_progress_bar=False)
    return model


@pytest.mark.slow
class TestAgainstTruth:
    def test_labels_are_better_predicted_than_by_a_classifier_of_the_labelled_cells(self, model, truth):
        from sklearn.linear_model import LogisticRegression

        counts = truth.X.toarray()
        values = np.log1p(counts / counts.sum(axis=1, keepdims=True) * 1e4)
        known = truth.obs["known"].notna().to_numpy()
        classifier = LogisticRegression(max_iter=2000).fit(values[known], truth.obs["known"][known])
        by_classifier = pd.DataFrame(classifier.predict_proba(values[~known]), columns=classifier.classes_)
        ours = model.predict(soft=True, key_added=None)[~known]
        log_prob, _, is_right = right(ours, truth[~known])
        log_prob_there, _, is_right_there = right(by_classifier, truth[~known])
        assert is_right.mean() > is_right_there.mean() + 0.015  # 0.91 and 0.87
        assert log_prob.mean() > log_prob_there.mean() + 0.1  # -0.25 and -0.49

    def test_probabilities_are_how_often_the_label_is_right(self, model, truth):
        hidden = truth.obs["known"].isna().to_numpy()
        _, stated, is_right = right(model.predict(soft=True, key_added=None)[hidden], truth[hidden])
        assert abs(stated.mean() - is_right.mean()) < 0.03
        unsure = stated < 0.8
        assert unsure.sum() > 100
        assert abs(stated[unsure].mean() - is_right[unsure].mean()) < 0.1

    def test_labels_that_do_not_follow_from_counts_make_the_model_less_sure(self, truth):
        adata = truth.copy()
        random = np.random.default_rng(0)
        types = adata.obs["cell_type"].astype(str).to_numpy()
        types = np.where(random.random(len(types)) < 0.3, random.permutation(types), types)
        hidden = truth.obs["known"].isna().to_numpy()
        adata.obs["cell_type"], adata.obs["known"] = types, np.where(hidden, "Unknown", types)
        SemiSupervisedVAE.setup_anndata(adata, labels_key="known", batch_key="batch")
        model = SemiSupervisedVAE(adata, n_hidden=64)
        model.train(max_steps=1000, enable_progress_bar=False)
        figures = [
            right(model.predict(soft=True, key_added=None, calibrated=calibrated)[hidden], adata[hidden])
            for calibrated in (False, True)
        ]
        (own, own_stated, is_right), (log_prob, stated, _) = figures
        assert log_prob.mean() > own.mean() + 0.05
        assert stated.mean() < own_stated.mean()
        assert abs(stated.mean() - is_right.mean()) < 0.08

    def test_the_latent_space_tells_types_apart_and_not_batches(self, model, truth):
        from sklearn.neighbors import KNeighborsClassifier

        latent = model.get_latent_representation(key_added=None)
        scores = {}
        for key in ("cell_type", "batch"):
            names = truth.obs[key].astype(str)
            classifier = KNeighborsClassifier(15).fit(latent[::2], names[::2])
            scores[key] = classifier.score(latent[1::2], names[1::2])
        assert scores["cell_type"] > 0.85
        assert scores["batch"] < 0.6

    def test_what_is_seen_of_labels_while_training_is_of_held_out_cells_too(self, model):
        last = model.history.iloc[-1]
        assert -0.3 < last["reconstruction_labels_validation"] < 0
        assert model.history["label_weighted_elbo_validation"].iloc[-1] < last["elbo_validation"]


def test_predictions_are_written_with_their_provenance_and_survive_a_file(small, tmp_path):
    model = trained(small)
    labels = model.predict()
    probabilities = model.predict(soft=True)
    assert list(probabilities.columns) == model.label_names == ["type_0", "type_1", "type_2"]
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
    assert (labels == probabilities.idxmax(axis=1)).all()
    pd.testing.assert_series_equal(small.obs["scvae_label"], labels)
    np.testing.assert_array_equal(small.obs["scvae_label_probability"], probabilities.max(axis=1))
    pd.testing.assert_frame_equal(small.obsm["scvae_label"], probabilities)
    small.write_h5ad(tmp_path / "cells.h5ad")
    back = ad.read_h5ad(tmp_path / "cells.h5ad")
    pd.testing.assert_series_equal(back.obs["scvae_label"], labels)
    assert '"n_samples": 50' in back.uns["scvae_ext"]


def test_a_subset_is_in_the_order_asked_for_and_written_only_where_asked(small):
    model = trained(small)
    every = model.predict(soft=True, key_added=None)
    chosen = small.obs_names[[7, 3, 50]]
    np.testing.assert_allclose(model.predict(indices=chosen, soft=True), every.loc[chosen], rtol=1e-4, atol=1e-6)
    labels = model.predict(indices=chosen)
    assert list(labels.index) == list(chosen)
    assert "scvae_label" not in small.obs
    model.predict(indices=chosen, write_subset=True)
    assert small.obs["scvae_label"].notna().sum() == 3
    assert (small.obs.loc[chosen, "scvae_label"] == labels).all()


def test_other_cells_need_no_labels_and_genes_are_matched_by_name(small):
    model = trained(small)
    expected = model.predict(soft=True, key_added=None)
    other = small[:, ::-1].copy()
    del other.obs["known"]
    np.testing.assert_allclose(model.predict(other, soft=True), expected, rtol=1e-4, atol=1e-6)
    assert "scvae_label" in other.obsm
    # What is predicted is by the counts alone, and a label does not change it.
    other.obs["known"] = "type_1"
    np.testing.assert_allclose(model.predict(other, soft=True), expected, rtol=1e-4, atol=1e-6)


def test_a_known_label_is_part_of_the_evidence(small):
    model = trained(small)
    small.obs["known"] = "Unknown"
    without = model.get_elbo(return_mean=False, n_samples=500)
    small.obs["known"] = small.obs["cell_type"].astype(str)
    with_label = model.get_elbo(return_mean=False, n_samples=500)
    probabilities = model.predict(soft=True, key_added=None, n_samples=2000, calibrated=False)
    log_prob, _, _ = right(probabilities, small)
    # By Jensen's inequality the mean of log p(y | z) is at most the log of the mean.
    assert (with_label - without <= log_prob + 0.02).all()
    assert abs((with_label - without - log_prob).mean()) < 0.3


def test_scores_are_those_of_counts_and_label_and_of_counts_alone_without_one(small):
    model = trained(small)
    bare = small.copy()
    del bare.obs["known"]
    unknown = small.obs["known"].isna().to_numpy()
    elbo, error = (
        [score(adata, return_mean=False) for adata in (small, bare)]
        for score in (model.get_elbo, model.get_reconstruction_error)
    )
    np.testing.assert_array_equal(elbo[0][unknown], elbo[1][unknown])
    assert (elbo[0] < elbo[1])[~unknown].all()
    np.testing.assert_allclose(elbo[0] - elbo[1], error[1] - error[0], atol=1e-4)
    # The evidence of counts with each of the labels adds up to that of the counts.
    options = {"n_mc_samples": 20, "indices": [50, 3, 8]}
    alone = model.get_marginal_ll(bare, return_mean=False, **options)
    with_labels = []
    for name in model.label_names:
        bare.obs["known"] = name
        with_labels.append(model.get_marginal_ll(bare, return_mean=False, **options))
    np.testing.assert_allclose(np.logaddexp.reduce(with_labels), alone, atol=1e-4)
    assert model.get_marginal_ll(bare, **options) == pytest.approx(with_labels[-1].mean())


def test_a_saved_model_predicts_the_same(small, tmp_path):
    model = trained(small, n_components_per_label=2)
    expected = model.predict(soft=True, key_added=None)
    model.save(tmp_path / "model")
    loaded = SemiSupervisedVAE.load(tmp_path / "model", small)
    np.testing.assert_array_equal(loaded.predict(soft=True, key_added=None), expected)
    assert loaded.module.prior.n_per_label == 2
    assert loaded.label_calibration == model.label_calibration
    with pytest.raises(ValueError, match=r"SemiSupervisedVAE\.load"):
        SCVAE.load(tmp_path / "model")


@pytest.mark.parametrize("kind", ["backed", "zarr", "lazy h5ad"])
def test_stored_cells_give_the_same_labels(small, kind, tmp_path):
    small.obs["known"] = small.obs["known"].astype("category")
    SemiSupervisedVAE.setup_anndata(small, labels_key="known", batch_key="batch")
    model = trained(small)
    expected = model.predict(soft=True, key_added=None)
    with stored(small, kind, tmp_path) as there:
        found = model.predict(there, soft=True, key_added=None)
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)
        assert np.isfinite(trained(there).get_elbo())


def test_the_same_seed_gives_the_same_weights_and_training_goes_on(small):
    models = [trained(small.copy(), n_components_per_label=2) for _ in range(2)]
    pd.testing.assert_frame_equal(
        models[0].history.drop(columns="seconds"), models[1].history.drop(columns="seconds"), check_exact=True
    )
    assert models[0].history["step"].iloc[-1] == 45  # half as long again with labels
    models[0].train(max_steps=20, enable_progress_bar=False)
    assert models[0].history["step"].iloc[-1] == 65


def test_an_interrupted_training_leaves_a_usable_model(small):
    from lightning.pytorch.callbacks import Callback

    class Interrupt(Callback):
        def on_train_batch_end(self, trainer, *_):
            raise KeyboardInterrupt

    model = SemiSupervisedVAE(small, n_hidden=16, n_latent=3)
    model.train(max_steps=200, enable_progress_bar=False, callbacks=Interrupt())
    assert model.is_trained
    np.testing.assert_allclose(model.predict(soft=True).sum(axis=1), 1, rtol=1e-5)
    model.train(max_steps=10, enable_progress_bar=False)
    assert np.isfinite(model.get_elbo())


def test_a_training_that_failed_can_be_started_again(small):
    from lightning.pytorch.callbacks import Callback

    class Fail(Callback):
        def on_train_batch_end(self, *_):
            raise ZeroDivisionError("of the test")

    model = SemiSupervisedVAE(small, n_hidden=16, n_latent=3)
    with pytest.raises(ZeroDivisionError):
        model.train(max_steps=200, enable_progress_bar=False, callbacks=Fail())
    assert not model.is_trained
    assert model.module.prior is not None
    model.train(max_steps=20, enable_progress_bar=False)
    assert "reconstruction_labels_validation" in model.history


@pytest.mark.parametrize(
    "options",
    [
        {"gene_likelihood": "zinb"},
        {"gene_likelihood": "normal"},
        {"latent_distribution": "ln"},
        {"use_observed_lib_size": False},
        {"encode_covariates": True, "dispersion": "gene-batch"},
        {"label_weight": 1},
    ],
)
def test_options_train(small, options):
    model = trained(small, **options)
    assert np.isfinite(model.get_elbo())
    assert np.isfinite(model.predict(soft=True)).all(axis=None)


def test_objectives_and_penalties_train(small):
    for options, train in (
        ({}, {"batch_penalty": 10.0}),
        ({"label_weight": 1.0}, {"objective": "iwae", "n_samples": 3}),
    ):
        model = SemiSupervisedVAE(small.copy(), n_hidden=16, n_latent=3, **options)
        model.train(max_steps=20, enable_progress_bar=False, **train)
        assert np.isfinite(model.get_elbo())


def test_what_scvae_answers_is_answered_too(small):
    model = trained(small)
    assert model.get_latent_representation().shape == (120, 3)
    assert model.get_normalized_expression().shape == (120, 30)
    frame = model.differential_expression(groupby="cell_type", group1="type_0", group2="type_1")
    assert len(frame) == 30
    assert model.counterfactual({"batch": "batch_1"}).to_frame().shape[0] > 0
    assert "entropy" in model.get_cell_uncertainty()
    assert len(model.get_novelty(n_replicates=10, n_samples=1).to_frame()) == 120
    assert model.posterior_predictive_sample().shape[0] == 120
    assert posterior_collapse(model).n_cells == 120
    assert len(evidence(model, n_samples=20).to_frame()) > 0
    assert len(posterior_predictive_check(model, n_samples=40).to_frame()) > 0
    assert len(conditional_independence(model, indices=np.arange(120), n_samples=300).to_frame()) > 0


def test_the_set_up_serves_scvae_as_well(small):
    model = SCVAE(small, n_hidden=16, n_latent=3, dispersion="gene-label")
    model.train(max_steps=10, enable_progress_bar=False)
    assert model.module.prior is None
    assert np.isfinite(model.get_elbo())


def apart(model):
    """Put the labels into corners of the latent space, so that a state tells its label."""
    with torch.no_grad():
        model.module.prior.mean.copy_(8 * torch.eye(3))
    return model


def test_a_new_cell_from_the_prior_has_the_label_of_its_state(small):
    model = apart(trained(small))
    cells = model.generate(200, seed=1)
    corner = np.array(model.label_names)[cells.obsm["X_scvae"].argmax(axis=1)]
    np.testing.assert_array_equal(cells.obs["known"].astype(str), corner)
    like_cells = model.generate(50, like="cells")
    lent = small.obs.loc[like_cells.obs["scvae_source"], "known"].fillna("Unknown")
    np.testing.assert_array_equal(like_cells.obs["known"].astype(str), lent)


def test_novelty_is_that_of_the_counts_whatever_the_label(small):
    model = apart(trained(small))
    options = {"n_replicates": 10, "n_samples": 1, "key_added": None}
    expected = model.get_novelty(**options).to_frame()
    small.obs["known"] = np.roll(small.obs["known"].to_numpy(), 7)
    pd.testing.assert_frame_equal(model.get_novelty(**options).to_frame(), expected)


def test_a_label_without_a_training_cell_is_warned_of(small):
    small.obs.iloc[-1, small.obs.columns.get_loc("known")] = "rare"
    SemiSupervisedVAE.setup_anndata(small, labels_key="known", batch_key="batch")
    model = SemiSupervisedVAE(small, n_hidden=16, n_latent=3)
    with pytest.warns(UserWarning, match="No training cell has the label 'rare'"):
        model.train(max_steps=10, shuffle_set_split=False, enable_progress_bar=False)
    assert np.isfinite(model.predict(soft=True)).all(axis=None)


@pytest.mark.usefixtures("unchecked")
def test_mistakes_say_what_to_type_instead(small):
    model = trained(small)
    without = synthetic_counts(50, 10)
    SCVAE.setup_anndata(without, labels_key="cell_type")
    cases = [
        (lambda: SemiSupervisedVAE(without), ValueError, "call SemiSupervisedVAE.setup_anndata"),
        (lambda: SemiSupervisedVAE(small, dispersion="gene-label"), ValueError, "some are not known"),
        (lambda: SemiSupervisedVAE(small, label_weight=0), ValueError, "label_weight=0 must be a positive number"),
        (lambda: SemiSupervisedVAE(small, n_components_per_label=0), ValueError, "n_components_per_label=0"),
        (lambda: SemiSupervisedVAE(small, prior="vamp"), TypeError, "prior"),
        (lambda: model.train(free_bits=0.1), ValueError, "leave free_bits at 0"),
        (lambda: model.train(objective="iwae", n_samples=2), ValueError, "label_weight=1"),
        (lambda: model.predict(soft="yes"), ValueError, "soft='yes'"),
        (lambda: model.predict(key_added="known"), ValueError, "would be taken for known ones"),
        (lambda: model.predict(key_added="batch"), ValueError, r"replace adata.obs\['batch'\]"),
        (lambda: gradient_estimators(model), TypeError, "on labels as well: train an SCVAE"),
        (lambda: model.predict(n_samples=0), ValueError, "n_samples=0"),
        (lambda: SemiSupervisedVAE(small).predict(), RuntimeError, "has not been trained"),
    ]
    for call, error, message in cases:
        with pytest.raises(error, match=message), warnings.catch_warnings():
            call()
    del small.obs["known"]
    with pytest.raises(ValueError, match=r"has a label any more in adata\.obs\['known'\]"):
        model.train(max_steps=3)
