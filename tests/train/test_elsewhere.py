"""Training on a device that is not the CPU: see :mod:`elsewhere`."""

import numpy as np
import pytest
import torch
from elsewhere import DEVICE, elsewhere, strategy
from lightning.pytorch import Callback

import scvae_ext as sv
from scvae_ext.data import align, read_registry, setup_anndata
from scvae_ext.train.data_module import CellDataModule
from scvae_ext.train.device_cells import StreamedCells, load_cells

BATCH = {"batch_key": "batch"}
PROTEINS = {"protein_expression_obsm_key": "protein", **BATCH}
PEAKS = {"accessibility_obsm_key": "accessibility", **BATCH}
LABELS = {"labels_key": "cell_type", **BATCH}
MIXED = {"categorical_covariate_keys": ["donor"], "continuous_covariate_keys": ["age"], "size_factor_key": "size"}
# What one update waits for, besides the block: how many counts of proteins are not zero.
WAITS = {"proteins": ["nonzero"]}
# What one update sends: the number of peaks of each cell, which the host has to know as well.
SENT = {"peaks": ["_to_copy"]}
# Batch normalisation takes a shift of the latent out again: its gradient is a rounding error, and its mean follows it.
SHIFTS = {"autoencoder": "latent.bias", "free bits": "encoder.mean.bias"}
MEAN = "decoder.layers.0.batch_norm.running_mean"
# Class, set-up, options of the model, options of training.
CASES = {
    "nb": (sv.SCVAE, BATCH, {}, {}),
    "zinb": (sv.SCVAE, BATCH, {"gene_likelihood": "zinb"}, {}),
    "poisson": (sv.SCVAE, BATCH, {"gene_likelihood": "poisson"}, {}),
    "normal": (sv.SCVAE, BATCH, {"gene_likelihood": "normal"}, {}),
    "dispersion of cells": (sv.SCVAE, BATCH, {"dispersion": "gene-cell"}, {}),
    "dispersion of labels": (sv.SCVAE, LABELS, {"dispersion": "gene-label"}, {}),
    "zero inflation of genes": (
        sv.SCVAE,
        BATCH,
        {"gene_likelihood": "zinb", "zero_inflation": "gene", "zero_inflation_prior": (1.0, 9.0)},
        {},
    ),
    "latent library": (sv.SCVAE, BATCH, {"use_observed_lib_size": False}, {}),
    "simplex": (sv.SCVAE, BATCH, {"latent_distribution": "ln"}, {}),
    "covariates": (sv.SCVAE, MIXED, {"encode_covariates": True}, {}),
    "embedding": (sv.SCVAE, BATCH, {"batch_representation": "embedding"}, {}),
    "layer norm": (sv.SCVAE, BATCH, {"use_batch_norm": "none", "use_layer_norm": "both"}, {}),
    "mixture": (sv.SCVAE, BATCH, {"prior": "mixture", "n_prior_components": 3}, {}),
    "residual": (sv.SCVAE, BATCH, {"residual_rank": 2}, {}),
    "linear": (sv.SCVAE, BATCH, {"decoder": "linear"}, {}),
    "importance weights": (sv.SCVAE, BATCH, {}, {"objective": "iwae", "n_samples": 4}),
    "penalty on batches": (sv.SCVAE, BATCH, {}, {"batch_penalty": 1.0}),
    "free bits": (sv.SCVAE, BATCH, {}, {"free_bits": 0.1}),
    "proteins": (sv.CiteVAE, PROTEINS, {}, {}),
    "peaks": (sv.MultiomeVAE, PEAKS, {}, {}),
    "labels": (sv.SemiSupervisedVAE, LABELS, {}, {}),
    "autoencoder": (sv.Autoencoder, BATCH, {}, {}),
}


@pytest.fixture(scope="module")
def cells():
    adata = sv.datasets.synthetic_counts(
        260, 40, n_types=3, n_batches=2, n_proteins=4, n_peaks=50, library_size=80, seed=0
    )
    rng = np.random.default_rng(0)
    adata.obs["age"] = rng.normal(size=adata.n_obs)
    adata.obs["donor"] = rng.choice(["a", "b", "c"], adata.n_obs)
    adata.obs["size"] = rng.gamma(5, 0.2, size=adata.n_obs)
    return adata


