"""Expression of cells under covariates other than their own: set, decode, and draw the counts that would have been."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from anndata import AnnData
from jaxtyping import Float, Int
from torch import Tensor
from torch.distributions import Distribution

from scvae_ext.analysis import Overlap, calibrate_intervals, setting_overlap
from scvae_ext.data.fields import in_pandas
from scvae_ext.distributions import NegativeBinomial, Poisson, ZeroInflated
from scvae_ext.models.cells import Cells, shared_noise
from scvae_ext.models.groups import obs_column
from scvae_ext.models.intervals import Replicate
from scvae_ext.models.settings import Setting
from scvae_ext.models.state_shift import GroupedStates, mean_states, state_shift
from scvae_ext.modules import VAE
from scvae_ext.random_state import seeded

__all__ = [
    "abducted_counts",
    "effect_of_settings",
    "group_means",
    "groups_of_cells",
    "overlap_with",
]


def abducted_counts(
    module: VAE,
    cells: Cells,
    setting: Setting,
    genes: Int[np.ndarray, "chosen"] | None,
    n_samples: int,
    seed: int,
    shift: Float[np.ndarray, "cells state"] | None = None,
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
    with seeded(seed):  # torch's Gamma and Poisson draw from the default generator alone
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
    same = Cells(every.source, positions, every.device, every.batch_size)
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
