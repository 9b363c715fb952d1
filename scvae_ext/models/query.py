"""Which cells and genes a getter was asked for."""

from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Int

from scvae_ext.data.names import find_category

__all__ = [
    "CellSelection",
    "GeneSelection",
    "select_cells",
    "select_genes",
    "select_options",
]

CELLS_MAY_BE = "positions, a boolean mask with one entry a cell, or names of adata.obs_names"
MOST_NAMED = 5
CellSelection = slice | Sequence[int] | Sequence[bool] | Sequence[str] | np.ndarray | pd.Index | pd.Series
GeneSelection = Sequence[str] | np.ndarray | pd.Index | pd.Series


def select_cells(indices: CellSelection | None, obs_names: pd.Index) -> Int[np.ndarray, "chosen"]:
    """Return the positions of the cells asked for, in the order in which they were asked for.

    Parameters
    ----------
    indices
        Positions, a boolean mask or names; all cells where ``None``.
    obs_names
        Names of all cells.

    Raises
    ------
    ValueError, IndexError
        If the mask has another length or missing values, a name is missing, or a position does not exist.
    """
    n_cells = len(obs_names)
    if indices is None:
        return np.arange(n_cells)
    if isinstance(indices, slice):
        indices = np.arange(n_cells)[indices]
    if isinstance(indices, set | frozenset):
        raise ValueError(f"indices is a set, which has no order: pass a list of {CELLS_MAY_BE}.")
    dtype: Any = getattr(indices, "dtype", None)
    if pd.api.types.is_bool_dtype(dtype):
        # Nullable and categorical masks become arrays of objects otherwise, and lose what they are.
        indices = _whole_mask(indices, obs_names)
    asked = np.atleast_1d(np.asarray(indices))
    if asked.ndim != 1:
        raise ValueError(f"indices has {asked.ndim} axes: pass {CELLS_MAY_BE}.")
    if asked.size == 0:
        raise ValueError(f"indices selects no cell: pass {CELLS_MAY_BE}, or None for all cells.")
    if asked.dtype == bool:
        if len(asked) != n_cells:
            raise ValueError(f"indices is a mask of {len(asked)} entries, but there are {n_cells} cells.")
        if not asked.any():
            raise ValueError("indices is a mask that selects no cell.")
        return np.flatnonzero(asked)
    if np.issubdtype(asked.dtype, np.integer):
        outside = asked[(asked >= n_cells) | (asked < -n_cells)]
        if len(outside):
            raise IndexError(f"indices holds {outside[0].item()}, but there are {n_cells} cells (0 to {n_cells - 1}).")
        # A small dtype cannot hold the number of cells.
        positions = asked.astype(np.int64)
        return np.where(positions < 0, positions + n_cells, positions)
    return _positions_of_names(asked, obs_names, "indices", "adata.obs_names", CELLS_MAY_BE)


def select_genes(
    gene_list: GeneSelection | None, var_names: Sequence[str], *, argument: str = "gene_list", what: str = "gene"
) -> Int[np.ndarray, "chosen"] | None:
    """Return the positions of the genes asked for, in the order in which they were asked for, or ``None`` for all.

    Parameters
    ----------
    gene_list
        Names of genes.
    var_names
        Names of the model's genes.
    argument, what
        What the argument is called, and what it names one of, for errors.

    Raises
    ------
    ValueError
        If a gene is not among the model's, or is asked for twice.
    """
    if gene_list is None:
        return None
    if isinstance(gene_list, str):
        raise ValueError(f"{argument}={gene_list!r} is one string: pass a list, [{gene_list!r}].")
    if isinstance(gene_list, set | frozenset):
        raise ValueError(f"{argument} is a set, which has no order: pass a list.")
    asked = np.asarray(gene_list)
    if asked.size == 0:
        raise ValueError(f"{argument} is empty: pass names of {what}s, or None for all {what}s.")
    repeated = pd.Index(asked)[pd.Index(asked).duplicated()]
    if len(repeated):
        raise ValueError(f"{argument} names {str(repeated[0])!r} more than once: pass each {what} once.")
    return _positions_of_names(asked, pd.Index(var_names), argument, f"the model's {what}s", f"names of {what}s")


def select_options(
    argument: str, asked: str | Sequence[str] | None, valid: Sequence[str], key: str | None
) -> list[int]:
    """Return the positions of the categories asked for.

    Parameters
    ----------
    argument
        Name of the argument, for the error.
    asked
        A category, several, or ``None`` for none.
    valid
        The categories that the model knows.
    key
        Column that they come from.

    Raises
    ------
    ValueError
        If a category is unknown.
    """
    if asked is None:
        return []
    names = (
        [asked] if isinstance(asked, str) or not isinstance(asked, Sequence | np.ndarray | pd.Index) else list(asked)
    )
    if not valid:
        raise ValueError(f"{argument}={asked!r} needs batches: pass batch_key=... to setup_anndata and train again.")
    if not names:
        raise ValueError(f"{argument} is an empty list: pass names of {key!r}, or None for the observed ones.")
    positions = []
    for name in names:
        position = find_category(name, valid)
        if position is None:
            raise ValueError(
                f"{argument} holds {name!r}, which is not in {key!r}; known are {', '.join(map(repr, valid))}."
            )
        positions.append(position)
    return positions


def _whole_mask(mask: Any, obs_names: pd.Index) -> Bool[np.ndarray, "entries"]:
    """Return a mask of any dtype as an array."""
    if isinstance(mask, pd.Series) and not mask.index.equals(obs_names):
        raise ValueError(
            "indices is a mask whose index is not adata.obs_names: "
            "pass indices.loc[adata.obs_names] or indices.to_numpy()."
        )
    n_missing = int(np.count_nonzero(pd.isna(mask)))
    if n_missing:
        raise ValueError(
            f"indices is a mask of which {n_missing} of {len(mask)} values are missing: "
            "pass indices.fillna(False) to leave these cells out, or indices.fillna(True)."
        )
    return np.asarray(mask, dtype=bool)


def _positions_of_names(
    asked: np.ndarray, names: pd.Index, argument: str, where: str, what: str
) -> Int[np.ndarray, "chosen"]:
    positions = names.get_indexer(pd.Index(asked)) if names.is_unique else None
    if positions is None:
        raise ValueError(f"{where} are not unique, so that {argument} cannot name them: pass positions instead.")
    missing = asked[positions < 0].tolist()
    if missing:
        # Names that differ in case alone come first.
        by_case = [str(name) for name in names if str(name).lower() == str(missing[0]).lower()]
        near = by_case or get_close_matches(str(missing[0]), list(map(str, names)), n=3)
        to = f" to {missing[0]!r}" if len(missing) > 1 else ""
        hint = f" Nearest{to}: {', '.join(map(repr, near))}." if near else ""
        named = ", ".join(map(repr, missing[:MOST_NAMED]))
        others = f" and {len(missing) - MOST_NAMED} more" if len(missing) > MOST_NAMED else ""
        raise ValueError(f"{argument} holds {named}{others}, not among {where}: pass {what}.{hint}")
    return positions
