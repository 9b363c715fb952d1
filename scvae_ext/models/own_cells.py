"""Which cells of another AnnData are the model's own."""

import warnings

import numpy as np
import pandas as pd
from anndata import AnnData
from jaxtyping import Int

from scvae_ext.data import CellSource
from scvae_ext.models.cells import Cells

__all__ = ["own_positions"]

CELLS_AT_ONCE = 2048


def own_positions(adata: AnnData, cells: Cells, own_adata: AnnData, own: CellSource) -> Int[np.ndarray, "chosen"]:
    """Return the position of each cell among the model's own cells, -1 where it is none of them.

    A cell of a view of the model's AnnData is one of its cells. A cell of another AnnData is, where it has the name of
    one and the same counts of all genes that both have: names alone, such as ``"0"``, may be shared by chance.

    Parameters
    ----------
    adata, cells
        An AnnData, and which of its cells are asked about.
    own_adata, own
        The AnnData of the model, and its cells.

    Warns
    -----
    UserWarning
        If a cell has a name that several of the model's own cells have, so that it cannot be matched.
    """
    if adata is own_adata:
        return cells.positions
    if adata.is_view and adata._adata_ref is own_adata:
        rows: np.ndarray = np.arange(own_adata.n_obs)[adata._oidx]
        # A view does not follow what is filtered or sorted in place behind it.
        if own_adata.obs_names[rows].equals(adata.obs_names):
            positions: np.ndarray = rows[cells.positions]
            return positions
    positions = _by_name(cells.source.obs_names[cells.positions], own.obs_names)
    is_here = pd.Index(own.registry.var_names).isin(adata.var_names.astype(str))
    named = np.flatnonzero(positions >= 0)
    for start in range(0, len(named), CELLS_AT_ONCE):
        some = named[start : start + CELLS_AT_ONCE]
        differs = cells.source.read(cells.positions[some]) != own.read(positions[some])
        positions[some[np.asarray(differs[:, is_here].sum(1)).ravel() > 0]] = -1
    return positions


def _by_name(names: pd.Index, own: pd.Index) -> Int[np.ndarray, "chosen"]:
    """Return the position of each name among the model's, -1 where there is none or more than one."""
    is_repeated = own.duplicated(keep=False)
    unclear = names[names.isin(own[is_repeated])]
    if len(unclear):
        warnings.warn(
            f"{len(unclear)} cells have a name that several of the model's own cells have, such as "
            f"{str(unclear[0])!r}, and are taken for other cells, which they may not be: pass indices=... or a view of "
            "model.adata instead.",
            UserWarning,
            stacklevel=5,
        )
    places = np.flatnonzero(~is_repeated)
    positions: np.ndarray = np.append(places, -1)[own[places].get_indexer(names)]
    return positions
