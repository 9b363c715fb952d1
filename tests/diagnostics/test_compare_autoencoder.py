import math

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from interrupts import interrupt_every_training

from scvae_ext import SCVAE, Autoencoder, datasets
from scvae_ext.diagnostics import AutoencoderComparison, Measured, compare_autoencoder
from scvae_ext.diagnostics._autoencoder_questions import choose_cells, judge
from scvae_ext.diagnostics._other_half import LEVELS
from scvae_ext.diagnostics.autoencoder_comparison import MEASURES

TRAINING = {"accelerator": "cpu", "enable_progress_bar": False}


def make(**measures):
    """Make a result of differences and their standard errors."""
    measured = {
        name: Measured(1.0 + difference, 0.1, 1.0, 0.2, difference, error, 0.5)
        for name, (difference, error) in measures.items()
    }
    coverage = pd.DataFrame({"vae": LEVELS, "autoencoder": LEVELS**2}, index=LEVELS)
    errors = {"vae": 0.01, "autoencoder": 0.02}
    return AutoencoderComparison(
        measured, coverage, errors, {}, SCVAE.__new__(SCVAE), Autoencoder.__new__(Autoencoder), 60, 30
    )


ALL = dict.fromkeys(MEASURES, (0.0, 0.1))


def test_paired_differences_have_the_standard_error_of_differences():
    shared = np.random.default_rng(0).normal(0, 100, 50)
    alternating = np.where(np.arange(50) % 2, 1.0, -1.0)
    found = Measured.paired(shared + 3 + alternating, shared)
    assert found.difference == pytest.approx(3.0)
    assert found.difference_error == pytest.approx(1 / math.sqrt(49))
    assert found.vae_error == pytest.approx((shared + alternating).std(ddof=1) / math.sqrt(50))
    found = Measured.independent((0.7, 0.03), (0.9, 0.04), (0.5, 0.02))
    assert found.difference == pytest.approx(-0.2)
    assert found.difference_error == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("name", "difference", "winner"),
    [
        ("held_out_error", (0.3, 0.1), "autoencoder"),
        ("held_out_error", (-0.3, 0.1), "vae"),
        ("held_out_error", (-0.19, 0.1), None),
        ("half_correlation", (0.3, 0.1), "vae"),
        ("half_correlation", (-0.3, 0.1), "autoencoder"),
        ("generated_auc", (-0.3, 0.1), "vae"),
        ("generated_auc", (0.0, 0.0), None),
    ],
)
def test_the_rule_of_the_verdict(name, difference, winner):
    found = make(**ALL | {name: difference})
    assert found.winner(name) == winner
    words = MEASURES[name].words
    if winner is None:
        assert found.verdict.startswith("No difference beyond two standard errors in ")
    else:
        label = {"vae": "The VAE", "autoencoder": "The autoencoder"}[winner]
        assert found.verdict.startswith(f"{label} is better in {words}; no difference")
    assert found.to_frame().loc[name, "winner"] == (winner or "")


def test_what_each_is_better_at_is_said_of_both():
    found = make(**ALL | {"training_error": (1.0, 0.1), "half_deviance": (-1.0, 0.1)})
    assert found.verdict.startswith(
        "The VAE is better in prediction of held-out molecules (deviance); the autoencoder is better in reconstruction "
        "of training cells; no difference beyond two standard errors in reconstruction of held-out cells, "
    )
    text = str(found)
    assert "90% predictive intervals of the VAE hold 90.0% ± 1.0% of held-out counts." in text
    assert "The autoencoder states no uncertainty; " in text
    assert "60 held-out cells, 30 pairs of them" in text
    assert found.to_frame().shape == (9, 10)


@pytest.fixture(scope="module")
def adata():
    adata = datasets.synthetic_counts(n_cells=360, n_genes=30, n_types=3, n_latent=2, library_size=300)
    SCVAE.setup_anndata(adata)
    return adata


@pytest.fixture(scope="module")
def result(adata):
    return compare_autoencoder(
        adata, model_options={"n_hidden": 32, "n_latent": 4}, max_steps=250, n_samples=20, **TRAINING
    )


def test_both_are_trained_alike_on_cells_that_are_not_judged(result):
    vae, autoencoder = result.vae, result.autoencoder
    np.testing.assert_array_equal(vae.test_indices, autoencoder.test_indices)
    np.testing.assert_array_equal(vae.train_indices, autoencoder.train_indices)
    assert vae.history["step"].iloc[-1] == autoencoder.history["step"].iloc[-1] == 250
    assert vae.module.decoder.state_dict().keys() == autoencoder.module.decoder.state_dict().keys()
    assert isinstance(autoencoder, Autoencoder)
    assert result.n_cells == len(vae.test_indices) == 72
    assert result.n_pairs == 36
    assert {name: len(points) for name, points in result.made.items()} == dict.fromkeys(
        ("real", "vae", "autoencoder", "autoencoder_normal"), 72
    )