class Watched(Callback):
    """What a block of minibatches made the host wait for, and what it sent."""

    def __init__(self, device):
        self.device = device
        self.waits, self.sent, self.n_updates = [], [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        assert pl_module.device == torch.device(DEVICE)
        assert all(value.device == torch.device(DEVICE) for value in pl_module.module.parameters())
        self.before = len(self.device.waits), len(self.device.sent), pl_module.step

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        n_waits, n_sent, step = self.before
        self.waits.append(self.device.waits[n_waits:])
        self.sent.append(self.device.sent[n_sent:])
        self.n_updates.append(pl_module.step - step)


def _model(cells, case):
    kind, setup, options, _ = CASES[case]
    adata = cells.copy()
    kind.setup_anndata(adata, **setup)
    # Dropout is drawn in another way on each kind of device.
    return kind(adata, n_hidden=16, n_latent=3, dropout_rate=0.0, **options)


def _train(model, case, **options):
    model.train(
        max_steps=12, batch_size=32, early_stopping=False, enable_progress_bar=False, **CASES[case][3], **options
    )
    return {name: value.detach().clone() for name, value in model.module.state_dict().items()}


@pytest.mark.parametrize("case", CASES)
def test_training_waits_once_a_block_and_learns_what_the_cpu_learns(cells, case):
    expected = _train(_model(cells, case), case)
    model = _model(cells, case)
    with elsewhere() as device:
        watched = Watched(device)
        found = _train(model, case, strategy=strategy(), callbacks=[watched])
    assert max(watched.n_updates) > 2
    for waits, sent, n_updates in zip(watched.waits, watched.sent, watched.n_updates, strict=True):
        assert waits == WAITS.get(case, []) * n_updates + ["_local_scalar_dense"]
        assert sent == SENT.get(case, []) * n_updates
    for name, value in expected.items():
        if case not in SHIFTS or name not in (SHIFTS[case], MEAN):
            torch.testing.assert_close(
                found[name], value, rtol=1e-3, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
            )


def test_the_device_is_no_other_name_for_the_host():
    with elsewhere() as device:
        there = torch.arange(6.0).to(DEVICE)
        assert (there.device, device.sent, device.waits) == (torch.device(DEVICE), ["_to_copy"], [])
        assert (there * 2).device == torch.device(DEVICE)
        assert torch.equal((there + torch.tensor(1.0)).cpu(), torch.arange(6.0) + 1)
        with pytest.raises(RuntimeError, match="add: tensors of two devices"):
            there + torch.ones(6)
        with pytest.raises(TypeError, match="can't convert elsewhere:0"):
            there.numpy()
        device.waits.clear()
        for wait in (
            lambda: float(there.sum()),
            lambda: there.tolist(),
            lambda: there[there > 2],
            lambda: there.nonzero(),
            lambda: there.cpu(),
            lambda: torch.repeat_interleave(there, there.long()),
        ):
            before = len(device.waits)
            wait()
            assert len(device.waits) == before + 1
        n_waits = len(device.waits)
        torch.repeat_interleave(there, there.long(), output_size=15)
        assert len(device.waits) == n_waits


@pytest.mark.parametrize("is_resident", [True, False])
def test_minibatches_are_cut_there_without_a_wait(cells, is_resident):
    adata = cells.copy()
    setup_anndata(adata, **MIXED, **PEAKS, protein_expression_obsm_key="protein")
    source = align(adata, read_registry(adata))
    chosen, sizes = np.random.default_rng(0).permutation(adata.n_obs)[:90], [32, 32, 26]
    expected = source.block(chosen, sizes)
    with elsewhere() as device:
        where = torch.device(DEVICE)
        reader = (
            load_cells(source, np.arange(adata.n_obs), where, 10**9) if is_resident else StreamedCells(source, where)
        )
        device.sent.clear()
        found = reader.block(chosen, sizes)
        assert device.waits == []
        if is_resident:  # which rows, and which entries of the peaks
            assert len(device.sent) == 2
        for one, other in zip(found, expected, strict=True):
            assert {value.device for value in (one.counts.values, one.batch, one.peaks.peak_index)} == {where}
            torch.testing.assert_close(one.counts.dense().cpu(), other.counts.dense())
            for name in ("library_size", "batch", "categorical_covariates", "continuous_covariates", "proteins"):
                torch.testing.assert_close(getattr(one, name).cpu(), getattr(other, name))
            torch.testing.assert_close(one.peaks.n_accessible.cpu(), other.peaks.n_accessible)


@pytest.mark.parametrize("case", ["nb", "proteins", "peaks"])
def test_training_from_cells_that_stay_there_sends_the_plan_of_a_block(cells, case, monkeypatch):
    def resident(self):
        if self._reader is None:
            chosen = np.union1d(self.train, self.validation)
            self._reader = load_cells(self.source, chosen, torch.device(DEVICE), 10**9)
        return self._reader

    expected = _train(_model(cells, case), case)
    monkeypatch.setattr(CellDataModule, "reader", resident)
    model = _model(cells, case)
    with elsewhere() as device:
        watched = Watched(device)
        found = _train(model, case, strategy=strategy(), callbacks=[watched])
    for waits, sent, n_updates in zip(watched.waits, watched.sent, watched.n_updates, strict=True):
        assert waits == WAITS.get(case, []) * n_updates + ["_local_scalar_dense"]
        assert sent == SENT.get(case, []) * n_updates
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("case", ["nb", "proteins", "peaks", "labels"])
def test_new_batches_are_mapped_there(cells, case):
    reference = _model(cells, case)
    _train(reference, case)
    query = cells.copy()
    query.obs["batch"] = "new"
    mapped = [type(reference).load_query_data(query.copy(), reference) for _ in range(2)]
    expected = _train(mapped[0], case)
    with elsewhere() as device:
        watched = Watched(device)
        found = _train(mapped[1], case, strategy=strategy(), callbacks=[watched])
    for waits, sent, n_updates in zip(watched.waits, watched.sent, watched.n_updates, strict=True):
        assert waits == WAITS.get(case, []) * n_updates + ["_local_scalar_dense"]
        assert sent == SENT.get(case, []) * n_updates
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-5)
