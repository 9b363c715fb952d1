"""Counts of surface proteins beside those of genes: where they lie, and in which batches they were measured."""

import warnings
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from anndata import AnnData
from jaxtyping import Bool, Float, Int

from scvae_ext.data.names import shorten
from scvae_ext.data.obsm import ObsmFeatures

__all__ = ["ProteinPanel", "match_proteins", "measure_new_batches", "read_proteins", "register_proteins"]

PROTEINS = ObsmFeatures("protein", "protein_expression_obsm_key", "protein_names_uns_key")


@dataclass(frozen=True)
class ProteinPanel:
    """The proteins of a data set.

    Parameters
    ----------
    key
        Key of ``adata.obsm`` with their counts.
    names
        Names of the proteins, in the order in which a model sees them.
    measured
        For each batch, whether each protein was measured in it.
    names_key
        Key of ``adata.uns`` with the names, where ``obsm`` holds an array; ``None`` for those of a data frame, or for
        numbers.
    """

    key: str
    names: tuple[str, ...]
    measured: tuple[tuple[bool, ...], ...]
    names_key: str | None = None

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Build from plain values.

        Parameters
        ----------
        values
            The fields, as JSON has them.
        """
        measured = tuple(tuple(map(bool, of_batch)) for of_batch in values["measured"])
        return cls(values["key"], tuple(values["names"]), measured, values["names_key"])


def register_proteins(
    adata: AnnData, key: str, names_key: str | None, batch: Int[np.ndarray, "cells"], batch_names: tuple[str, ...]
) -> ProteinPanel:
    """Look at every count of proteins, and find out in which batches each was measured.

    A protein was not measured in a batch where all its values there are missing (NaN), or all are zero while it has
    counts in another batch.

    Parameters
    ----------
    adata
        Where to read.
    key, names_key
        Keys of ``adata.obsm`` and, for the names, of ``adata.uns``.
    batch, batch_names
        Batch of each cell, and the names of the batches, none if there are none.

    Raises
    ------
    ValueError
        If the key is missing, values are not counts or missing for some cells of a batch alone, or a protein has no
        counts.

    Warns
    -----
    UserWarning
        If a protein was not measured in a batch.
    """
    values, names = read_proteins(adata, key, names_key)
    _require_counts(values, names, adata, key)
    empty = np.nansum(values, axis=0) == 0
    if empty.any():
        raise ValueError(
            f"protein_expression_obsm_key: {empty.sum()} of {len(names)} proteins of adata.obsm[{key!r}] have no "
            f"counts in any cell: {shorten(np.array(names)[empty])}. Leave these columns out."
        )
    n_batches = max(1, len(batch_names))
    measured = np.empty((n_batches, len(names)), dtype=bool)
    for position in range(n_batches):
        of_batch = values[batch == position]
        measured[position] = (of_batch > 0).any(axis=0)
        _require_whole(of_batch, measured[position], names, key, batch_names[position] if batch_names else None)
    missing = [
        f"{batch_names[position]!r}: {shorten(np.array(names)[~measured[position]], 5)}"
        for position in np.flatnonzero(~measured.all(axis=1))
    ]
    if missing:
        warnings.warn(
            "These proteins have no counts in a batch, and are taken as not measured there; "
            f"{'; '.join(missing[:5])}{' and more' if len(missing) > 5 else ''}.",
            UserWarning,
            stacklevel=4,
        )
    return ProteinPanel(key, names, tuple(tuple(map(bool, row)) for row in measured), names_key)


def match_proteins(
    adata: AnnData, panel: ProteinPanel, batch: Int[np.ndarray, "cells"], batch_names: tuple[str, ...]
) -> Float[np.ndarray, "cells proteins"]:
    """Read the counts of proteins by name, in the order of the panel; zero where they were not measured.

    Parameters
    ----------
    adata
        Where to read.
    panel
        What was set up.
    batch, batch_names
        Batch of each cell, and the names of the batches.

    Raises
    ------
    ValueError
        If a protein is missing, or values are not counts.
    """
    measured = np.array(panel.measured)[batch]
    if panel.key not in adata.obsm and not measured.any():
        return np.zeros(measured.shape, dtype=np.float32)
    values, here = read_proteins(adata, panel.key, panel.names_key)
    # A protein that no batch of these cells has needs no column: the last one stands in for it, and is not read.
    position = PROTEINS.positions(here, panel.names, panel.key, measured.any(axis=0))
    values = np.where(measured, values[:, position], 0)
    _require_counts(values, panel.names, adata, panel.key)
    for code in np.unique(batch):
        name = batch_names[code] if batch_names else None
        _require_whole(values[batch == code], np.array(panel.measured[code]), panel.names, panel.key, name)
    return values.astype(np.float32)


def measure_new_batches(
    adata: AnnData, panel: ProteinPanel, batch: Int[np.ndarray, "cells"], batch_names: tuple[str, ...]
) -> ProteinPanel:
    """Return the panel with the batches that it does not know yet, each with the proteins that it has counts of.

    Parameters
    ----------
    adata
        Where to read; it need not have proteins.
    panel
        What was set up.
    batch, batch_names
        Batch of each cell, and the names of the batches, those that the panel knows first.

    Raises
    ------
    ValueError
        If values are not counts, or missing for some cells of a batch alone.

    Warns
    -----
    UserWarning
        If a protein was not measured in a new batch.
    """
    values = np.full((adata.n_obs, len(panel.names)), np.nan)
    if panel.key in adata.obsm:
        found, here = read_proteins(adata, panel.key, panel.names_key)
        position = PROTEINS.positions(here, panel.names, panel.key, np.zeros(len(panel.names), dtype=bool))
        values = np.where(position < 0, np.nan, found[:, position])
        _require_counts(values, panel.names, adata, panel.key)
    rows = list(panel.measured)
    for code in range(len(rows), len(batch_names)):
        of_batch = values[batch == code]
        row = (of_batch > 0).any(axis=0)
        _require_whole(of_batch, row, panel.names, panel.key, batch_names[code])
        if not row.all():
            warnings.warn(
                f"{(~row).sum()} of {len(row)} proteins have no counts in adata.obsm[{panel.key!r}] for batch "
                f"{batch_names[code]!r}, and are taken as not measured there: "
                f"{shorten(np.array(panel.names)[~row], 5)}.",
                UserWarning,
                stacklevel=5,
            )
        rows.append(tuple(map(bool, row)))
    return replace(panel, measured=tuple(rows))


def read_proteins(
    adata: AnnData, key: str, names_key: str | None
) -> tuple[Float[np.ndarray, "cells proteins"], tuple[str, ...]]:
    """Read whatever lies under a key, without asking whether it is counts, and the names of its columns.

    Parameters
    ----------
    adata
        Where to read.
    key, names_key
        As for :func:`register_proteins`.

    Raises
    ------
    ValueError
        If the key or the names are missing, values are no numbers, or names occur more than once.
    """
    found, names = PROTEINS.read(adata, key, names_key)
    return np.asarray(found if isinstance(found, np.ndarray) else found.toarray(), dtype=np.float64), names


def _require_counts(
    values: Float[np.ndarray, "cells proteins"], names: tuple[str, ...], adata: AnnData, key: str
) -> None:
    """Raise at a value that is neither a count nor missing."""
    with np.errstate(invalid="ignore"):
        wrong = np.isinf(values) | (values < 0) | (values != np.floor(values)) & ~np.isnan(values)
    if wrong.any():
        cell, protein = np.argwhere(wrong)[0]
        raise ValueError(
            f"protein_expression_obsm_key: adata.obsm[{key!r}] must hold raw counts, but {wrong.sum()} of its "
            f"{wrong.size} values are none; cell {adata.obs_names[cell]!r} has {values[cell, protein]:g} of "
            f"{names[protein]!r}. Pass the counts as they were before normalisation (CLR, DSB)."
        )


def _require_whole(
    values: Float[np.ndarray, "cells proteins"],
    measured: Bool[np.ndarray, "proteins"],
    names: tuple[str, ...],
    key: str,
    batch_name: str | None,
) -> None:
    """Raise where a protein that was measured in a batch has no value for some of its cells."""
    missing = np.isnan(values) & measured
    if missing.any():
        protein = int(np.flatnonzero(missing.any(axis=0))[0])
        where = "" if batch_name is None else f" of batch {batch_name!r}"
        raise ValueError(
            f"protein_expression_obsm_key: adata.obsm[{key!r}] has no value of {names[protein]!r} for "
            f"{missing[:, protein].sum()} of {len(values)} cells{where}. Within a batch a protein is measured in all "
            "cells or in none: leave these cells out, or give them a batch of their own (batch_key=...)."
        )
