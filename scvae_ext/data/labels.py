"""Labels of cells of which some are not known."""

import warnings

import numpy as np
from anndata import AnnData
from jaxtyping import Int

from scvae_ext.data.fields import CategoricalObs, in_pandas
from scvae_ext.data.names import category_names, find_category, shorten, unknown_key

__all__ = ["known_labels", "match_labels", "register_labels"]

DEFAULT_UNLABELED = "Unknown"
SOUNDS_UNLABELED = frozenset(
    {
        "unknown",
        "unlabeled",
        "unlabelled",
        "unassigned",
        "unannotated",
        "unclassified",
        "undefined",
        "nan",
        "none",
        "na",
        "n/a",
        "?",
        "",
    }
)


def register_labels(adata: AnnData, key: str, unlabeled_category: str) -> tuple[str, ...]:
    """Return the labels that occur, and behind them the category of cells without one.

    Parameters
    ----------
    adata
        Where to read.
    key
        Column of ``adata.obs``.
    unlabeled_category
        Category of cells without a label, to which those without a value belong as well.

    Raises
    ------
    ValueError
        If the column is missing, cannot be one of labels, or has fewer than two labels, or if the category was named
        and no cell is without a label.

    Warns
    -----
    UserWarning
        If a label sounds as if it were none.
    """
    codes, names = CategoricalObs(key, "labels_key", missing=unlabeled_category).register(adata)
    labels = tuple(name for name in names if name != unlabeled_category)
    if unlabeled_category not in names and unlabeled_category != DEFAULT_UNLABELED:
        error = unknown_key(
            f"unlabeled_category: {unlabeled_category!r} among adata.obs[{key!r}] was", unlabeled_category, names
        )
        raise ValueError(f"{error} If all cells have a label, leave unlabeled_category out.")
    if len(labels) < 2:
        raise ValueError(
            f"labels_key: adata.obs[{key!r}] has {len(labels)} label{'' if len(labels) == 1 else 's'} beside "
            f"unlabeled_category={unlabeled_category!r}, but two are needed to tell cells apart. Without labels use "
            "SCVAE."
        )
    doubtful = [name for name in labels if name.strip().lower() in SOUNDS_UNLABELED]
    if doubtful:
        warnings.warn(
            f"labels_key: {shorten(doubtful)} of adata.obs[{key!r}] is taken as a label like others "
            f"({np.isin(np.array(names)[codes], doubtful).sum()} cells). If it means that the label is not known, pass "
            f"unlabeled_category={doubtful[0]!r}.",
            UserWarning,
            stacklevel=4,
        )
    return (*labels, unlabeled_category)


def known_labels(
    adata: AnnData, key: str, categories: tuple[str, ...], otherwise: int = -1
) -> Int[np.ndarray, "cells"]:
    """Return the position of each cell's label where it is one of those known.

    Parameters
    ----------
    adata
        Where to read.
    key
        Column of ``adata.obs``, which need not be there.
    categories
        The known labels.
    otherwise
        Position of all other cells.
    """
    if key not in adata.obs.columns:
        return np.full(adata.n_obs, otherwise, dtype=np.int64)
    column = in_pandas(adata.obs, [key]).iloc[:, 0].astype("category")
    found = [find_category(name, categories) for name in category_names(column.cat.categories)]
    # Cells without a value have the code -1, which is the last of these.
    positions = np.array([otherwise if position is None else position for position in found] + [otherwise])
    return positions.astype(np.int64)[column.cat.codes]


def match_labels(adata: AnnData, key: str, categories: tuple[str, ...]) -> Int[np.ndarray, "cells"]:
    """Return the position of each cell's label; the last one where it has none, or the column is not there.

    Parameters
    ----------
    adata
        Where to read.
    key
        Column of ``adata.obs``.
    categories
        What :func:`register_labels` returned.

    Raises
    ------
    ValueError
        If a label was not there at set-up.
    """
    if key not in adata.obs.columns:
        return np.full(adata.n_obs, len(categories) - 1, dtype=np.int64)
    try:
        return CategoricalObs(key, "labels_key", missing=categories[-1]).codes(adata, categories)
    except ValueError as error:
        hint = "Cells whose labels are to be found need no such column: drop or rename it."
        raise ValueError(f"{error} {hint}") from error
