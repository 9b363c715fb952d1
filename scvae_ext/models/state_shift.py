"""What the latent state knows of a setting, and how it is carried over to cells that were not seen under it."""

from dataclasses import dataclass, replace

import numpy as np
from anndata import AnnData
from jaxtyping import Float, Int, Shaped

from scvae_ext.data import CellSource
from scvae_ext.data.fields import in_pandas
from scvae_ext.models.cells import Cells
from scvae_ext.models.groups import obs_column
from scvae_ext.models.settings import Setting
from scvae_ext.modules import VAE

__all__ = ["GroupedStates", "grouped_states", "mean_states", "state_shift"]

# Cells of a group in either setting, below which their mean states are not compared.
FEWEST_CELLS = 10


@dataclass(frozen=True, eq=False)
class GroupedStates:
    """All cells of a source, with their states, by groups of comparable ones.

    Parameters
    ----------
    source
        The cells.
    states
        Mean state of each.
    groups
        Name of the group of each, empty for none.
    column
        Column of ``obs`` with the groups, for errors.
    """

    source: CellSource
    states: Float[np.ndarray, "cells state"]
    groups: Shaped[np.ndarray, "cells"]
    column: str


def grouped_states(module: VAE, cells: Cells, adata: AnnData, shift_within: str) -> GroupedStates:
    """Return all cells of a source by groups.

    Parameters
    ----------
    module
        The module.
    cells
        Cells of the source.
    adata, shift_within
        Where the column with the groups is, and its name.

    Raises
    ------
    ValueError
        If there is no such column.
    """
    column = obs_column(in_pandas(adata.obs), "shift_within", shift_within)
    groups = column.astype(str).where(column.notna(), "").to_numpy(dtype=str)
    everything = replace(cells, positions=np.arange(cells.source.n_cells))
    return GroupedStates(cells.source, mean_states(module, everything), groups, shift_within)


def mean_states(module: VAE, cells: Cells) -> Float[np.ndarray, "cells state"]:
    """Return the mean of each cell's Gaussian posterior, before any map onto the simplex, with residual factors.

    Parameters
    ----------
    module, cells
        Of what.
    """
    states = np.empty((len(cells), module.encoder.mean.out_features), dtype=np.float32)
    for rows, minibatch in cells:
        states[rows] = module.encode(minibatch).qz.loc.cpu().numpy()
    return states


def state_shift(
    own: GroupedStates, setting: Setting, asked: GroupedStates, positions: Int[np.ndarray, "chosen"]
) -> Float[np.ndarray, "chosen state"]:
    r"""Return the mean difference between the states of comparable cells in a setting and in that of each cell.

    It is what the state knows of the setting: nothing, where states are what an intervention leaves as it is. A
    difference of means :math:`\delta_j` is taken within each group j that has ten cells or more in both. Cells of such
    a group get its own. Those of another group, with the mean state c, get an average of them,

    .. math:: \frac{\sum_j \delta_j / d_j^2}{\sum_j 1 / d_j^2}, \qquad
              d_j^2 = \sum_k \frac{(c_k - c_{jk})^2}{s_k^2}

    with :math:`c_j` the mean state of a group's cells before, and :math:`s^2` the variance within groups: what a
    setting does depends on the state, and like states say most about it. Source, for the weights: Shepard, Proceedings
    of the 23rd ACM National Conference, 517 (1968).

    Parameters
    ----------
    own
        The model's own cells.
    setting
        What is set.
    asked, positions
        A source, and which of its cells are to be moved.

    Raises
    ------
    ValueError
        If a continuous covariate is set, or no group has enough cells in both settings.
    """
    if setting.numbers:
        raise ValueError("shift_within compares cells of two settings, not of numbers: leave it out.")
    known, observed = (setting.observed_values(each.source) for each in (own, asked))
    has_setting = (known == setting.wanted).all(1)
    shift = np.zeros_like(asked.states)
    for values in np.unique(observed[positions], axis=0):
        if (values == setting.wanted).all():
            continue
        before, here = (known == values).all(1), (observed == values).all(1)
        differences, centres, variances = {}, [], []
        for group in np.unique(own.groups[own.groups != ""]):
            pair = [own.states[(own.groups == group) & chosen] for chosen in (before, has_setting)]
            if min(map(len, pair)) >= FEWEST_CELLS:
                differences[group] = pair[1].mean(0) - pair[0].mean(0)
                centres.append(pair[0].mean(0))
                variances.append(pair[0].var(0))
        if not differences:
            raise ValueError(
                f"No group of {own.column!r} has {FEWEST_CELLS} cells both in the setting and out of it, so that "
                "states cannot be compared: choose coarser groups, or leave shift_within out."
            )
        for group in np.unique(asked.groups[here]):
            members = here & (asked.groups == group)
            if group in differences:
                shift[members] = differences[group]
                continue
            away = np.square(asked.states[members].mean(0) - np.stack(centres)) / np.mean(variances, axis=0)
            weight = 1 / away.sum(1)
            shift[members] = weight @ np.stack(list(differences.values())) / weight.sum()
    chosen: np.ndarray = shift[positions]
    return chosen
