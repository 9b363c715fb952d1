"""How long, how fast and with which weights: the plan of one training run."""

import math
from dataclasses import dataclass
from typing import Any, get_args

from scvae_ext.modules import Bound

__all__ = ["TrainingPlan"]


@dataclass(frozen=True)
class TrainingPlan:
    """Everything that an optimiser step depends on besides data and weights.

    Parameters
    ----------
    max_steps
        Number of optimiser steps.
    batch_size
        Cells of a minibatch.
    learning_rate
        Peak of the schedule.
    lr_warmup
        Fraction of the steps over which the learning rate rises linearly to its peak; it then falls along a cosine.
    kl_warmup
        Fraction of the steps over which the weight of the KL divergence rises linearly to ``max_kl_weight``.
    max_kl_weight
        Final weight of the KL divergence; one for the evidence lower bound.
    objective
        ``"elbo"``, or ``"iwae"``, the importance-weighted bound with the doubly reparameterised gradient.
    n_samples
        Samples of each cell: their mean for the ELBO, the K of the importance-weighted bound.
    free_bits
        Nats of divergence that each latent dimension has for free, as a mean over the minibatch.
    batch_penalty
        Nats per cell that full dependence of the latent on the batch costs.
    penalty_rise
        Fractions of the steps between which that penalty rises linearly from nothing. With all of it from the start,
        the latent gives up what goes with the batch before it has found the rest, and does not come back.
    weight_decay
        Decoupled weight decay of the linear maps: each step shrinks them by this times the learning rate.
    dispersion_lr_scale
        Factor of the learning rate of the dispersions, which lie orders of magnitude apart.
    early_stopping
        Whether training ends when the validation score no longer improves.
    patience
        Number of steps without improvement before it does.
    validate_every
        Number of steps between two validations, rounded to whole epochs where an epoch is shorter.
    start_counts
        Whether the weights of the start are among those of which the best are kept; they are then scored first.
    """

    max_steps: int
    batch_size: int = 128
    learning_rate: float = 4e-3
    lr_warmup: float = 0.1
    kl_warmup: float = 0.3
    max_kl_weight: float = 1.0
    objective: Bound = "elbo"
    n_samples: int = 1
    free_bits: float = 0.0
    batch_penalty: float = 0.0
    penalty_rise: tuple[float, float] = (0.2, 0.6)
    weight_decay: float = 0.0
    dispersion_lr_scale: float = 5.0
    early_stopping: bool = True
    patience: int = 500
    validate_every: int = 50
    start_counts: bool = False

    def __post_init__(self) -> None:
        # As Python's own numbers: NumPy's and torch's would reach the history, and JSON cannot hold them.
        numbers: dict[str, float] = {}
        for name in ("max_steps", "batch_size", "n_samples", "patience", "validate_every"):
            value = getattr(self, name)
            number = _to_float(value)
            if not (number.is_integer() and number >= 1):
                raise ValueError(f"{name}={value!r} must be a whole number of at least 1.")
            numbers[name] = int(number)
        numbers["learning_rate"] = _to_float(self.learning_rate)
        if not 0 < numbers["learning_rate"] < math.inf:
            raise ValueError(f"learning_rate={self.learning_rate!r} must be positive; the default is 4e-3.")
        for name in ("lr_warmup", "kl_warmup"):
            value = getattr(self, name)
            numbers[name] = _to_float(value)
            if not 0 <= numbers[name] <= 1:
                raise ValueError(f"{name}={value!r} must be a fraction of the training, between 0 and 1.")
        if not 0 <= self.penalty_rise[0] <= self.penalty_rise[1] <= 1:
            raise ValueError(f"penalty_rise={self.penalty_rise!r} must be two fractions of the training, in order.")
        for name in ("max_kl_weight", "weight_decay", "free_bits", "batch_penalty"):
            value = getattr(self, name)
            numbers[name] = _to_float(value)
            if not 0 <= numbers[name] < math.inf:
                raise ValueError(f"{name}={value!r} must be at least 0.")
        for name, number in numbers.items():
            object.__setattr__(self, name, number)
        if self.objective not in get_args(Bound):
            raise ValueError(f'objective={self.objective!r} is not known: use "elbo" or "iwae".')
        if self.objective == "iwae" and self.n_samples == 1:
            raise ValueError('objective="iwae" with n_samples=1 is the ELBO: pass n_samples=5, or objective="elbo".')
        if self.objective == "iwae" and self.free_bits:
            raise ValueError(
                f"free_bits={self.free_bits!r} changes the divergence of the ELBO, which the importance-weighted bound "
                'has not: leave it at 0, or pass objective="elbo".'
            )
        if self.objective == "iwae" and self.batch_penalty:
            raise ValueError(
                f"batch_penalty={self.batch_penalty!r} goes with the ELBO, whose samples are those of the posterior: "
                'leave it at 0, or pass objective="elbo".'
            )

    def learning_rate_at(self, step: int) -> float:
        """Return the learning rate of a step, counted from zero.

        Parameters
        ----------
        step
            The step.
        """
        rise = self.lr_warmup * self.max_steps
        if step < rise:
            return self.learning_rate * (step + 1) / (rise + 1)
        fall = (step - rise) / max(self.max_steps - rise, 1)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * min(fall, 1.0)))

    def kl_weight_at(self, step: int) -> float:
        """Return the weight of the KL divergence at a step, counted from zero.

        Parameters
        ----------
        step
            The step.
        """
        rise = self.kl_warmup * self.max_steps
        return self.max_kl_weight * min(1.0, (step + 1) / rise) if rise > 0 else self.max_kl_weight

    def penalty_share_at(self, step: int) -> float:
        """Return the share of the penalty on batches that counts at a step, counted from zero.

        Parameters
        ----------
        step
            The step.
        """
        start, end = (fraction * self.max_steps for fraction in self.penalty_rise)
        return min(1.0, max(0.0, (step + 1 - start) / (end - start))) if end > start else float(step + 1 > start)

    @property
    def settled_from(self) -> float:
        """Step from which on the objective stays as it is."""
        settled = max(self.kl_warmup, self.penalty_rise[1] if self.batch_penalty else 0.0)
        return settled * self.max_steps


def _to_float(value: Any) -> float:
    """Return a number of Python, NumPy or torch as one of Python, and not a number for all that is none."""
    if isinstance(value, bool | str | bytes) or getattr(value, "ndim", 0) > 0:
        return math.nan
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan
