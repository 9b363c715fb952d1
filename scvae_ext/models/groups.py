"""Which groups of cells a user asked to compare."""

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches

import numpy as np
import pandas as pd
from jaxtyping import Int

from scvae_ext.data.names import distinct_names, find_category, require_one_column
from scvae_ext.models.query import CellSelection, select_cells

__all__ = [
    "GroupPair",
    "Groups",
    "cells_of_groups",
    "obs_column",
    "select_groups",
    "select_labels",
    "select_samples",
]

REST = "Rest"
# A column beside those of the user in a query.
POSITION = "_scvae_ext_position"


@dataclass(frozen=True)
class GroupPair:
    """Two groups to compare; the second is all other cells where ``group2`` is ``None``.

    Parameters
    ----------
    group1, group2
        Positions in the list of names.
    """

    group1: int
    group2: int | None


@dataclass(frozen=True, eq=False)
class Groups:
    """Groups of cells, and which of them to compare.

    Parameters
    ----------
    names
        Names of the groups.
    of_cell
        Position of each cell's group in the list of names, -1 for cells of none, -2 for cells to leave out.
    pairs
        The comparisons.
    groupby
        Column of ``obs`` that they come from, ``None`` for cells picked by hand.
    """

    names: tuple[str, ...]
    of_cell: Int[np.ndarray, "cells"]
    pairs: tuple[GroupPair, ...]
    groupby: str | None

    def size(self, group: int) -> int:
        """Return the number of cells of a group.

        Parameters
        ----------
        group
            Its position in the list of names.
        """
        return int(np.count_nonzero(self.of_cell == group))


def select_groups(
    obs: pd.DataFrame,
    groupby: str | None,
    group1: str | Sequence[str] | None,
    group2: str | None,
    idx1: CellSelection | str | None,
    idx2: CellSelection | str | None,
) -> Groups:
    """Find the cells of the groups asked for.

    Parameters
    ----------
    obs
        Cells.
    groupby, group1, group2
        Column, one or several groups of it (all where ``None``), and the group to compare each with (all other cells
        where ``None``).
    idx1, idx2
        Cells in place of groups: positions, a mask, names, or a query of ``obs``; all other cells where ``idx2`` is
        ``None``.

    Raises
    ------
    ValueError
        If a column, a group or cells do not exist, or groups overlap or are empty; the message lists what exists.
    """
    if idx1 is not None:
        if groupby is not None or group1 is not None or group2 is not None:
            raise ValueError("idx1 picks cells by hand, and groupby, group1 and group2 by name: pass one or the other.")
        return _by_hand(obs, idx1, idx2)
    if idx2 is not None:
        raise ValueError("idx2 was given without idx1: pass idx1, the cells to compare with those of idx2.")
    if groupby is None:
        raise ValueError(
            f"groupby is missing: name a column of adata.obs ({_listed(obs.columns)}), or pass idx1 and idx2."
        )
    values = obs_column(obs, "groupby", groupby)
    names = tuple(values.cat.categories)
    # Cells without a value have the code -1.
    of_cell = values.cat.codes.to_numpy(dtype=np.int64)
    second = None if group2 is None else _position("group2", group2, groupby, names)
    if group1 is None:
        first = [position for position in range(len(names)) if position != second]
    else:
        chosen = _as_list(group1)
        if not chosen:
            raise ValueError(f"group1 is an empty list: pass groups of {groupby!r} ({_listed(names)}).")
        first = [_position("group1", name, groupby, names) for name in chosen]
    if second is not None and second in first:
        raise ValueError(f"group1 and group2 both name {group2!r}: a group differs in nothing from itself.")
    if not names:
        raise ValueError(
            f"groupby={groupby!r}: no cell has a value in this column of adata.obs. Name a column with groups, one of "
            f"{_listed(obs.columns)}."
        )
    if len(names) < 2 and (second is not None or not (of_cell < 0).any()):
        raise ValueError(f"adata.obs[{groupby!r}] holds one group alone, {names[0]!r}: there is nothing to compare.")
    if second is not None:
        of_cell = np.where(np.isin(of_cell, [*first, second]), of_cell, -2)
    pairs = tuple(GroupPair(position, second) for position in dict.fromkeys(first))
    return Groups(names, of_cell, pairs, groupby)


def cells_of_groups(obs: pd.DataFrame, groupby: str | None, group: str | Sequence[str] | None) -> pd.Series:
    """Return the group of each cell, missing for cells of none of those asked for.

    Parameters
    ----------
    obs
        Cells.
    groupby, group
        Column, and one or several groups of it; all where ``None``.

    Raises
    ------
    ValueError
        If a column or a group does not exist; the message lists what exists.
    """
    if groupby is None:
        raise ValueError(f"group={group!r} needs groupby, the column of adata.obs ({_listed(obs.columns)}) it is in.")
    values = obs_column(obs, "groupby", groupby)
    if group is None:
        return values
    names = list(values.cat.categories)
    chosen = _as_list(group)
    if not chosen:
        raise ValueError(f"group={chosen!r} names no group: pass groups of {groupby!r} ({_listed(names)}).")
    return values.where(values.isin([names[_position("group", name, groupby, names)] for name in chosen]))


