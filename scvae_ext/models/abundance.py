"""Density of the states of cells in samples, from a trained model."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from scvae_ext.analysis import AggregatedPosterior
from scvae_ext.models.cells import Cells
from scvae_ext.models.groups import select_groups
from scvae_ext.models.inference import latent_parameters
from scvae_ext.models.subsets import place_among, some_of_each
from scvae_ext.modules import VAE

__all__ = ["groups_of_samples", "sample_log_prob"]


def sample_log_prob(
    module: VAE,
    cells: Cells,
    codes: Int[np.ndarray, "all_cells"],
    names: Sequence[str],
    most_cells: int | None,
    bandwidth: float,
    seed: int,
) -> tuple[Float[np.ndarray, "cells samples"], Int[np.ndarray, "cells samples"], pd.Series]:
    """Return the log density of each cell's state in each sample, and how many cells it is made of.

    Parameters
    ----------
    module, cells
        Of what; densities are made of all cells of their source, whichever are asked for.
    codes, names
        Sample of each cell of the source, and the names of the samples.
    most_cells
        Cells of a sample that its density is made of, drawn at random where it has more; all where ``None``.
    bandwidth
        As for :meth:`~scvae_ext.analysis.AggregatedPosterior.log_density`.
    seed
        Of the draw of cells.

    Returns
    -------
    tuple
        Log densities in nats; numbers of cells without the cell itself; numbers of cells of each sample.
    """
    components = some_of_each(codes, len(names), most_cells, seed)
    mean, variance = latent_parameters(module, replace(cells, positions=components))
    mixture = AggregatedPosterior(mean, variance, codes[components], len(names))
    own = place_among(components, cells.source.n_cells, cells.positions)
    log_prob = mixture.log_density(*latent_parameters(module, cells), own, bandwidth)
    sizes = np.bincount(codes[components], minlength=len(names))
    is_own = (codes[cells.positions, None] == np.arange(len(names))) & (own >= 0)[:, None]
    return log_prob, sizes - is_own, pd.Series(sizes, index=list(names), name="n_cells")


def groups_of_samples(
    obs: pd.DataFrame,
    codes: Int[np.ndarray, "cells"],
    names: Sequence[str],
    groupby: str,
    group1: str | None,
    group2: str | None,
) -> tuple[Bool[np.ndarray, "samples"], Bool[np.ndarray, "samples"], tuple[str, str]]:
    """Return which samples belong to either group, and the names of the groups.

    Parameters
    ----------
    obs
        Cells.
    codes, names
        Sample of each cell, and the names of the samples.
    groupby, group1, group2
        Column with the group of each sample, and the groups to compare; all other samples where ``group2`` is ``None``.

    Raises
    ------
    ValueError
        If a column or a group does not exist, a sample is in several groups, or ``group1`` is missing; the message
        lists what exists.
    """
    found = select_groups(obs, groupby, None, None, None, None)
    if group1 is None:
        listed = ", ".join(map(repr, found.names))
        raise ValueError(f"group1 is missing: name the group of {groupby!r} to compare with the others ({listed}).")
    chosen = select_groups(obs, groupby, [group1], group2, None, None).pairs[0]
    of_sample = pd.Series(found.of_cell).groupby(codes)
    several = np.flatnonzero((of_sample.nunique() > 1).to_numpy())
    if len(several):
        held = {"none" if code < 0 else found.names[code] for code in found.of_cell[codes == several[0]]}
        raise ValueError(
            f"Sample {names[several[0]]!r} has cells of several groups of {groupby!r} "
            f"({', '.join(map(repr, sorted(held)))}), but samples are compared as a "
            "whole: name a column that is the same for all cells of a sample, or a sample_key that tells them apart."
        )
    group = of_sample.first().to_numpy()
    one = group == chosen.group1
    two = ~one if chosen.group2 is None else group == chosen.group2
    second = "Rest" if chosen.group2 is None else found.names[chosen.group2]
    return one, two, (found.names[chosen.group1], second)
