"""Training length and weight decay where the user gives none, found by measurement (see the page on benchmarks)."""

import math

import numpy as np
from jaxtyping import Int

from scvae_ext.data import CellSource
from scvae_ext.data.streaming import cells_per_window

__all__ = [
    "default_max_steps",
    "default_patience",
    "default_weight_decay",
    "scored_cells",
    "steps_between_validations",
]

STEPS_AT_REFERENCE, REFERENCE_CELLS, STEPS_EXPONENT = 1500, 2500, 0.75
STEPS_RANGE = (1000, 50000)
LEAST_PATIENCE = 500

DECAY_TIMES_CELLS = 6000.0
DECAY_RANGE = (0.0, 10.0)

LEAST_STEPS_BETWEEN_VALIDATIONS = 50
TRAINED_PER_SCORED_CELL = 3


def default_max_steps(n_train: int, steps_per_epoch: int, n_processes: int = 1) -> int:
    r"""Return a number of optimiser steps that grows with the number of training cells, to the power of 3/4.

    .. math:: 1500 \left(\frac n{2500}\right)^{3/4}

    between 1,000 and 50,000, rounded up to whole epochs. More steps overfit, the fewer cells the sooner; fewer leave
    something to be learned, the more cells the more, and less than 1,000 are too few to converge where a model could go
    far, whatever the number of cells. Processes that train together share the steps out, because each
    step then sees as many minibatches: as many steps of larger ones were measured to overfit.

    Parameters
    ----------
    n_train
        Number of training cells.
    steps_per_epoch
        Steps in one pass over them.
    n_processes
        Number of processes that train together.
    """
    steps = STEPS_AT_REFERENCE * math.pow(n_train / REFERENCE_CELLS, STEPS_EXPONENT)
    steps = min(max(steps, STEPS_RANGE[0]), STEPS_RANGE[1]) / n_processes
    return math.ceil(steps / steps_per_epoch) * steps_per_epoch


def default_patience(max_steps: int) -> int:
    """Return the steps without improvement before training ends: a quarter of the planned ones, at least 500.

    While the learning rate is high, held-out cells are described worse for some hundred steps before the fall of the
    rate makes up for it.

    Parameters
    ----------
    max_steps
        Planned number of optimiser steps.
    """
    return max(LEAST_PATIENCE, max_steps // 4)


def default_weight_decay(n_train: int) -> float:
    """Return a weight decay in inverse proportion to the number of training cells.

    A Gaussian prior on the weights counts as much as a fixed number of cells, so that its share of the objective falls
    as cells are added.

    Parameters
    ----------
    n_train
        Number of training cells.
    """
    return min(max(DECAY_TIMES_CELLS / n_train, DECAY_RANGE[0]), DECAY_RANGE[1])


def scored_cells(source: CellSource, validation: Int[np.ndarray, "validation"], seed: int) -> Int[np.ndarray, "scored"]:
    """Return the held-out cells that validation scores: all of them, or as many as are held in memory at once.

    Parameters
    ----------
    source, validation
        Held-out cells.
    seed
        Seed of the choice.
    """
    most = len(validation) if source.rows_per_block is None else cells_per_window(source, 1)
    if len(validation) <= most:
        return validation
    return np.sort(np.random.default_rng(seed).choice(validation, most, replace=False))


def steps_between_validations(n_scored: int, batch_size: int) -> int:
    """Return a number of steps that trains on three times as many cells as a validation scores, at least 50.

    Parameters
    ----------
    n_scored, batch_size
        Cells of a validation, and of a minibatch.
    """
    return max(LEAST_STEPS_BETWEEN_VALIDATIONS, math.ceil(TRAINED_PER_SCORED_CELL * n_scored / batch_size))
