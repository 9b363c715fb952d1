"""One training run, from a plan to trained weights."""

import inspect
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

import numpy as np
from jaxtyping import Int
from lightning import LightningDataModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch.multiprocessing.spawn import ProcessRaisedException

from scvae_ext.data import CellSource
from scvae_ext.heap import keep_freed_memory
from scvae_ext.modules import Trainable
from scvae_ext.train.callbacks import (
    BestWeights,
    GentleInterrupt,
    PatientEarlyStopping,
    ScoredWeights,
    TrainingBar,
)
from scvae_ext.train.data_module import CellDataModule
from scvae_ext.train.errors import TrainingDivergedError
from scvae_ext.train.given_data import GivenData
from scvae_ext.train.global_state import kept_global_state
from scvae_ext.train.history import History
from scvae_ext.train.lightning_module import TrainingModule
from scvae_ext.train.plan import TrainingPlan
from scvae_ext.train.processes import (
    count_processes,
    divergence_in,
    forks_or_spawns,
    make_trainer,
    require_enough_cells,
)

__all__ = ["check_trainer_options", "fit"]

MINIBATCHES_PER_BLOCK = 16
PRECISIONS = (None, 32, "32", "32-true", "bf16-mixed", "bf16")
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
    "sync_batchnorm": "leave it out; each process normalises its own minibatches, as a single one does",
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
    ValueError
        If ``precision`` is neither float32 nor ``"bf16-mixed"``.
    """
    valid = [name for name in inspect.signature(Trainer.__init__).parameters if name != "self"]
    for name in options:
        if name in INSTEAD:
            raise TypeError(f"train() does its own updates and cannot take {name}={options[name]!r}: {INSTEAD[name]}.")
        if name not in valid:
            offered = dict.fromkeys(option for option in [*known, *valid] if option not in INSTEAD)
            near = get_close_matches(name, offered, n=3)
            hint = (
                f"Did you mean {' or '.join(near)}?" if near else "See the signature of train() for those that exist."
            )
            raise TypeError(f"train() got an unknown option {name!r}. {hint}")
    if options.get("precision") not in PRECISIONS:
        raise ValueError(
            f'precision={options["precision"]!r} is not offered: pass "bf16-mixed", which computes matrix products in '
            "bfloat16 and the likelihood in float32, or leave it out for float32 throughout."
        )


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
    datamodule: LightningDataModule | None = None,
    at_end: Callable[[], None] = lambda: None,
) -> bool:
    """Train a module in place and leave it on its device, in evaluation mode, with the best weights.

    Global state (random seeds, warning filters, logging levels, number of threads) is as before afterwards. Where
    several processes train together, each makes its updates with ``plan.batch_size`` cells of its own and the mean of
    the gradients, and all of them end with the same weights and the same history.

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
    datamodule
        Where minibatches come from instead; ``train`` then only says how many training cells there are.
    at_end
        Called once the module has the weights of a training that did not fail and made an update, before a Ctrl-C
        raises again.

    Returns
    -------
    bool
        Whether training was interrupted.

    Raises
    ------
    TrainingDivergedError
        If the objective is not finite; the module then has the best weights seen before, or those of the start where
        there was no validation or training took place in processes of its own.
    RuntimeError, ValueError
        If the processes cannot be started, the strategy splits the parameters, or nothing is logged that early stopping
        goes by.

    Warns
    -----
    UserWarning
        If training ended before its first update, and nobody interrupted it.
    """
    if (trainer_options or {}).get("barebones") and plan.early_stopping:
        raise ValueError(
            "barebones=True logs no score, by which early stopping goes: pass early_stopping=False as well."
        )
    n_processes = count_processes(trainer_options or {})
    require_enough_cells(len(train), n_processes)
    steps_per_epoch = math.ceil(len(train) / (plan.batch_size * n_processes))
    per_block = min(MINIBATCHES_PER_BLOCK, steps_per_epoch, plan.validate_every)
    data = (
        CellDataModule(
            source,
            train,
            validation,
            batch_size=plan.batch_size,
            minibatches_per_block=per_block,
            seed=seed,
            first_epoch=int(history.last("epoch")),
        )
        if datamodule is None
        else GivenData(datamodule, n_genes=source.n_genes, minibatches_per_block=per_block)
    )
    validates = data.validates if isinstance(data, GivenData) else len(validation) > 0
    lightning_module = TrainingModule(module, plan, history, len(train), seed)
    best = BestWeights(module, plan.start_counts)
    interrupt = GentleInterrupt()
    own_callbacks: list[Callback] = [best, interrupt]
    if progress_bar:
        own_callbacks.append(TrainingBar(lightning_module))
    if plan.early_stopping and validates:
        steps = _steps_between_validations(plan, steps_per_epoch, per_block)
        patience = max(1, math.ceil(plan.patience / steps))
        own_callbacks.append(PatientEarlyStopping(lightning_module, patience))
    options: dict[str, Any] = {
        "max_steps": plan.max_steps,
        "max_epochs": -1,
        "num_sanity_val_steps": 0,
        "use_distributed_sampler": False,
        "limit_val_batches": 1.0 if validates else 0,
        **_validation_rhythm(plan, steps_per_epoch, per_block),
        **(trainer_options or {}),
    }
    device = next(module.parameters()).device
    start = {name: value.detach().clone() for name, value in module.state_dict().items()}
    has_trained = False
    try:
        with kept_global_state(seed):
            trainer = make_trainer(options, [ScoredWeights(best), *callbacks, *own_callbacks])
            keep_freed_memory()
            if forks_or_spawns(trainer):
                interrupt.wait_for_others()
            # Lightning leaves the mode of a module as it is.
            module.train()
            try:
                trainer.fit(lightning_module, datamodule=data)
            except SystemExit as exit_:
                if not isinstance(exit_.__context__, KeyboardInterrupt):
                    raise
                interrupt.interrupted = True
                if trainer.world_size == 1:
                    best.consider(lightning_module.finish(data.val_dataloader()))
            except ProcessRaisedException as error:
                diverged = divergence_in(error)
                if diverged is None:
                    raise
                raise diverged from error
            interrupt.end()
        has_trained = lightning_module.step > 0
    except TrainingDivergedError:
        module.load_state_dict(start)
        raise
    finally:
        # A Ctrl-C within these milliseconds must not leave other weights, nor a trained model that does not know of it.
        interrupt.end()
        module.to(device)
        best.restore()
        module.eval()
        if has_trained:
            at_end()
        interrupt.release()
    was_interrupted = interrupt.interrupted or lightning_module.stop_requested
    if not (has_trained or was_interrupted):
        warnings.warn(
            "Training ended before its first update, so that the weights are those of before: give it more time "
            "(max_time, a Timer), or leave out the callback that ended it.",
            UserWarning,
            stacklevel=4,
        )
    return was_interrupted


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
