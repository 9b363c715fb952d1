"""How many processes train together, and what can go wrong in starting them."""

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning import Trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import DDPStrategy, ParallelStrategy, SingleDeviceStrategy
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher, _SubprocessScriptLauncher
from torch.multiprocessing.spawn import ProcessRaisedException

import __main__
from scvae_ext.train.errors import TrainingDivergedError
from scvae_ext.train.global_state import kept_global_state

__all__ = ["count_processes", "divergence_in", "forks_or_spawns", "make_trainer", "require_enough_cells"]

QUIET: dict[str, Any] = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


def make_trainer(options: Mapping[str, Any], callbacks: Sequence[Callback] = ()) -> Trainer:
    """Return a trainer whose strategy this package can train with.

    Parameters
    ----------
    options, callbacks
        As for :class:`lightning.Trainer`.

    Raises
    ------
    RuntimeError
        If the strategy starts processes that run the script again, and there is no script: in a notebook, or with code
        that was piped into Python.
    ValueError
        If the strategy splits the parameters over devices.
    """
    strategy = options.get("strategy", "auto")
    try:
        trainer = Trainer(callbacks=list(callbacks), **{**QUIET, **options})
    except MisconfigurationException as error:
        if "interactive environment" not in str(error):
            raise
        raise RuntimeError(
            f"strategy={strategy!r} starts processes that run the script again, and a notebook is none: "
            'pass strategy="ddp_notebook".'
        ) from error
    if not isinstance(trainer.strategy, DDPStrategy | SingleDeviceStrategy):
        raise ValueError(
            f"strategy={strategy!r} is a {type(trainer.strategy).__name__}, which splits or replaces the parameters. A "
            'model of this size fits on one device: pass strategy="ddp", which splits the cells.'
        )
    launcher = trainer.strategy.launcher
    if isinstance(launcher, _SubprocessScriptLauncher):
        is_script = __main__.__spec__ is not None or Path(sys.argv[0]).is_file()
        if not (is_script or launcher.cluster_environment.creates_processes_externally):
            raise RuntimeError(
                f"strategy={strategy!r} starts processes that run the script again, and there is no script: write the "
                'code into a file, or pass strategy="ddp_notebook".'
            )
    return trainer


def count_processes(options: Mapping[str, Any]) -> int:
    """Return how many processes train together with these options, on all machines.

    Parameters
    ----------
    options
        Options of :class:`lightning.Trainer`.

    Raises
    ------
    RuntimeError, ValueError
        As for :func:`make_trainer`.
    """
    devices = options.get("devices", "auto")
    one_device = devices in (1, "1") or (isinstance(devices, list | tuple) and len(devices) == 1)
    if one_device and options.get("strategy", "auto") == "auto" and options.get("num_nodes", 1) == 1:
        return 1
    with kept_global_state(seed=0):
        return int(make_trainer(options).world_size)


def require_enough_cells(n_train: int, n_processes: int) -> None:
    """Raise where some process would have no cell to train on.

    Parameters
    ----------
    n_train, n_processes
        Number of training cells and of processes.

    Raises
    ------
    ValueError
        If there are fewer cells than processes.
    """
    if n_train < n_processes:
        raise ValueError(f"{n_train} training cells cannot be spread over {n_processes} processes: use fewer devices.")


def forks_or_spawns(trainer: Trainer) -> bool:
    """Return whether training takes place in processes other than this one, which only waits for them.

    Parameters
    ----------
    trainer
        The trainer.
    """
    strategy = trainer.strategy
    return isinstance(strategy, ParallelStrategy) and isinstance(strategy.launcher, _MultiProcessingLauncher)


def divergence_in(error: ProcessRaisedException) -> TrainingDivergedError | None:
    """Return the divergence that another process has died of, or ``None`` where it was something else.

    Parameters
    ----------
    error
        What the process left behind, with its traceback as text.
    """
    found = re.findall(rf"^\S*{TrainingDivergedError.__name__}: (.*)$", str(error), flags=re.MULTILINE)
    return TrainingDivergedError(found[-1]) if found else None
