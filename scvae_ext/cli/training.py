"""Training, as a command tells of it."""

import argparse

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from scvae_ext.cli.quality import CountModel

__all__ = ["train"]


class Announcement(Callback):
    """Says what is trained and for how long at most, also where no progress bar is shown.

    Parameters
    ----------
    model
        The model.
    """

    def __init__(self, model: CountModel) -> None:
        self.model = model
        self.is_begun = False

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the line at once, lest it waits in the buffer of a pipe."""
        if not trainer.is_global_zero:
            return
        size = f"{self.model.adata.n_obs:,} cells and {self.model.registry.n_genes:,} genes"
        what = f"{type(self.model).__name__} on {size}"
        # Some models are trained in two parts.
        print(f"training {'further' if self.is_begun else what}, at most {trainer.max_steps:,} updates", flush=True)
        self.is_begun = True


def train(model: CountModel, options: argparse.Namespace) -> None:
    """Train a model.

    Parameters
    ----------
    model
        The model.
    options
        Options of the command line.
    """
    model.train(max_epochs=options.max_epochs, seed=options.seed, callbacks=Announcement(model))
