"""Expression of cells under covariates other than their own: set and decode."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from jaxtyping import Float, Int

from scvae_ext.analysis import Overlap, calibrate_intervals, setting_overlap
from scvae_ext.data.fields import in_pandas
from scvae_ext.models.cells import Cells, shared_noise
from scvae_ext.models.groups import obs_column
from scvae_ext.models.intervals import Replicate
from scvae_ext.models.settings import Setting
from scvae_ext.models.state_shift import GroupedStates, mean_states, state_shift
from scvae_ext.modules import VAE

__all__ = [
    "effect_of_settings",
    "group_means",
    "groups_of_cells",
    "overlap_with",
]


def group_means(
    module: VAE,
    cells: Cells,
    settings: Sequence[Setting],
    group_of_cell: Int[np.ndarray, "cells"],
    n_groups: int,
    n_samples: int,
    seed: int,
    *,
    states: Float[np.ndarray, "cells state"] | None = None,
    shifts: Sequence[Float[np.ndarray, "cells state"]] | None = None,
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
    shifts
        What is added to the state of each cell under each setting.
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
            for place, (total, other) in enumerate(zip(totals, changed, strict=True)):
                moved = sample
                if shifts is not None:
                    moved = sample + torch.from_numpy(shifts[place][rows]).to(cells.device)
                expression = module.likelihood.expression(module.decode_hidden(moved, other)).sum(0)
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
    own: Int[np.ndarray, "cells"] | None,
    *,
    known: GroupedStates | None = None,
    shifts: Sequence[Float[np.ndarray, "cells state"]] | None = None,
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
    own
        Positions of the cells among the model's own, so that the replicate has each of them. Otherwise ``None``: the
        errors of the replicate's cells together are taken for all groups.
    known, shifts
        The model's own cells by comparable groups, and what is added to the state of each cell under each setting
        because of them.
    """
    every = replicate.cells
    positions = every.positions if own is None else own
    same = replace(every, positions=positions)
    of_found = of_truth = None
    if known is not None:
        # The shift as the replicate finds it, and as it is in the states that were simulated from.
        of_found, of_truth = (
            [state_shift(each, setting, each, positions) for setting in settings]
            for states in (mean_states(replicate.module, every), replicate.latent)
            for each in [replace(known, source=every.source, states=states)]
        )
    means = group_means(module, cells, settings, group_of_cell, n_groups, n_samples, seed, shifts=shifts)
    lfc = _log2_ratio(means)
    groups, n_known = (np.zeros(len(positions), dtype=np.int64), 1) if own is None else (group_of_cell, n_groups)
    found = group_means(replicate.module, same, settings, groups, n_known, n_samples, seed, shifts=of_found)
    latent = replicate.latent[positions]
    truth = group_means(module, same, settings, groups, n_known, 1, seed, states=latent, shifts=of_truth)
    error = _log2_ratio(found) - _log2_ratio(truth)
    half_width = np.empty_like(lfc)
    for group in range(n_groups):
        of_group = error[[0 if own is None else group]]
        nothing = np.zeros_like(of_group)
        calibration = calibrate_intervals(of_group, nothing, replicate.mean_counts)
        half_width[[group]] = calibration.half_width(nothing, level)
    return means, lfc, half_width


def _log2_ratio(means: Sequence[Float[np.ndarray, "groups genes"]]) -> Float[np.ndarray, "groups genes"]:
    control, treated = (np.log2(mean.clip(np.finfo(np.float32).tiny)) for mean in means)
    difference: np.ndarray = treated - control
    return difference


def groups_of_cells(adata: AnnData, groupby: str | None, cells: Cells) -> tuple[pd.Index, Int[np.ndarray, "cells"]]:
    """Return the names of the groups, and the group of each cell that was asked for.

    Parameters
    ----------
    adata
        Where the column is.
    groupby
        Its name, or ``None`` for one group of all cells.
    cells
        The cells.

    Raises
    ------
    ValueError
        If there is no such column, or a cell has no group.
    """
    if groupby is None:
        return pd.Index(["all"]), np.zeros(len(cells), dtype=np.int64)
    column = obs_column(in_pandas(adata.obs), "groupby", groupby).iloc[cells.positions]
    if column.isna().any():
        n_missing = int(column.isna().sum())
        raise ValueError(f"{n_missing} cells have no value in {groupby!r}: leave them out by indices=...")
    codes, names = pd.factorize(column.astype(str), sort=True)
    return pd.Index(names), codes.astype(np.int64)


def overlap_with(
    module: VAE,
    own: Cells,
    settings: Sequence[Setting],
    cells: Cells,
    seed: int,
    shifts: Sequence[Float[np.ndarray, "cells state"]] | None = None,
) -> list[Overlap]:
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
    shifts
        What is added to the state of each cell under each setting.
    """
    reference, query = mean_states(module, own), mean_states(module, cells)
    moved = [query] * len(settings) if shifts is None else [query + shift for shift in shifts]
    reference, *latent = (module.to_latent(torch.from_numpy(states)).numpy() for states in (reference, *moved))
    return [
        setting_overlap(reference, setting.is_observed(own.source), states, seed=seed)
        for setting, states in zip(settings, latent, strict=True)
    ]
