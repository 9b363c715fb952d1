"""Random draws that leave the random state of the process as it was."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["seeded"]


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch's default generators within, and put their states back, also after an error.

    For what draws from the default generators alone: initial weights, torch's distributions, dropout. A GPU of CUDA
    that nobody has used is not woken: that would take some hundred megabytes on each, and processes could not be forked
    any more. Its generator is seeded when it wakes, and after this with the seed that it would have had.

    Parameters
    ----------
    seed
        Seed of the draws within.
    """
    was_awake = torch.cuda.is_initialized()
    before = torch.initial_seed()
    devices = range(torch.cuda.device_count()) if was_awake else range(int(torch.backends.mps.is_available()))
    try:
        with torch.random.fork_rng(devices):
            torch.manual_seed(seed)
            yield
    finally:
        if not was_awake:
            torch.cuda.manual_seed_all(before)
