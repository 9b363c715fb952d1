"""One training run, from a plan to trained weights."""

import inspect
import logging
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any

import lightning as L
import numpy as np
import torch
from jaxtyping import Int
from lightning.pytorch.callbacks import Callback, EarlyStopping

from scvae_ext.data import CellSource
from scvae_ext.modules import Trainable
from scvae_ext.train.callbacks import BestWeights, GentleInterrupt, TrainingBar
from scvae_ext.train.data_module import CellDataModule
from scvae_ext.train.errors import TrainingDivergedError
from scvae_ext.train.history import History
from scvae_ext.train.lightning_module import TrainingModule
from scvae_ext.train.plan import TrainingPlan

__all__ = ["check_trainer_options", "fit"]

MINIBATCHES_PER_BLOCK = 16
LOGGERS = ("lightning.pytorch", "lightning.fabric", "pytorch_lightning")
# Set by train() itself: through a Trainer they would contradict the plan.
OWN_OPTIONS = ("max_steps", "val_check_interval", "gradient_clip_algorithm", "accumulate_grad_batches")


def check_trainer_options(options: Mapping[str, Any], known: Sequence[str]) -> None:
    """Raise where an option is not one of Lightning's Trainer.

    Parameters
    ----------
    options
        Options of the user.
    known
        Options that the caller takes itself, for the suggestion.

    Raises
    ------
    TypeError
        Naming the option and the nearest that exist.
    """
    valid = [name for name in inspect.signature(L.Trainer.__init__).parameters if name != "self"]
    for name in options:
        if name not in valid:
            near = get_close_matches(name, [*valid, *known], n=3)
            hint = (
                f"Did you mean {' or '.join(near)}?" if near else "See the signature of train() for those that exist."
            )
            raise TypeError(f"train() got an unknown option {name!r}. {hint}")


def fit(
    module: Trainable,
    source: CellSource,
    train: Int[np.ndarray, "train"],
    validation: Int[np.ndarray, "validation"],
    plan: TrainingPlan,
    *,
    seed: int,
    history: History,
    callbacks: Sequence[Callback] = (),
    progress_bar: bool = True,
    trainer_options: Mapping[str, Any] | None = None,
) -> bool:
    """Train a module in place and leave it on the CPU, in evaluation mode, with the best weights.

    Global state (random seeds, warning filters, logging levels) is as before afterwards.

    Parameters
    ----------
    module
        What is trained.
    source
        Where cells are read from.
    train, validation
        Positions of the training and of the held-out cells; there may be none of the latter.
    plan
        How.
    seed
        Seed of the order of cells and of every random draw.
    history
        Table that rows are appended to.
    callbacks
        Callbacks of the user.
    progress_bar
        Whether to show one.
    trainer_options
        Further options of :class:`lightning.Trainer`.

    Returns
    -------
    bool
        Whether training was interrupted.

    Raises
    ------
    TrainingDivergedError
        If the objective is not finite; the module then has the best weights seen before.
    """
    steps_per_epoch = math.ceil(len(train) / plan.batch_size)
    per_block = min(MINIBATCHES_PER_BLOCK, steps_per_epoch, plan.validate_every)
    data = CellDataModule(
        source,
        train,
        validation,
        batch_size=plan.batch_size,
        minibatches_per_block=per_block,
        seed=seed,
        first_epoch=int(history.last("epoch")),
    )
    lightning_module = TrainingModule(module, plan, history, seed)
    monitor = f"{module.monitor}_validation"
    best = BestWeights(monitor, module.monitor_mode)
    interrupt = GentleInterrupt()
    own_callbacks: list[Callback] = [best, interrupt]
    if progress_bar:
        own_callbacks.append(TrainingBar(module.monitor.upper()))
    if plan.early_stopping and len(validation):
        patience = max(1, math.ceil(plan.patience / _steps_between_validations(plan, steps_per_epoch)))
        own_callbacks.append(
            EarlyStopping(monitor, mode=module.monitor_mode, patience=patience, check_finite=False, verbose=False)
        )
    options: dict[str, Any] = {
        "max_steps": plan.max_steps,
        "max_epochs": -1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "use_distributed_sampler": False,
        "limit_val_batches": 1.0 if len(validation) else 0,
        **_validation_rhythm(plan, steps_per_epoch, per_block),
        **(trainer_options or {}),
    }
    device = next(module.parameters()).device
    start = {name: value.detach().clone() for name, value in module.state_dict().items()}
    try:
        with _quiet(), torch.random.fork_rng():
            torch.manual_seed(seed)
            trainer = L.Trainer(callbacks=[*callbacks, *own_callbacks], **options)
            try:
                trainer.fit(lightning_module, datamodule=data)
            except SystemExit as exit_:
                if not isinstance(exit_.__context__, KeyboardInterrupt):
                    raise
                interrupt.interrupted = True
    except TrainingDivergedError:
        module.load_state_dict(start)
        raise
    finally:
        interrupt.release()
        module.to(device)
        best.restore(module)
        module.eval()
    return interrupt.interrupted


def _steps_between_validations(plan: TrainingPlan, steps_per_epoch: int) -> int:
    if steps_per_epoch >= plan.validate_every:
        return plan.validate_every
    return steps_per_epoch * max(1, round(plan.validate_every / steps_per_epoch))


def _validation_rhythm(plan: TrainingPlan, steps_per_epoch: int, per_block: int) -> dict[str, int | None]:
    """Lightning's words for when to validate: within long epochs, after every few short ones."""
    if steps_per_epoch <= plan.validate_every:
        return {"check_val_every_n_epoch": max(1, round(plan.validate_every / steps_per_epoch))}
    blocks = min(math.ceil(plan.validate_every / per_block), math.ceil(steps_per_epoch / per_block))
    return {"val_check_interval": blocks, "check_val_every_n_epoch": None}


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Lightning's remarks on hardware, workers and tips out of the user's notebook, and put everything back."""
    loggers = [logging.getLogger(name) for name in LOGGERS]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
