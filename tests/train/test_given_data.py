import numpy as np
import pytest
import torch
from lightning import LightningDataModule
from torch.utils.data import DataLoader, IterableDataset

from scvae_ext import SCVAE
from scvae_ext.data import align
from scvae_ext.datasets import synthetic_counts
from scvae_ext.minibatch import Minibatch, SparseCounts
from scvae_ext.train.given_data import GivenData


@pytest.fixture(scope="module")
def simulated():
    adata = synthetic_counts(240, 30, n_types=3)
    SCVAE.setup_anndata(adata)
    return adata


def minibatch_of(counts):
    """Build a minibatch from an array, as a user would, without a covariate."""
    counts = torch.as_tensor(np.asarray(counts), dtype=torch.float32)
    n = len(counts)
    none = torch.zeros(n, dtype=torch.int64)
    return Minibatch(
        SparseCounts.from_dense(counts), counts.sum(1), none, none, torch.zeros(n, 0, dtype=torch.int64),
        torch.zeros(n, 0),
    )  # fmt: skip


class Rows(IterableDataset):
    """A plain torch dataset that reads cells in order and yields minibatches."""

    def __init__(self, counts, cells, in_lists):
        self.counts, self.cells, self.in_lists = counts, cells, in_lists
        self.epochs = 0

    def __iter__(self):
        order = np.random.default_rng(self.epochs).permutation(self.cells)
        self.epochs += 1
        for part in np.array_split(order, 6):
            if self.in_lists:
                yield [minibatch_of(self.counts[half]) for half in np.array_split(part, 2)]
            else:
                yield minibatch_of(self.counts[part])


class OwnData(LightningDataModule):
    def __init__(self, counts, in_lists=False):
        super().__init__()
        self.train_indices, self.validation_indices = np.arange(192), np.arange(192, 240)
        self.rows = Rows(counts, self.train_indices, in_lists)
        self.held_out = minibatch_of(counts[192:])
        self.calls = []

    def prepare_data(self):
        self.calls.append("prepare_data")

    def setup(self, stage):
        self.calls.append(stage)

    def teardown(self, stage):
        self.calls.append("teardown")

    def train_dataloader(self):
        return DataLoader(self.rows, batch_size=None)

    def val_dataloader(self):
        return [self.held_out]


class WithoutValidation(LightningDataModule):
    def __init__(self, items):
        super().__init__()
        self.items = items

    def train_dataloader(self):
        return self.items


@pytest.mark.parametrize("in_lists", [False, True])
def test_training_on_an_own_data_module(simulated, in_lists):
    counts = simulated.X.toarray()
    model, data = SCVAE(simulated, n_hidden=16, n_latent=3), OwnData(counts, in_lists)
    options = {
        "max_steps": 150,
        "batch_size": 16 if in_lists else 32,
        "early_stopping": False,
        "enable_progress_bar": False,
    }
    model.train(datamodule=data, **options)
    assert data.calls == ["prepare_data", "fit", "teardown"]
    assert model.history["step"].iloc[-1] == 150
    np.testing.assert_array_equal(model.train_indices, data.train_indices)
    np.testing.assert_array_equal(model.validation_indices, data.validation_indices)
    usual = SCVAE(simulated, n_hidden=16, n_latent=3)
    usual.train(train_size=0.8, shuffle_set_split=False, **options)
    assert model.get_elbo(indices=data.validation_indices) == pytest.approx(
        usual.get_elbo(indices=data.validation_indices), rel=0.01
    )
    assert model.history["elbo_validation"].notna().all()


def test_without_held_out_cells(simulated):
    items = [minibatch_of(simulated.X[:100].toarray()), minibatch_of(simulated.X[100:].toarray())]
    model = SCVAE(simulated, n_hidden=16, n_latent=3)
    model.train(datamodule=WithoutValidation(items), max_steps=10, batch_size=120, enable_progress_bar=False)
    assert "elbo_validation" not in model.history
    assert model.history["step"].iloc[-1] == 10
    assert model.train_indices is None


def test_scdataset(simulated, tmp_path):
    scdataset = pytest.importorskip("scdataset")

    class Streamed(LightningDataModule):
        def train_dataloader(self):
            strategy = scdataset.BlockShuffling(block_size=8, indices=np.arange(192))
            source = align(simulated, model.registry)
            dataset = scdataset.scDataset(
                source, strategy, batch_size=40, fetch_factor=3, seed=0, drop_last=True,
                fetch_callback=lambda source, indices: source.window(np.asarray(indices)),
                batch_callback=lambda window, indices: window.minibatch(np.asarray(indices)),
            )  # fmt: skip
            return DataLoader(dataset, batch_size=None)

    model = SCVAE(simulated, n_hidden=16, n_latent=3)
    model.train(datamodule=Streamed(), max_steps=12, enable_progress_bar=False, batch_size=40)
    before = model.get_elbo()
    model.train(datamodule=Streamed(), max_steps=100, enable_progress_bar=False, batch_size=40)
    assert model.get_elbo() > before


@pytest.mark.parametrize(
    ("item", "error", "message"),
    [
        (torch.ones(3, 30), TypeError, r"must yield scvae_ext.minibatch.Minibatch or lists.*torch.Tensor"),
        (minibatch_of(np.ones((3, 7))), ValueError, "cells with 7 genes, but the model has 30"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_items_of_the_wrong_kind(simulated, item, error, message):
    model = SCVAE(simulated, n_hidden=16, n_latent=3)
    with pytest.raises(error, match=message):
        model.train(datamodule=WithoutValidation([item]), max_steps=4, enable_progress_bar=False)


@pytest.mark.usefixtures("unchecked")
def test_what_is_no_data_module():
    with pytest.raises(TypeError, match=r"datamodule must be a lightning.LightningDataModule, but is builtins.list"):
        GivenData([], n_genes=30, minibatches_per_block=2)
