"""State of the whole process that training touches, and gives back."""

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

from scvae_ext.nn.precision import single_precision
from scvae_ext.random_state import seeded

__all__ = ["kept_global_state", "seed_of_process"]

# What Lightning, and cuBLAS for deterministic algorithms, set in the environment.
VARIABLES = ("CUBLAS_WORKSPACE_CONFIG", "OMP_NUM_THREADS")
LOGGERS = ("lightning.pytorch", "lightning.fabric", "pytorch_lightning")


@contextmanager
def kept_global_state(seed: int) -> Iterator[None]:
    """Seed torch, keep remarks on hardware, workers and tips out of the notebook, and put everything back.

    Parameters
    ----------
    seed
        Seed of the random draws within.
    """
    with ExitStack() as kept:
        for context in (_quiet(), _torch_flags(), single_precision(), seeded(seed)):
            kept.enter_context(context)
        yield


def seed_of_process(seed: int, rank: int) -> int:
    """Return a seed of its own for each process, that of the first unchanged.

    Parameters
    ----------
    seed
        Seed of the training.
    rank
        Number of the process.
    """
    if rank == 0:
        return seed
    # An odd multiplier keeps the seeds of all processes apart, modulo 2^63.
    return (seed + rank * 0x9E3779B97F4A7C15) % 2**63


@contextmanager
def _torch_flags() -> Iterator[None]:
    """Put back what the options ``deterministic``, ``benchmark`` and ``devices`` of a Trainer set for the process."""
    environment = {name: os.environ.get(name) for name in VARIABLES}
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark = torch.backends.cudnn.benchmark
    n_threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        torch.backends.cudnn.benchmark = benchmark
        if torch.get_num_threads() != n_threads:
            torch.set_num_threads(n_threads)
        for name, value in environment.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def _quiet() -> Iterator[None]:
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
