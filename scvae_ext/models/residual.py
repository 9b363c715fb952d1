"""Residual factors, added to a trained model and kept where held-out cells are better described with them."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self, TypeAlias

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from scvae_ext.models.cells import Cells, evaluating
from scvae_ext.models.inference import marginal_log_likelihood
from scvae_ext.modules import VAE, copy_weights

__all__ = ["FactorTest", "add_factors", "choose_cells", "choose_factors"]

MakeVAE: TypeAlias = Callable[[int], VAE]

# One-sided 2.3%: what a factor that does nothing is kept by.
STANDARD_ERRORS = 2.0
N_SAMPLES = 50
MOST_CELLS = 2000


@dataclass(frozen=True)
class FactorTest:
    """Which residual factors were kept, and what held-out cells said about each.

    Parameters
    ----------
    gain, standard_error
        What the evidence of a cell loses without the factor, in nats, and the standard error over cells; ``None``
        where no cells were held out.
    active
        Whether the factor was kept.
    together, together_error
        What the evidence of a cell gains by all factors with a gain of their own, over the model without any.
    n_cells
        Number of held-out cells.
    n_steps
        Number of optimiser steps that the weights with factors took beyond those without.
    """

    gain: tuple[float | None, ...]
    standard_error: tuple[float | None, ...]
    active: tuple[bool, ...]
    together: float | None
    together_error: float | None
    n_cells: int
    n_steps: int = 0

    def to_frame(self) -> pd.DataFrame:
        """Return a row for each factor, and one for those with a gain of their own together."""
        names = [f"residual_{factor}" for factor in range(len(self.gain))]
        return pd.DataFrame(
            {
                "gain": np.array([*self.gain, self.together], dtype=float),
                "standard_error": np.array([*self.standard_error, self.together_error], dtype=float),
                "active": [*self.active, any(self.active)],
            },
            index=[*names, "together"],
        )

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON can hold it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Read what :meth:`to_dict` gave.

        Parameters
        ----------
        values
            As it was read from JSON.
        """
        lists = {name: tuple(values[name]) for name in ("gain", "standard_error", "active")}
        return cls(**{**values, **lists})


def add_factors(base: VAE, make: MakeVAE, n_factors: int) -> VAE:
    """Return a VAE that is the given one, with further residual factors at their random start.

    Parameters
    ----------
    base
        A VAE without factors.
    make
        Builds a VAE that differs from it in the number of factors alone.
    n_factors
        Number of factors.
    """
    return _on_the_device_of(base, make(n_factors), ())


def choose_cells(validation: Int[np.ndarray, "validation"], seed: int) -> Int[np.ndarray, "chosen"]:
    """Return the held-out cells to judge factors by, at most 2,000.

    Parameters
    ----------
    validation
        Held-out cells.
    seed
        Seed of the choice.
    """
    if len(validation) <= MOST_CELLS:
        return validation
    return np.sort(np.random.default_rng(seed).choice(validation, MOST_CELLS, replace=False))


def choose_factors(base: VAE, full: VAE, make: MakeVAE, cells: Cells, seed: int) -> tuple[VAE, FactorTest]:
    r"""Return the VAE with the residual factors that held-out cells are better described with, or the one without.

    With :math:`\log \hat p(x_n)` the importance-weighted estimate of a cell's evidence from 50 samples of the encoder's
    posterior, the gain of a factor is

    .. math:: d_n = \log \hat p(x_n) - \log \hat p_{-j}(x_n)

    where :math:`p_{-j}` is the same VAE with the factor taken out: no loadings, no place in the posterior. A factor is
    kept where the mean of :math:`d_n` is above two standard errors, :math:`\operatorname{sd}(d_n) / \sqrt n`. Of those
    that are not, the one of the least gain is taken out, and the others are asked again, until all that are left pass.
    Those have to pass once more, together, against the VAE that was trained without any.

    Parameters
    ----------
    base
        The VAE that was trained without factors.
    full
        The same, trained further with factors.
    make
        Builds a VAE with some number of factors.
    cells
        Held-out cells; all factors are kept where there are fewer than two.
    seed
        Seed of the samples.
    """
    left, n_cells = list(range(full.residual_rank)), len(cells)
    unknown = (None,) * full.residual_rank
    if n_cells < 2:
        return full, FactorTest(unknown, unknown, (True,) * full.residual_rank, None, None, n_cells)

    def score(vae: VAE) -> Float[np.ndarray, "cells"]:
        with evaluating(vae):
            return marginal_log_likelihood(vae, cells, N_SAMPLES, seed)

    gains: dict[int, tuple[float, float]] = {}
    current, of_current = full, score(full)
    while left:
        without = {factor: _with_factors(full, make, [other for other in left if other != factor]) for factor in left}
        scores = {factor: score(vae) for factor, vae in without.items()}
        gains |= {factor: _paired(of_current - scores[factor]) for factor in left}
        failing = [factor for factor in left if not _passes(*gains[factor])]
        if not failing:
            break
        worst = min(failing, key=lambda factor: gains[factor][0])
        left.remove(worst)
        current, of_current = without[worst], scores[worst]
    together = _paired(of_current - score(base)) if left else None
    if together is None or not _passes(*together):
        left, current = [], base
    mean, error = zip(*(gains[factor] for factor in range(full.residual_rank)), strict=True)
    active = tuple(factor in left for factor in range(full.residual_rank))
    of_all, error_of_all = (None, None) if together is None else together
    return current, FactorTest(mean, error, active, of_all, error_of_all, n_cells)


def _with_factors(full: VAE, make: MakeVAE, factors: Sequence[int]) -> VAE:
    return _on_the_device_of(full, make(len(factors)), factors)


def _on_the_device_of(source: VAE, vae: VAE, factors: Sequence[int]) -> VAE:
    vae.to(next(source.parameters()).device)
    copy_weights(source, vae, factors)
    return vae.train(source.training)


def _paired(difference: Float[np.ndarray, "cells"]) -> tuple[float, float]:
    return float(difference.mean()), float(difference.std(ddof=1) / math.sqrt(len(difference)))


def _passes(gain: float, error: float) -> bool:
    return gain > STANDARD_ERRORS * error
