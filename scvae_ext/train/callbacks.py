"""Callbacks of every training run: the best weights, the progress bar, a gentle stop."""

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, EarlyStopping
from torch import Tensor
from tqdm import tqdm

from scvae_ext.modules import Trainable
from scvae_ext.train.lightning_module import TrainingModule
from scvae_ext.train.progress_bar import open_bar

__all__ = ["BestWeights", "GentleInterrupt", "PatientEarlyStopping", "ScoredWeights", "TrainingBar"]


class BestWeights(Callback):
    """Keeps the weights of the best validation in memory, those within training by :class:`ScoredWeights`.

    Parameters
    ----------
    module
        What is trained; its ``monitor`` names the score.
    start_counts
        Whether the weights of the start are scored as well. Early stopping does not see their score: while the learning
        rate is high, weights are worse than those of an earlier training that ended with a low one.
    """

    def __init__(self, module: Trainable, start_counts: bool = False) -> None:
        self.module = module
        self.start_counts = start_counts
        self.sign = 1.0 if module.monitor_mode == "max" else -1.0
        self.score = -float("inf")
        self.weights: dict[str, Tensor] | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Score the weights of the start, where they count."""
        if self.start_counts and trainer.enable_validation and isinstance(pl_module, TrainingModule):
            self.consider(pl_module.score_start(trainer.datamodule.val_dataloader()))  # type: ignore[attr-defined]

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Score the final weights, where training did not end on a validation."""
        if isinstance(pl_module, TrainingModule):
            held_out = trainer.datamodule.val_dataloader() if trainer.enable_validation else ()  # type: ignore[attr-defined]
            self.consider(pl_module.finish(held_out))

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the best weights back, in the process that has trained: from there they reach one that waits for it."""
        self.restore()

    def consider(self, score: float | None) -> None:
        """Copy the weights where the score is the best so far.

        Parameters
        ----------
        score
            Held-out score of the weights as they are, or ``None`` for none.
        """
        if score is not None and self.sign * score > self.score:
            self.score = self.sign * score
            self.weights = {name: value.detach().clone() for name, value in self.module.state_dict().items()}

    def restore(self) -> None:
        """Put the best weights back."""
        if self.weights is not None:
            self.module.load_state_dict(self.weights)


class ScoredWeights(Callback):
    """Keeps the weights of each validation, where they are the best so far. First among the callbacks.

    A callback that averages weights has its averages scored, and ends the validation by putting the others back.

    Parameters
    ----------
    best
        Where they are kept.
    """

    def __init__(self, best: BestWeights) -> None:
        self.best = best

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Copy the weights, while they are those that were scored."""
        if not trainer.sanity_checking and isinstance(pl_module, TrainingModule):
            self.best.consider(pl_module.scores().get(pl_module.module.monitor))


class TrainingBar(Callback):
    """One bar over all steps with the held-out score and the time left; silent in logs.

    Parameters
    ----------
    training
        The module that counts steps.
    """

    def __init__(self, training: TrainingModule) -> None:
        self.training = training
        self.monitor = training.module.monitor
        self._bar: tqdm | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the bar."""
        if trainer.is_global_zero:
            self._bar = open_bar(self.training.plan.max_steps)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move on by the updates of the block."""
        if self._bar is not None:
            self._bar.update(self.training.step - self._bar.n)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the newest held-out score."""
        metric = trainer.callback_metrics.get(f"{self.monitor}_validation")
        if self._bar is not None and metric is not None:
            self._bar.set_postfix(
                {f"held-out {self.monitor.upper().replace('_', ' ')}": f"{float(metric):.4g}"}, refresh=False
            )

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the bar."""
        self.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Close the bar."""
        self.close()

    def close(self) -> None:
        """Leave the bar as it stands."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class PatientEarlyStopping(EarlyStopping):
    """Early stopping that starts to count when all weights of the objective have reached their final values.

    Before, the objective itself changes, and the held-out score need not rise.

    Parameters
    ----------
    training
        The module that counts steps.
    patience
        Number of validations without improvement.
    """

    def __init__(self, training: TrainingModule, patience: int) -> None:
        module = training.module
        super().__init__(
            f"{module.monitor}_validation",
            mode=module.monitor_mode,
            patience=patience,
            check_finite=False,
            check_on_train_epoch_end=False,
        )
        self.training = training

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count, after the warm-up."""
        if self.training.step >= self.training.plan.settled_from:
            super().on_validation_end(trainer, pl_module)


class GentleInterrupt(Callback):
    """Ends training after the current block at the first Ctrl-C; a second one interrupts at once.

    Once training has ended, a Ctrl-C is taken note of alone, until :meth:`release`.

    Lightning itself leaves the interpreter when it is interrupted, which would take the user's notebook with it.
    """

    def __init__(self) -> None:
        self.interrupted = False
        self._has_ended = False
        self._listens = threading.current_thread() is threading.main_thread()
        self._previous = signal.getsignal(signal.SIGINT) if self._listens else None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen, where signals can be listened to."""

        def stop() -> None:
            if trainer.world_size > 1 and isinstance(pl_module, TrainingModule):
                # All processes have to stop at the same block.
                pl_module.stop_requested = True
            else:
                trainer.should_stop = True

        self._listen(stop)

    def wait_for_others(self) -> None:
        """Leave the first Ctrl-C to the processes that train, which a terminal or a notebook sends it to as well."""
        self._listen(lambda: None)

    def _listen(self, at_first: Callable[[], None]) -> None:
        def stop(number: int, frame: FrameType | None) -> None:
            if self.interrupted and not self._has_ended:
                raise KeyboardInterrupt
            self.interrupted = True
            at_first()

        if self._listens:
            signal.signal(signal.SIGINT, stop)

    def end(self) -> None:
        """Let what follows training run to its end, whatever Ctrl-C says."""
        self._has_ended = True

    def release(self) -> None:
        """Give the signal back to whoever had it."""
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)

    def __getstate__(self) -> dict[str, Any]:
        # A spawned process has the default handler to give back.
        return {"interrupted": False, "_has_ended": False, "_listens": self._listens, "_previous": None}
