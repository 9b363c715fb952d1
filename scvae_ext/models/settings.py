"""Covariates that are set to values other than their own."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Int

from scvae_ext.data import CellSource, Registry
from scvae_ext.data.names import find_category
from scvae_ext.minibatch import Minibatch

__all__ = ["Setting", "read_setting"]

# Standard deviations of a continuous covariate within which a cell counts as observed at a value.
NEAR_VALUE = 0.5


@dataclass(frozen=True)
class Setting:
    """Covariates that are set, by the position that a minibatch has them at.

    Parameters
    ----------
    values
        What the user set, by name.
    batch
        Batch, or ``None`` where it stays.
    categories
        Category by column.
    numbers
        Standardised value by column.
    """

    values: Mapping[str, str | float]
    batch: int | None
    categories: Mapping[int, int]
    numbers: Mapping[int, float]

    def apply(self, minibatch: Minibatch) -> Minibatch:
        """Return the cells with their covariates set.

        Parameters
        ----------
        minibatch
            The cells.
        """
        batch = minibatch.batch if self.batch is None else torch.full_like(minibatch.batch, self.batch)
        categorical = minibatch.categorical_covariates.clone()
        for column, category in self.categories.items():
            categorical[:, column] = category
        continuous = minibatch.continuous_covariates.clone()
        for column, number in self.numbers.items():
            continuous[:, column] = number
        return replace(minibatch, batch=batch, categorical_covariates=categorical, continuous_covariates=continuous)

    def targets(self, minibatch: Minibatch) -> Sequence[Minibatch]:
        """Return the one setting that expression is asked for in.

        Parameters
        ----------
        minibatch
            The cells.
        """
        return [self.apply(minibatch)]

    def observed_values(self, source: CellSource) -> Int[np.ndarray, "cells set"]:
        """Return the category of each cell in each covariate that is set; ``wanted`` is what they are set to.

        Parameters
        ----------
        source
            The cells.
        """
        columns = [] if self.batch is None else [source.batch.numpy()]
        columns += [source.categorical_covariates[:, column].numpy() for column in self.categories]
        return np.stack(columns, axis=1)

    @property
    def wanted(self) -> list[int]:
        """Categories that are set, in the order of :meth:`observed_values`."""
        return [*([] if self.batch is None else [self.batch]), *self.categories.values()]

    def is_observed(self, source: CellSource) -> Bool[np.ndarray, "cells"]:
        """Return which cells were observed in this setting, continuous covariates within half a standard deviation.

        Parameters
        ----------
        source
            The cells.
        """
        found = np.ones(source.n_cells, dtype=bool)
        if self.batch is not None:
            found &= source.batch.numpy() == self.batch
        for column, category in self.categories.items():
            found &= source.categorical_covariates[:, column].numpy() == category
        for column, number in self.numbers.items():
            found &= np.abs(source.continuous_covariates[:, column].numpy() - number) <= NEAR_VALUE
        return found


def read_setting(argument: str, asked: Mapping[str, str | float], registry: Registry) -> Setting:
    """Resolve covariates by name.

    Parameters
    ----------
    argument
        Name of the argument, for errors.
    asked
        Value by column of ``adata.obs``.
    registry
        What was set up.

    Raises
    ------
    ValueError
        If a covariate was not set up or a category is unknown; the message lists what exists.
    """
    factors = {covariate.key: i for i, covariate in enumerate(registry.categorical_covariates)}
    quantities = {covariate.key: i for i, covariate in enumerate(registry.continuous_covariates)}
    known = [*([] if registry.batch_key is None else [registry.batch_key]), *factors, *quantities]
    if not known:
        raise ValueError(
            f"{argument}={asked!r} sets covariates, but the model has none: pass batch_key=..., "
            "categorical_covariate_keys=[...] or continuous_covariate_keys=[...] to setup_anndata and train again."
        )
    if not isinstance(asked, Mapping) or not asked:
        raise ValueError(f"{argument}={asked!r} must say what is set, for example {{{known[0]!r}: ...}}.")
    batch: int | None = None
    categories: dict[int, int] = {}
    numbers: dict[int, float] = {}
    for key, value in asked.items():
        if key == registry.batch_key:
            batch = _category(argument, key, value, registry.batch_categories)
        elif key in factors:
            column = factors[key]
            categories[column] = _category(argument, key, value, registry.categorical_covariates[column].categories)
        elif key in quantities:
            column = quantities[key]
            if isinstance(value, bool | str) or not np.isfinite(value):
                raise ValueError(f"{argument} sets {key!r} to {value!r}: pass a finite number.")
            covariate = registry.continuous_covariates[column]
            numbers[column] = float((value - covariate.mean) / covariate.std)
        else:
            raise ValueError(
                f"{argument} sets {key!r}, which is no covariate of the model; known are {', '.join(map(repr, known))}."
            )
    return Setting(dict(asked), batch, categories, numbers)


def _category(argument: str, key: str, value: str | float, categories: Sequence[str]) -> int:
    position = find_category(value, categories)
    if position is None:
        raise ValueError(
            f"{argument} sets {key!r} to {value!r}, which was not there at set-up; known are "
            f"{', '.join(map(repr, categories))}."
        )
    return position
