"""Which cells are summed together to compare groups, and whether there are enough of them."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from jaxtyping import Bool, Int

from scvae_ext.analysis import Comparison
from scvae_ext.analysis.between_samples import shortage_of_samples
from scvae_ext.analysis.differential_expression import FEWEST_CELLS
from scvae_ext.models.groups import REST, GroupPair, Groups, select_groups, select_samples
from scvae_ext.models.query import CellSelection
from scvae_ext.models.results import require_names

__all__ = ["GroupQuestion", "Units", "large_enough", "make_units"]


@dataclass(frozen=True, eq=False)
class Units:
    """Cells of a group, or of a group in a sample or batch, whose sums are kept apart.

    Parameters
    ----------
    of_cell
        Unit of each cell, -1 where it is left out.
    group
        Group of each unit, -1 for cells of none.
    sample
        Sample of each unit, ``None`` where cells are the replicates.
    sample_names
        Names of the samples.
    batch
        Batch of each unit, ``None`` where those of a group are summed together.
    """

    of_cell: Int[np.ndarray, "cells"]
    group: Int[np.ndarray, "units"]
    sample: Int[np.ndarray, "units"] | None
    sample_names: tuple[str, ...]
    batch: Int[np.ndarray, "units"] | None = None

    def comparison(self, pair: GroupPair, names: Sequence[str]) -> Comparison:
        """Return which units a pair of groups consists of.

        Parameters
        ----------
        pair
            The groups.
        names
            Their names.
        """
        one: Bool[np.ndarray, units] = self.group == pair.group1
        two: Bool[np.ndarray, units] = ~one if pair.group2 is None else self.group == pair.group2
        return Comparison(names[pair.group1], REST if pair.group2 is None else names[pair.group2], one, two)


@dataclass(frozen=True, eq=False)
class GroupQuestion:
    """Which groups a user asks to compare.

    Parameters
    ----------
    groupby, group1, group2, idx1, idx2
        As for :func:`~scvae_ext.models.groups.select_groups`.
    sample_key
        Column of ``obs`` with samples, where these are the replicates.
    is_written
        Whether the tables are written, under the names of the groups.
    """

    groupby: str | None
    group1: str | Sequence[str] | None
    group2: str | None
    idx1: CellSelection | str | None
    idx2: CellSelection | str | None
    sample_key: str | None
    is_written: bool

    def units(
        self,
        obs: pd.DataFrame,
        usable: Bool[np.ndarray, "cells"] | None = None,
        batch: Int[np.ndarray, "cells"] | None = None,
    ) -> tuple[Groups, Units]:
        """Return the groups, and the cells whose sums are kept apart.

        Parameters
        ----------
        obs
            All cells.
        usable
            Cells that say something; the others are left out. All where ``None``.
        batch
            Batch of each cell, for groups that are compared within batches; with samples, those are compared.

        Raises
        ------
        ValueError
            If a column, a group or cells do not exist, and if a table would be written under an empty name; the
            message lists what exists.
        """
        groups = select_groups(obs, self.groupby, self.group1, self.group2, self.idx1, self.idx2)
        if self.is_written:
            compared = [groups.names[pair.group1] for pair in groups.pairs]
            require_names(compared, f"a group of adata.obs[{self.groupby!r}]")
        if usable is not None:
            groups = replace(groups, of_cell=np.where(usable, groups.of_cell, -2))
        samples = None if self.sample_key is None else select_samples(obs, self.sample_key)
        return groups, make_units(groups, samples, batch)


def make_units(
    groups: Groups,
    samples: tuple[Int[np.ndarray, "cells"], tuple[str, ...]] | None,
    batch: Int[np.ndarray, "cells"] | None = None,
) -> Units:
    """Split cells by group, and by sample where samples are the replicates, or else by batch where it is given.

    Parameters
    ----------
    groups
        Groups of the cells.
    samples
        Sample of each cell, and the names of the samples.
    batch
        Batch of each cell.
    """
    used = groups.of_cell >= -1
    of_cell = np.full(len(used), -1, dtype=np.int64)
    codes, names = (batch, ()) if samples is None else samples
    if codes is None:
        found, of_cell[used] = np.unique(groups.of_cell[used], return_inverse=True)
        return Units(of_cell, found, None, ())
    keys = np.stack([groups.of_cell, codes], axis=1)[used]
    both, of_cell[used] = np.unique(keys, axis=0, return_inverse=True)
    if samples is None:
        return Units(of_cell, both[:, 0], None, (), batch=both[:, 1])
    return Units(of_cell, both[:, 0], both[:, 1], names)


def large_enough(groups: Groups, units: Units, leave_out_small: bool) -> list[Comparison]:
    """Return the comparisons whose groups have enough cells and, where these are the replicates, samples.

    Parameters
    ----------
    groups, units
        What is to be compared.
    leave_out_small
        Whether others are left out with a warning, as long as one is left, or an error.

    Raises
    ------
    ValueError
        If a group is too small.
    """
    comparisons, too_small = [], []
    for pair in groups.pairs:
        comparison = units.comparison(pair, groups.names)
        shortage = _shortage(comparison, groups, units)
        if shortage is None:
            comparisons.append(comparison)
        else:
            too_small.append((comparison.group1, shortage))
    if not too_small:
        return comparisons
    reason = too_small[0][1]
    if not leave_out_small or not comparisons:
        raise ValueError(reason)
    left_out = ", ".join(repr(name) for name, _ in too_small)
    warnings.warn(f"{reason} No table for {left_out}.", UserWarning, stacklevel=5)
    return comparisons


def _shortage(comparison: Comparison, groups: Groups, units: Units) -> str | None:
    """Return in words what a comparison has too few of, or ``None`` if it can be made."""
    one, two = (int(np.isin(units.of_cell, np.flatnonzero(side)).sum()) for side in (comparison.one, comparison.two))
    if min(one, two) < FEWEST_CELLS:
        listed = ", ".join(f"{name!r} ({groups.size(place)})" for place, name in enumerate(groups.names))
        return (
            f"{comparison.name} has {one} and {two} cells; each side needs {FEWEST_CELLS} at least. "
            f"Groups with their numbers of cells are {listed}."
        )
    return None if units.sample is None else shortage_of_samples(comparison, units.sample, units.sample_names)
