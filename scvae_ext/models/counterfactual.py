"""Expression of cells under covariates other than their own: set, decode, and draw the counts that would have been."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from anndata import AnnData
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.distributions import Distribution

from scvae_ext.analysis import Overlap, calibrate_intervals, setting_overlap
from scvae_ext.data import CellSource, Registry
from scvae_ext.distributions import NegativeBinomial, Poisson, ZeroInflated
from scvae_ext.minibatch import Minibatch
from scvae_ext.models.inference import Cells, latent_mean, shared_noise
from scvae_ext.models.intervals import Replicate
from scvae_ext.modules import VAE

__all__ = [
    "Setting",
    "abducted_counts",
    "effect_of_settings",
    "group_means",
    "groups_of_cells",
    "overlap_with",
    "read_setting",
    "state_shift",
]

# Cells of a group in either setting, below which their mean states are not compared.
FEWEST_CELLS = 10
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
    if str(value) not in categories:
        raise ValueError(
            f"{argument} sets {key!r} to {value!r}, which was not there at set-up; known are "
            f"{', '.join(map(repr, categories))}."
        )
    return list(categories).index(str(value))


def abducted_counts(
    module: VAE,
    cells: Cells,
    setting: Setting,
    genes: Int[np.ndarray, "chosen"] | None,
    n_samples: int,
    seed: int,
    shift: Float[np.ndarray, "cells latent"] | None = None,
) -> tuple[sp.csr_matrix, ...]:
    r"""Draw the counts that the same cells would have shown under a setting.

    A count is the outcome of the state z and of noise: a Poisson count of the rate :math:`\mu u`, where
    :math:`u \sim \operatorname{Gamma}(\theta, \theta)` is what makes the negative binomial overdispersed. Both are
    abducted from what was seen, :math:`z \sim q(z \mid x)` and
    :math:`u \mid x, z \sim \operatorname{Gamma}(\theta + x, \theta + \mu)`, and the molecules themselves are kept as
    far as the mean :math:`\mu'` under the setting allows:

    .. math:: x' \mid x, u \sim \begin{cases} \operatorname{Binomial}(x, \mu' / \mu) & \mu' \le \mu \\
              x + \operatorname{Poisson}((\mu' - \mu) u) & \mu' > \mu \end{cases}

    Thinned and superposed Poisson counts are Poisson counts, so that :math:`x' \mid u` is one of the rate
    :math:`\mu' u`. For a zero-inflated likelihood the indicator of an extra zero is abducted as well, and kept.

    Parameters
    ----------
    module, cells, setting
        Of what.
    genes
        Positions of the genes, or ``None`` for all.
    n_samples, seed
        Number of draws of each cell, and their seed.
    shift
        What is added to the state of each cell under the setting.
    """
    draws: list[list[sp.csr_matrix]] = [[] for _ in range(n_samples)]
    columns = None if genes is None else torch.from_numpy(genes)
    with torch.random.fork_rng():
        # torch's Gamma and Poisson draw from the default generator alone.
        torch.manual_seed(seed)
        for rows, minibatch in cells:
            move = 0.0 if shift is None else torch.from_numpy(shift[rows]).to(cells.device)
            posterior, changed = module.encode(minibatch), setting.apply(minibatch)
            seen = minibatch.counts.dense()
            for of_sample in draws:
                latent = torch.normal(posterior.qz.loc, posterior.qz.scale)
                library = posterior.log_library
                log_library = None if library is None else torch.normal(library.loc, library.scale)
                factual = module.decode(latent, minibatch, log_library)
                other = module.decode(latent + move, changed, log_library)
                before, after = _rate(factual), _rate(other)
                kept = torch.binomial(seen, (after / before).clamp_max(1))
                gained = torch.poisson((after - before).clamp_min(0) * _abducted_noise(factual, seen))
                counts = (kept + gained).cpu()
                of_sample.append(sp.csr_matrix((counts if columns is None else counts[:, columns]).numpy()))
    return tuple(sp.vstack(of_sample, format="csr") for of_sample in draws)


def _rate(px: Distribution) -> Tensor:
    """Return the mean of the counts, extra zeros left out."""
    rate: Tensor = px.base.mean if isinstance(px, ZeroInflated) else px.mean
    return rate


def _abducted_noise(px: Distribution, seen: Float[Tensor, "cells genes"]) -> Float[Tensor, "cells genes"]:
    """Return a draw of what multiplied the mean, given the counts."""
    base = px.base if isinstance(px, ZeroInflated) else px
    if isinstance(base, Poisson):
        noise = torch.ones_like(seen)
    elif isinstance(base, NegativeBinomial):
        theta = base.inverse_dispersion.expand_as(seen)
        noise = torch._standard_gamma(theta + seen) / (theta + base.mean)
    else:
        raise TypeError(f"{type(base).__name__} is no distribution of counts.")
    if not isinstance(px, ZeroInflated):
        return noise
    log_extra = torch.nn.functional.logsigmoid(px.zero_inflation_logits)
    is_extra = (seen == 0) & (torch.rand_like(seen).log() < log_extra - px.log_prob(torch.zeros_like(seen)))
    # An extra zero hides the rate behind it, and does so under the other setting too.
    return noise * ~is_extra


def group_means(
    module: VAE,
    cells: Cells,
    settings: Sequence[Setting],
    group_of_cell: Int[np.ndarray, "cells"],
    n_groups: int,
    n_samples: int,
    seed: int,
    *,
    states: Float[np.ndarray, "cells latent"] | None = None,
) -> list[Float[np.ndarray, "groups genes"]]:
    """Return the mean expression of each group of cells under each setting, averaged over posterior states.

    Parameters
    ----------
    module, cells, settings
        Of what.
    group_of_cell, n_groups
        Group of each cell, and how many there are.
    n_samples, seed
        Samples of the posterior, the same for all settings, and their seed.
    states
        Known states, in place of the posterior.
    """
    noise = shared_noise(n_samples, module.encoder.mean.out_features, seed, cells.device)
    totals = [np.zeros((n_groups, cells.source.n_genes)) for _ in settings]
    n_used = n_samples if states is None else 1
    for rows, minibatch in cells:
        qz = module.encode(minibatch).qz
        changed = [setting.apply(minibatch) for setting in settings]
        first = 0
        for n_at_once in cells.samples_at_once(minibatch.n_cells, n_used):
            sample = qz.loc + qz.scale * noise[first : first + n_at_once]
            if states is not None:
                sample = torch.from_numpy(states[rows]).to(cells.device).unsqueeze(0)
            first += n_at_once
            for total, other in zip(totals, changed, strict=True):
                expression = module.likelihood.expression(module.decode_hidden(sample, other)).sum(0)
                np.add.at(total, group_of_cell[rows], expression.double().cpu().numpy())
    sizes = np.bincount(group_of_cell, minlength=n_groups)[:, None] * n_used
    return [total / sizes for total in totals]


def effect_of_settings(
    module: VAE,
    cells: Cells,
    settings: Sequence[Setting],
    group_of_cell: Int[np.ndarray, "cells"],
    n_groups: int,
    replicate: Replicate,
    level: float,
    n_samples: int,
    seed: int,
    is_own: bool,
) -> tuple[
    list[Float[np.ndarray, "groups genes"]], Float[np.ndarray, "groups genes"], Float[np.ndarray, "groups genes"]
]:
    """Return mean expression under control and treatment, log2 of their ratio, and half the width of its interval.

    Parameters
    ----------
    module, cells
        Of what.
    settings
        Control and treatment.
    group_of_cell, n_groups
        Group of each cell, and how many there are.
    replicate
        The refitted model, whose error on the same cells is known.
    level
        Share of true effects that intervals are to hold.
    n_samples, seed
        Samples of the posterior, and their seed.
    is_own
        Whether the cells are the model's own, so that the replicate has each of them. Otherwise the errors of the
        replicate's cells together are taken for all groups.
    """
    means = group_means(module, cells, settings, group_of_cell, n_groups, n_samples, seed)
    lfc = _log2_ratio(means)
    every = replicate.cells
    positions = cells.positions if is_own else every.positions
    groups, n_known = (group_of_cell, n_groups) if is_own else (np.zeros(len(positions), dtype=np.int64), 1)
    same = Cells(every.source, positions, every.device, every.batch_size)
    found = group_means(replicate.module, same, settings, groups, n_known, n_samples, seed)
    truth = group_means(module, same, settings, groups, n_known, 1, seed, states=replicate.latent[positions])
    error = _log2_ratio(found) - _log2_ratio(truth)
    half_width = np.empty_like(lfc)
    for group in range(n_groups):
        of_group = error[[group if is_own else 0]]
        nothing = np.zeros_like(of_group)
        calibration = calibrate_intervals(of_group, nothing, replicate.mean_counts)
        half_width[[group]] = calibration.half_width(nothing, level)
    return means, lfc, half_width


def _log2_ratio(means: Sequence[Float[np.ndarray, "groups genes"]]) -> Float[np.ndarray, "groups genes"]:
    control, treated = (np.log2(mean.clip(np.finfo(np.float32).tiny)) for mean in means)
    difference: np.ndarray = treated - control
    return difference


def groups_of_cells(
    adata: AnnData, groupby: str | None, cells: Cells, argument: str = "groupby"
) -> tuple[pd.Index, Int[np.ndarray, "cells"]]:
    """Return the names of the groups, and the group of each cell that was asked for.

    Parameters
    ----------
    adata
        Where the column is.
    groupby
        Its name, or ``None`` for one group of all cells.
    cells
        The cells.
    argument
        Name of the argument, for errors.

    Raises
    ------
    ValueError
        If there is no such column, or a cell has no group.
    """
    if groupby is None:
        return pd.Index(["all"]), np.zeros(len(cells), dtype=np.int64)
    if groupby not in adata.obs:
        raise ValueError(
            f"{argument}={groupby!r} is no column of adata.obs; there are {', '.join(map(repr, adata.obs))}."
        )
    column = adata.obs[groupby].iloc[cells.positions]
    if column.isna().any():
        n_missing = int(column.isna().sum())
        raise ValueError(f"{n_missing} cells have no value in {groupby!r}: leave them out by indices=...")
    codes, names = pd.factorize(column.astype(str), sort=True)
    return pd.Index(names), codes.astype(np.int64)


def overlap_with(module: VAE, own: Cells, settings: Sequence[Setting], cells: Cells, seed: int) -> list[Overlap]:
    """Ask for each setting whether the states of cells were seen under it.

    Parameters
    ----------
    module
        The module.
    own
        All cells of the model's own AnnData.
    settings
        The settings.
    cells
        The cells that are asked about.
    seed
        Seed of permutations.
    """
    reference = latent_mean(module, own, 1, seed)
    query = latent_mean(module, cells, 1, seed)
    return [setting_overlap(reference, setting.is_observed(own.source), query, seed=seed) for setting in settings]


def state_shift(
    module: VAE, own: Cells, group_of_own: Int[np.ndarray, "own"], setting: Setting, cells: Cells, column: str
) -> Float[np.ndarray, "cells latent"]:
    """Return the mean difference between the states of comparable cells in a setting and in that of each cell.

    It is what the state knows of the setting: nothing, where states are what an intervention leaves as it is. A
    difference of means is taken within each group that has ten cells or more in both, and averaged over the groups.

    Parameters
    ----------
    module
        The module.
    own, group_of_own
        All cells of the model's own AnnData, and groups of comparable ones.
    setting
        What is set.
    cells
        The cells that are to be moved.
    column
        Name of the groups, for errors.

    Raises
    ------
    ValueError
        If a continuous covariate is set, or no group has enough cells in both settings.
    """
    if setting.numbers:
        raise ValueError("shift_within compares cells of two settings, not of numbers: leave it out.")
    states = latent_mean(module, own, 1, 0)
    known, asked = setting.observed_values(own.source), setting.observed_values(cells.source)[cells.positions]
    shift = np.zeros((len(cells), states.shape[1]), dtype=np.float32)
    has_setting = (known == setting.wanted).all(1)
    for values in np.unique(asked, axis=0):
        if (values == setting.wanted).all():
            continue
        before = (known == values).all(1)
        differences = []
        for group in np.unique(group_of_own):
            pair = [states[(group_of_own == group) & chosen] for chosen in (before, has_setting)]
            if min(map(len, pair)) >= FEWEST_CELLS:
                differences.append(pair[1].mean(0) - pair[0].mean(0))
        if not differences:
            raise ValueError(
                f"No group of {column!r} has {FEWEST_CELLS} cells both in the setting and out of it, so that states "
                "cannot be compared: choose coarser groups, or leave shift_within out."
            )
        shift[(asked == values).all(1)] = np.mean(differences, axis=0)
    return shift
