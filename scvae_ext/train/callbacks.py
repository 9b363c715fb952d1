"""Callbacks of every training run: the best weights, the progress bar, a gentle stop."""

import signal
import sys
import threading
from types import FrameType
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from tqdm import tqdm

from scvae_ext.train.lightning_module import TrainingModule

__all__ = ["BestWeights", "GentleInterrupt", "TrainingBar"]


class BestWeights(Callback):
    """Keeps the weights of the best validation in memory.

    Parameters
    ----------
    name, mode
        Logged metric, and ``"max"`` or ``"min"``.
    """

    def __init__(self, name: str, mode: str) -> None:
        self.name = name
        self.sign = 1.0 if mode == "max" else -1.0
        self.score = -float("inf")
        self.step = 0
        self.weights: dict[str, Tensor] | None = None

    def on_validation_end(self, trainer: L.Trainer, pl_module: TrainingModule) -> None:
        """Copy the weights where the score is the best so far and the warm-up of the KL divergence is over."""
        if trainer.sanity_checking or self.name not in trainer.callback_metrics:
            return
        score = self.sign * float(trainer.callback_metrics[self.name])
        if score > self.score:
            self.score, self.step = score, pl_module.step
            self.weights = {name: value.detach().clone() for name, value in pl_module.module.state_dict().items()}

    def restore(self, module: torch.nn.Module) -> None:
        """Put the best weights back.

        Parameters
        ----------
        module
            Module that was trained.
        """
        if self.weights is not None:
            module.load_state_dict(self.weights)


class TrainingBar(Callback):
    """One bar over all steps with the ELBO and the time left; silent where there is no terminal.

    Parameters
    ----------
    name
        Name of the figure shown.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._bar: tqdm | None = None

    def on_fit_start(self, trainer: L.Trainer, pl_module: TrainingModule) -> None:
        """Open the bar."""
        if trainer.is_global_zero:
            self._bar = tqdm(
                total=pl_module.plan.max_steps, desc="Training", unit="step", disable=None, file=sys.stderr, leave=True
            )

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: TrainingModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move on by the updates of the block."""
        if self._bar is not None:
            self._bar.update(pl_module.step - self._bar.n)

    def on_validation_end(self, trainer: L.Trainer, pl_module: TrainingModule) -> None:
        """Show the newest held-out score."""
        metric = trainer.callback_metrics.get(f"{pl_module.module.monitor}_validation")
        if self._bar is not None and metric is not None:
            self._bar.set_postfix({f"held-out {self.name}": f"{float(metric):.4g}"}, refresh=False)

    def on_fit_end(self, trainer: L.Trainer, pl_module: TrainingModule) -> None:
        """Close the bar."""
        self.close()

    def on_exception(self, trainer: L.Trainer, pl_module: TrainingModule, exception: BaseException) -> None:
        """Close the bar."""
        self.close()

    def close(self) -> None:
        """Leave the bar as it stands."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class GentleInterrupt(Callback):
    """Ends training after the current block at the first Ctrl-C; a second one interrupts at once.

    Lightning itself leaves the interpreter when it is interrupted, which would take the user's session with it.
    """

    def __init__(self) -> None:
        self.interrupted = False
        self._previous: Any = None

    def on_fit_start(self, trainer: L.Trainer, pl_module: TrainingModule) -> None:
        """Listen, where signals can be listened to."""
        if threading.current_thread() is threading.main_thread():

            def stop(number: int, frame: FrameType | None) -> None:
                if self.interrupted:
                    raise KeyboardInterrupt
                self.interrupted = True
                trainer.should_stop = True

            self._previous = signal.signal(signal.SIGINT, stop)

    def release(self) -> None:
        """Give the signal back to whoever had it."""
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)
            self._previous = None