def test_measures_are_those_of_the_models(result):
    frame = result.to_frame()
    assert list(frame.index) == list(MEASURES)
    assert np.isfinite(frame.drop(columns=["reference", "reference_error", "winner"]).to_numpy(dtype=float)).all()
    assert frame.loc["held_out_error", "autoencoder"] == pytest.approx(
        result.autoencoder.get_reconstruction_error(indices=result.autoencoder.test_indices), rel=1e-5
    )
    # Cells of three types are predicted better than by the mean of all.
    assert (frame.loc["half_deviance", ["vae", "autoencoder"]] < 0.9 * frame.loc["half_deviance", "reference"]).all()
    assert (frame.loc["half_correlation", ["vae", "autoencoder"]] > 0.1).all()
    reference, error = frame.loc["generated_auc", ["reference", "reference_error"]]
    assert abs(reference - 0.5) < 3 * error < 0.3
    # The counts are overdispersed: noise of Poisson is too little.
    assert result.coverage.loc[0.9, "vae"] == pytest.approx(0.9, abs=0.06)
    assert result.coverage.loc[0.9, "autoencoder"] < result.coverage.loc[0.9, "vae"] - 0.03


@pytest.mark.slow
def test_a_broken_generator_is_caught(result):
    before = result.measures["generated_auc"]
    bias = next(
        module.linear.bias for module in result.vae.module.likelihood.modules() if hasattr(module, "residual_loadings")
    )
    kept = bias.detach().clone()
    cells = choose_cells(result.vae, 1000, 0)
    try:
        with torch.no_grad():
            bias.copy_(kept.flip(0))
        broken = judge(result.vae, result.autoencoder, cells, 5, 0)
    finally:
        with torch.no_grad():
            bias.copy_(kept)
    assert broken.measures["generated_auc"].vae > max(0.95, before.vae)
    assert broken.winner("generated_auc") != "vae"
    assert broken.winner("half_deviance") == "autoencoder"
    # The other model is what it was.
    assert broken.measures["held_out_error"].autoencoder == result.measures["held_out_error"].autoencoder


@pytest.mark.slow
def test_a_model_that_decodes_all_cells_alike_has_no_lines(result):
    cells = choose_cells(result.vae, 1000, 0)
    decoder = result.vae.module.decoder
    kept = {name: value.clone() for name, value in decoder.state_dict().items()}
    try:
        with torch.no_grad():
            for parameter in decoder.parameters():
                parameter.zero_()
        with pytest.warns(UserWarning, match="decoded alike .vae.*smoothness was not measured"):
            found = judge(result.vae, result.autoencoder, cells, 5, 0)
    finally:
        decoder.load_state_dict(kept)
    assert "detour" not in found.measures
    assert "On the line" not in str(found)
    assert found.measures["half_correlation"].vae == 0
    assert not found.to_frame().drop(columns=["reference", "reference_error"]).isna().any(axis=None)


def test_cells_are_matched_by_library_size_and_paired_within_batches():
    adata = datasets.synthetic_counts(n_cells=400, n_genes=10, n_batches=2)
    SCVAE.setup_anndata(adata, batch_key="batch")
    model = SCVAE(adata)
    model.train_indices, model.test_indices = np.arange(300), np.arange(300, 400)
    cells = choose_cells(model, 1000, 0)
    assert len(np.unique(cells.like_them)) == len(cells.held_out) == 100
    assert not set(cells.like_them) & set(cells.others)
    assert set(cells.like_them) | set(cells.others) == set(range(300))
    totals = adata.X.sum(1).A1
    assert np.abs(np.log(totals[cells.held_out] / totals[cells.like_them])).mean() < 0.1
    batch = adata.obs["batch"].to_numpy()
    assert (batch[cells.pairs[:, 0]] == batch[cells.pairs[:, 1]]).all()
    assert len(np.unique(cells.pairs)) == cells.pairs.size >= 98
    assert len(choose_cells(model, 60, 0).held_out) == 60


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"train_size": 0.9, "validation_size": 0.05}, ValueError, "leave 18 of 360 cells to compare on: at least 50"),
        ({"n_cells": 10}, ValueError, "n_cells=10 must be a whole number of at least 50"),
        ({"n_samples": 1}, ValueError, "n_samples=1 must be a whole number of at least 2"),
        ({"model_options": {"seed": 1}}, ValueError, "'seed', which is an argument of compare_autoencoder itself"),
        ({"model_options": {"gene_likelihood": "normal"}}, ValueError, "the comparison needs counts: use one of"),
        ({"model_options": {"n_latents": 3}}, TypeError, "n_latents"),
    ],
)
def test_mistakes(adata, options, error, message):
    with pytest.raises(error, match=message):
        compare_autoencoder(adata, **options)


def test_one_gene_and_an_anndata_that_was_not_set_up():
    adata = AnnData(np.full((400, 1), 3, dtype=np.float32))
    SCVAE.setup_anndata(adata)
    with pytest.raises(ValueError, match="has 1 genes: at least 3 are needed"):
        compare_autoencoder(adata)
    with pytest.raises(Exception, match="setup_anndata"):
        compare_autoencoder(AnnData(np.ones((400, 5), dtype=np.float32)))


def test_an_interrupt_ends_the_comparison(monkeypatch):
    adata = datasets.synthetic_counts(400, 20)
    SCVAE.setup_anndata(adata)
    trainings = interrupt_every_training(monkeypatch)
    options = {"max_steps": 500, "accelerator": "cpu", "enable_progress_bar": False}
    with pytest.raises(KeyboardInterrupt):
        compare_autoencoder(adata, **options)
    assert len(trainings) == 1
