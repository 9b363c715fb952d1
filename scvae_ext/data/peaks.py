"""Accessible peaks of chromatin beside the counts of genes: where they lie, and in which batches they were measured."""

import warnings
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from jaxtyping import Int

from scvae_ext.data.matrix import as_csr
from scvae_ext.data.names import shorten
from scvae_ext.data.obsm import ObsmFeatures
from scvae_ext.peaks import AccessiblePeaks

__all__ = ["PeakSet", "match_peaks", "measure_new_batches", "read_peaks", "register_peaks"]

PEAKS = ObsmFeatures("peak", "accessibility_obsm_key", "peak_names_uns_key")


@dataclass(frozen=True)
class PeakSet:
    """The peaks of a data set.

    Parameters
    ----------
    key
        Key of ``adata.obsm`` with their accessibility.
    names
        Names of the peaks, in the order in which a model sees them.
    measured
        For each batch, whether accessibility was measured in it.
    names_key
        Key of ``adata.uns`` with the names, ``None`` for the columns of a data frame or for numbers.
    """

    key: str
    names: tuple[str, ...]
    measured: tuple[bool, ...]
    names_key: str | None = None

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Build from plain values.

        Parameters
        ----------
        values
            The fields, as JSON has them.
        """
        return cls(values["key"], tuple(values["names"]), tuple(map(bool, values["measured"])), values["names_key"])


def register_peaks(
    adata: AnnData, key: str, names_key: str | None, batch: Int[np.ndarray, "cells"], batch_names: tuple[str, ...]
) -> PeakSet:
    """Look at every value of accessibility, and find out in which batches it was measured.

    It was not measured in a batch none of whose cells has an accessible peak.

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
        If the key is missing, values are not counts, or a cell has no accessible peak while others of its batch have.

    Warns
    -----
    UserWarning
        If accessibility was not measured in a batch, or a peak is accessible in no cell.
    """
    matrix, names = read_peaks(adata, key, names_key)
    n_batches = max(1, len(batch_names))
    of_batch = np.bincount(batch, weights=np.diff(matrix.indptr), minlength=n_batches)
    measured = tuple(bool(total > 0) for total in of_batch)
    if not any(measured):
        raise ValueError(
            f"accessibility_obsm_key: adata.obsm[{key!r}] holds zeros alone. Pass the matrix with counts of fragments "
            "or insertions in peaks, or with ones where there are any."
        )
    _require_filled(matrix, adata, key, np.array(measured)[batch])
    if not all(measured):
        missing = [name for name, is_there in zip(batch_names, measured, strict=True) if not is_there]
        warnings.warn(
            f"No cell of these batches has an accessible peak in adata.obsm[{key!r}], so that they are taken as "
            f"measured for genes alone: {shorten(missing)}.",
            UserWarning,
            stacklevel=4,
        )
    closed = np.flatnonzero(np.bincount(matrix.indices, minlength=len(names)) == 0)
    if len(closed):
        warnings.warn(
            f"{len(closed)} of {len(names)} peaks are accessible in no cell of adata.obsm[{key!r}]: "
            f"{shorten(np.array(names)[closed], 3)}. A model learns nothing about them; leave them out.",
            UserWarning,
            stacklevel=4,
        )
    return PeakSet(key, names, measured, names_key)


def match_peaks(adata: AnnData, peaks: PeakSet, batch: Int[np.ndarray, "cells"]) -> AccessiblePeaks:
    """Read the accessible peaks by name, in the order that was set up; none where they were not measured.

    Parameters
    ----------
    adata
        Where to read.
    peaks
        What was set up.
    batch
        Batch of each cell.

    Raises
    ------
    ValueError
        If a peak is missing, values are not counts, or a cell has no accessible peak in a batch that was measured.
    """
    if peaks.key not in adata.obsm and not np.array(peaks.measured)[batch].any():
        return AccessiblePeaks.from_csr(sp.csr_matrix((adata.n_obs, len(peaks.names)), dtype=np.float32))
    matrix, here = read_peaks(adata, peaks.key, peaks.names_key)
    if here != peaks.names:
        matrix = as_csr(matrix[:, PEAKS.positions(here, peaks.names, peaks.key)])
    is_measured = np.array(peaks.measured)[batch]
    _require_filled(matrix, adata, peaks.key, is_measured)
    if not is_measured.all():
        matrix = as_csr(sp.diags_array(is_measured.astype(np.float32)) @ matrix)
    return AccessiblePeaks.from_csr(matrix)


def measure_new_batches(
    adata: AnnData, peaks: PeakSet, batch: Int[np.ndarray, "cells"], batch_names: tuple[str, ...]
) -> PeakSet:
    """Return the peaks with the batches that they do not know yet, measured where a cell has an accessible peak.

    Parameters
    ----------
    adata
        Where to read; it need not have peaks.
    peaks
        What was set up.
    batch, batch_names
        Batch of each cell, and the names of the batches, those that are known first.

    Raises
    ------
    ValueError
        If a peak is missing where others are there, or values are not counts.

    Warns
    -----
    UserWarning
        If accessibility was not measured in a new batch.
    """
    n_accessible = np.zeros(adata.n_obs)
    if peaks.key in adata.obsm:
        matrix, here = read_peaks(adata, peaks.key, peaks.names_key)
        n_accessible = np.diff(as_csr(matrix[:, PEAKS.positions(here, peaks.names, peaks.key)]).indptr)
    of_batch = np.bincount(batch, weights=n_accessible, minlength=len(batch_names))
    new = range(len(peaks.measured), len(batch_names))
    if lacking := [batch_names[code] for code in new if of_batch[code] == 0]:
        warnings.warn(
            f"No cell of these batches has an accessible peak in adata.obsm[{peaks.key!r}], so that they are taken as "
            f"measured for genes alone: {shorten(lacking)}.",
            UserWarning,
            stacklevel=5,
        )
    return replace(peaks, measured=(*peaks.measured, *(bool(of_batch[code] > 0) for code in new)))


def read_peaks(adata: AnnData, key: str, names_key: str | None) -> tuple[sp.csr_matrix, tuple[str, ...]]:
    """Read whatever is above zero, and the names of the columns; rows of missing values count as zero.

    Parameters
    ----------
    adata
        Where to read.
    key, names_key
        As for :func:`register_peaks`.

    Raises
    ------
    ValueError
        If the key or the names are missing, or values are negative, not finite or not whole.
    """
    found, names = PEAKS.read(adata, key, names_key)
    if not sp.issparse(found):
        found = np.asarray(found, dtype=np.float32)
        found = np.where(np.isnan(found).all(axis=1, keepdims=True), 0, found)
    matrix = as_csr(found)
    with np.errstate(invalid="ignore"):
        wrong = ~((matrix.data > 0) & (matrix.data < np.inf) & (np.rint(matrix.data) == matrix.data))
    if wrong.any():
        place = int(np.argmax(wrong))
        cell = int(np.searchsorted(matrix.indptr, place, side="right")) - 1
        raise ValueError(
            f"accessibility_obsm_key: adata.obsm[{key!r}] must hold counts of fragments or insertions, or zeros and "
            f"ones, but cell {adata.obs_names[cell]!r} has {matrix.data[place]:g} of {names[matrix.indices[place]]!r}. "
            "Pass the matrix as it was before normalisation (TF-IDF, LSI)."
        )
    return matrix, names


def _require_filled(matrix: sp.csr_matrix, adata: AnnData, key: str, is_measured: np.ndarray) -> None:
    empty = np.flatnonzero((np.diff(matrix.indptr) == 0) & is_measured)
    if len(empty):
        names = pd.Index(adata.obs_names)[empty]
        raise ValueError(
            f"accessibility_obsm_key: {len(empty)} of {adata.n_obs} cells have no accessible peak in "
            f"adata.obsm[{key!r}], while others of their batch have: {shorten(names)}. Leave these cells out, or give "
            "those that were measured for genes alone a batch of their own (batch_key=...)."
        )
