"""Callbacks of the user that make no sense where a batch of Lightning's loop is a block of updates."""

from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    Callback,
    Checkpoint,
    GradientAccumulationScheduler,
    LearningRateFinder,
    ModelPruning,
    ProgressBar,
    StochasticWeightAveraging,
)

__all__ = ["check_callbacks"]

# Callbacks that cannot do here what they are for, and what to do instead.
INSTEAD: dict[type[Callback], str] = {
    BatchSizeFinder: "pass batch_size",
    GradientAccumulationScheduler: "pass a larger batch_size",
    LearningRateFinder: "pass learning_rate, the peak of a schedule of its own",
    ModelPruning: "prune model.module once it is trained",
    ProgressBar: "leave it out, and pass enable_progress_bar=True for the bar that there is",
    StochasticWeightAveraging: "pass lightning.pytorch.callbacks.WeightAveraging() or EMAWeightAveraging()",
}


def check_callbacks(callbacks: Sequence[Callback], options: Mapping[str, Any]) -> None:
    """Raise where a callback cannot be used, and say what to do instead.

    Parameters
    ----------
    callbacks
        Those of the user.
    options
        The user's options of :class:`lightning.Trainer`.

    Raises
    ------
    TypeError
        If something is no callback, or is one that makes no sense here.
    ValueError
        If a callback needs an option.
    """
    for callback in callbacks:
        name = type(callback).__name__
        if not isinstance(callback, Callback):
            raise TypeError(f"callbacks holds {callback!r}, which is no lightning.pytorch.callbacks.Callback.")
        for kind, instead in INSTEAD.items():
            if isinstance(callback, kind):
                raise TypeError(f"train() does its own updates and cannot take the callback {name}: {instead}.")
        if isinstance(callback, Checkpoint) and not options.get("enable_checkpointing"):
            raise ValueError(
                f"The callback {name} writes files, which training does not do unless it is asked to: pass "
                "enable_checkpointing=True as well."
            )
