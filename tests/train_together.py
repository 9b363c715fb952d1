"""Train with two processes; each writes what it has seen and got. Run by test_processes.py.

python train_together.py FOLDER STRATEGY
"""

import json
import os
import signal
import sys
import warnings
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_only

import scvae_ext as sv
from scvae_ext.train import TrainingDivergedError

SCHEDULE = {"max_epochs": 40, "batch_size": 64, "accelerator": "cpu", "enable_progress_bar": False}


def make_cells():
    """Simulate cells that carry their position, and hold a quarter of them out."""
    adata = sv.datasets.synthetic_counts(800, 60, n_types=3, library_size=150, seed=5)
    adata.obs["position"] = np.arange(800.0)
    return adata[:600].copy(), adata[600:].copy()


def make_model(adata):
    """Build the model to be trained."""
    sv.SCVAE.setup_anndata(adata, continuous_covariate_keys=["position"])
    return sv.SCVAE(adata, n_hidden=32, n_latent=4)


class Record(Callback):
    """Which cells the minibatches of each epoch held, and how the states of random generators differ."""

    def __init__(self, registry, folder):
        self.position, self.folder = registry.continuous_covariates[0], folder
        self.epochs = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        while len(self.epochs) <= trainer.current_epoch:
            self.epochs.append([])
        for minibatch in batch:
            standardised = minibatch.continuous_covariates[:, 0].double()
            cells = standardised * self.position.std + self.position.mean
            self.epochs[-1].append(cells.round().int().tolist())

    def on_train_end(self, trainer, pl_module):
        seen = {"epochs": self.epochs, "random": int(torch.randint(2**31, ()))}
        (self.folder / f"seen{trainer.global_rank}.json").write_text(json.dumps(seen))


class Interrupt(Callback):
    """Sends one process the signal of Ctrl-C."""

    def on_train_batch_end(self, trainer, pl_module, *args):
        if trainer.global_rank == 1 and trainer.current_epoch == 2:
            os.kill(os.getpid(), signal.SIGINT)


class Poison(Callback):
    """Makes the objective of one process something that is not a number."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_rank == 1 and trainer.current_epoch == 1:
            batch[0].library_size.fill_(float("nan"))


def describe(model):
    """Return the weights and the history, without loss."""
    weights = torch.cat([value.double().flatten() for value in model.module.state_dict().values()])
    return {"weights": weights.tolist(), "history": model.history.to_dict("list")}


def main(folder, strategy):
    """Train, train on to no avail, with an interrupt, and with a divergence; leave a file for each process."""
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    warnings.filterwarnings("ignore", category=FutureWarning)
    options = {"devices": 2, "strategy": strategy, **SCHEDULE}
    train, held_out = make_cells()
    model = make_model(train)
    model.train(callbacks=Record(model.registry, folder), **options)
    result = {
        **describe(model),
        "elbo": model.get_elbo(held_out, n_samples=20),
        "validation": len(model.validation_indices),
    }
    # Processes that are forked, as a notebook has them, hand results over as spawned ones do, and need not be imported.
    options["strategy"] = "ddp_notebook" if strategy == "ddp_spawn" else strategy
    # Steps that lead away: the weights of the start are the best.
    model.train(learning_rate=0.5, **{**options, "max_epochs": 1})
    result["after steps away"] = describe(model)
    if strategy == "ddp":
        interrupted = make_model(train)
        interrupted.train(callbacks=Interrupt(), **options)
        result["interrupted"] = describe(interrupted)
    try:
        make_model(train).train(callbacks=Poison(), **options)
    except TrainingDivergedError as error:
        result["diverged"] = str(error)
    (folder / f"result{rank_zero_only.rank}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    main(Path(sys.argv[1]), sys.argv[2])
