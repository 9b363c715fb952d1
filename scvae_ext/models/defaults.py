"""Training length where the user gives none."""

import math

__all__ = ["default_max_steps"]

MIN_STEPS = 1000
MAX_STEPS = 20000


def default_max_steps(n_cells: int, batch_size: int) -> int:
    """Return the number of optimiser steps for a number of training cells.

    Parameters
    ----------
    n_cells
        Number of training cells.
    batch_size
        Cells of a minibatch.
    """
    steps_per_epoch = math.ceil(n_cells / batch_size)
    epochs = math.ceil(max(MIN_STEPS, 40 * steps_per_epoch) / steps_per_epoch)
    return epochs * steps_per_epoch
