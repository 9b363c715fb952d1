"""One training run, from a plan to trained weights."""

import inspect
import logging
import math
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from lightning import Trainer
from lightning.pytorch.callbacks import Callback

from scvae_ext.data import CellSource
from scvae_ext.modules import Trainable
from scvae_ext.train.callbacks import BestWeights, GentleInterrupt, PatientEarlyStopping, TrainingBar
from scvae_ext.train.data_module import CellDataModule
from scvae_ext.train.errors import TrainingDivergedError
from scvae_ext.train.history import History
from scvae_ext.train.lightning_module import TrainingModule
from scvae_ext.train.plan import TrainingPlan

__all__ = ["check_trainer_options", "fit"]

MINIBATCHES_PER_BLOCK = 16
CUBLAS_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
LOGGERS = ("lightning.pytorch", "lightning.fabric", "pytorch_lightning")
# Options of a Trainer that make no sense where a batch of its loop is a block of updates, and what to pass instead.
INSTEAD = {
    "accumulate_grad_batches": "pass a larger batch_size",
    "gradient_clip_val": "pass a smaller learning_rate",
    "gradient_clip_algorithm": "pass a smaller learning_rate",
    "val_check_interval": "pass check_val_every_n_epoch, or leave it out",
    "limit_train_batches": "pass max_steps",
    "limit_val_batches": "pass validation_size",
    "min_steps": "pass early_stopping=False",
    "min_epochs": "pass early_stopping=False",
    "reload_dataloaders_every_n_epochs": "leave it out",
    "use_distributed_sampler": "leave it out",
}


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
        If an option does not exist, naming the nearest that do, or makes no sense here, naming what to pass instead.
    """
    valid = [name for name in inspect.signature(Trainer.__init__).parameters if name != "self"]
    for name in options:
        if name in INSTEAD:
            raise TypeError(f"train() does its own updates and cannot take {name}={options[name]!r}: {INSTEAD[name]}.")
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
    lightning_module = TrainingModule(module, plan, history, len(train), seed)
    best = BestWeights(module)
    interrupt = GentleInterrupt()
    own_callbacks: list[Callback] = [best, interrupt]
    if progress_bar:
        own_callbacks.append(TrainingBar(lightning_module))
    if plan.early_stopping and len(validation):
        patience = max(1, math.ceil(plan.patience / _steps_between_validations(plan, steps_per_epoch, per_block)))
        own_callbacks.append(PatientEarlyStopping(lightning_module, patience))
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
        with _quiet(), _torch_flags_restored(), torch.random.fork_rng():
            torch.manual_seed(seed)
            trainer = Trainer(callbacks=[*callbacks, *own_callbacks], **options)
            _keep_freed_memory()
            # Lightning leaves the mode of a module as it is.
            module.train()
            try:
                trainer.fit(lightning_module, datamodule=data)
                best.consider(lightning_module.finish(data.val_dataloader()))
            except SystemExit as exit_:
                if not isinstance(exit_.__context__, KeyboardInterrupt):
                    raise
                interrupt.interrupted = True
                if trainer.world_size == 1:
                    best.consider(lightning_module.finish(data.val_dataloader()))
    except TrainingDivergedError:
        module.load_state_dict(start)
        raise
    finally:
        interrupt.release()
        module.to(device)
        best.restore()
        module.eval()
    return interrupt.interrupted


def _steps_between_validations(plan: TrainingPlan, steps_per_epoch: int, per_block: int) -> int:
    rhythm = _validation_rhythm(plan, steps_per_epoch, per_block)
    if rhythm["check_val_every_n_epoch"] is None:
        return int(rhythm["val_check_interval"] or 1) * per_block
    return steps_per_epoch * rhythm["check_val_every_n_epoch"]


def _validation_rhythm(plan: TrainingPlan, steps_per_epoch: int, per_block: int) -> dict[str, int | None]:
    """Lightning's words for when to validate: within long epochs, after every few short ones."""
    if steps_per_epoch <= plan.validate_every:
        return {"check_val_every_n_epoch": max(1, round(plan.validate_every / steps_per_epoch))}
    blocks = min(math.ceil(plan.validate_every / per_block), math.ceil(steps_per_epoch / per_block))
    return {"val_check_interval": blocks, "check_val_every_n_epoch": None}


def _keep_freed_memory() -> None:
    """Teach the C library to keep the buffers of a step for the next one.

    glibc hands blocks above a threshold back to the kernel when they are freed, which costs a page fault for every four
    kilobytes of the next step. Freeing one large block raises that threshold, up to 32 MB, for good.
    """
    torch.empty(7_000_000)


@contextmanager
def _torch_flags_restored() -> Iterator[None]:
    """Put back what the options ``deterministic`` and ``benchmark`` of a Trainer set for the whole process."""
    workspace = os.environ.get(CUBLAS_WORKSPACE)
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark = torch.backends.cudnn.benchmark
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        torch.backends.cudnn.benchmark = benchmark
        if workspace is None:
            os.environ.pop(CUBLAS_WORKSPACE, None)


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