def select_samples(obs: pd.DataFrame, sample_key: str) -> tuple[Int[np.ndarray, "cells"], tuple[str, ...]]:
    """Return the position of each cell's sample, and the names of the samples.

    Parameters
    ----------
    obs
        Cells.
    sample_key
        Column with the donor, animal, ... of each cell.

    Raises
    ------
    ValueError
        If there is no such column, or a cell has no sample.
    """
    values = obs_column(obs, "sample_key", sample_key)
    if values.isna().any():
        raise ValueError(
            f"{int(values.isna().sum())} cells have no value in adata.obs[{sample_key!r}]: drop them first."
        )
    codes, names = pd.factorize(values.astype(str), sort=True)
    return codes.astype(np.int64), tuple(names)


def select_labels(obs: pd.DataFrame, labels_key: str) -> tuple[Int[np.ndarray, "cells"], tuple[str, ...]]:
    """Return the position of each cell's label, -1 where it has none, and the labels.

    Parameters
    ----------
    obs
        Cells.
    labels_key
        Column with the label of each cell.

    Raises
    ------
    ValueError
        If there is no such column, or no cell has a label.
    """
    values = obs_column(obs, "labels_key", labels_key)
    names = tuple(values.cat.categories)
    if not names:
        raise ValueError(f"adata.obs[{labels_key!r}] holds no label: name a column that does.")
    return values.cat.codes.to_numpy(dtype=np.int64), names


def _by_hand(obs: pd.DataFrame, idx1: CellSelection | str, idx2: CellSelection | str | None) -> Groups:
    of_cell = np.full(len(obs), -1 if idx2 is None else -2, dtype=np.int64)
    first = _picked(obs, "idx1", idx1)
    of_cell[first] = 0
    if idx2 is None:
        return Groups(("one",), of_cell, (GroupPair(0, None),), None)
    second = _picked(obs, "idx2", idx2)
    both = np.intersect1d(first, second)
    if len(both):
        raise ValueError(f"{len(both)} cells are both in idx1 and in idx2, {obs.index[both[0]]!r} for example.")
    of_cell[second] = 1
    return Groups(("one", "two"), of_cell, (GroupPair(0, 1),), None)


def _picked(obs: pd.DataFrame, argument: str, cells: CellSelection | str) -> Int[np.ndarray, "chosen"]:
    if isinstance(cells, str):
        try:
            # By position, since names may repeat.
            numbered = obs.assign(**{POSITION: np.arange(len(obs))})
            chosen = np.unique(numbered.query(cells)[POSITION])
        except (NameError, SyntaxError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{argument}={cells!r} cannot be used as a query of adata.obs ({error}); "
                f"its columns are {_listed(obs.columns)}."
            ) from error
        if not len(chosen):
            raise ValueError(f"{argument}={cells!r} selects no cell.")
        return chosen
    try:
        return np.unique(select_cells(cells, obs.index))
    except (ValueError, IndexError) as error:
        raise type(error)(str(error).replace("indices", argument)) from error


def obs_column(obs: pd.DataFrame, argument: str, key: str) -> pd.Series:
    """Return the category of each cell in a column, by name.

    Parameters
    ----------
    obs
        Cells.
    argument
        Name of the argument, for errors.
    key
        The column.

    Raises
    ------
    ValueError
        If there is no such column, or several, or two of its values have the same name; the message lists what there
        is.
    """
    if key not in obs:
        near = get_close_matches(str(key), list(map(str, obs.columns)), n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{argument}={key!r} is not a column of adata.obs, which has {_listed(obs.columns)}.{hint}")
    require_one_column(obs.columns, key, argument)
    # Categories that no cell has are left out, and the order of the others is kept.
    categories = obs[key].astype("category").cat.remove_unused_categories()
    return categories.cat.rename_categories(list(distinct_names(categories.cat.categories, key, argument)))


def _as_list(groups: object) -> list[object]:
    """Return several groups as a list, and a single one, by name or as the column holds it, as a list of one."""
    return [groups] if isinstance(groups, str) or not isinstance(groups, Sequence | np.ndarray) else list(groups)


def _position(argument: str, name: object, groupby: str, names: Sequence[str]) -> int:
    position = find_category(name, names)
    if position is None:
        near = get_close_matches(str(name), names, n=1, cutoff=0.5)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{argument}={name!r} is not in adata.obs[{groupby!r}], which holds {_listed(names)}.{hint}")
    return position


def _listed(names: Sequence[object] | pd.Index) -> str:
    return ", ".join(map(repr, names)) if len(names) else "none"
