"""Features that lie in ``adata.obsm`` beside the genes, and their names."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from jaxtyping import Bool, Int, Shaped

from scvae_ext.data.names import shorten, unknown_key

__all__ = ["ObsmFeatures"]


@dataclass(frozen=True)
class ObsmFeatures:
    """A matrix of cells by features in ``adata.obsm``.

    Parameters
    ----------
    what
        Name of one feature, ``"protein"`` for example.
    key_argument, names_argument
        Arguments of ``setup_anndata`` that name the matrix and the names of its columns.
    """

    what: str
    key_argument: str
    names_argument: str

    def read(
        self, adata: AnnData, key: str, names_key: str | None
    ) -> tuple[Shaped[np.ndarray, "cells features"] | sp.sparray | sp.spmatrix, tuple[str, ...]]:
        """Read the matrix, sparse where it is, without asking what its values are, and the names of its columns.

        Parameters
        ----------
        adata
            Where to read.
        key, names_key
            Keys of ``adata.obsm`` and, for the names, of ``adata.uns``; without the latter the columns of a data frame
            name themselves, and those of an array get numbers.

        Raises
        ------
        TypeError
            If the matrix is a masked array.
        ValueError
            If a key is missing, values are no numbers, or a name occurs more than once.
        """
        if key not in adata.obsm:
            raise unknown_key(f"{self.key_argument}: adata.obsm[{key!r}] was", key, adata.obsm)
        found: Any = adata.obsm[key]
        if hasattr(found, "to_memory"):
            found = found.to_memory()
        if hasattr(found, "compute"):
            found = found.compute()
        names: tuple[str, ...] | None = None
        if isinstance(found, pd.DataFrame):
            wrong = [str(name) for name, dtype in found.dtypes.items() if not pd.api.types.is_numeric_dtype(dtype)]
            if wrong:
                raise ValueError(
                    f"{self.key_argument}: columns of adata.obsm[{key!r}] do not hold numbers: {shorten(wrong)}. "
                    "Leave them out, or convert them to counts."
                )
            names = tuple(map(str, found.columns))
            found = found.to_numpy(dtype=np.float64, na_value=np.nan)
        elif isinstance(found, np.ma.MaskedArray):
            raise TypeError(
                f"{self.key_argument}: adata.obsm[{key!r}] is a numpy.ma.MaskedArray, whose mask would be lost. Write "
                f"out what masked values stand for, for example adata.obsm[{key!r}].astype(float).filled(numpy.nan) "
                f"where {self.what}s were not measured."
            )
        elif not sp.issparse(found):
            found = np.asarray(found)
        if found.ndim != 2 or 0 in found.shape:
            raise ValueError(
                f"{self.key_argument}: adata.obsm[{key!r}] must hold counts of cells by {self.what}s, but has the "
                f"shape {found.shape}."
            )
        if names_key is not None:
            names = self._names(adata, key, names_key, found.shape[1])
        elif names is None:
            names = tuple(f"{self.what}_{i}" for i in range(found.shape[1]))
        repeated = [name for name, times in Counter(names).items() if times > 1]
        if repeated:
            raise ValueError(
                f"adata.obsm[{key!r}] names {self.what}s more than once: {shorten(repeated)}. Rename them."
            )
        return found, names

    def _names(self, adata: AnnData, key: str, names_key: str, n_columns: int) -> tuple[str, ...]:
        if names_key not in adata.uns:
            raise unknown_key(f"{self.names_argument}: adata.uns[{names_key!r}] was", names_key, adata.uns)
        listed: Any = adata.uns[names_key]
        names = tuple(map(str, listed.compute() if hasattr(listed, "compute") else listed))
        if len(names) != n_columns:
            raise ValueError(
                f"{self.names_argument}: adata.uns[{names_key!r}] holds {len(names)} names, but adata.obsm[{key!r}] "
                f"has {n_columns} columns."
            )
        return names

    def positions(
        self,
        here: tuple[str, ...],
        known: tuple[str, ...],
        key: str,
        needed: Bool[np.ndarray, "features"] | None = None,
    ) -> Int[np.ndarray, "features"]:
        """Return the column of each feature that was set up.

        Parameters
        ----------
        here
            Names of the columns.
        known
            Features that were set up.
        key
            Key of ``adata.obsm``, for the message.
        needed
            Whether each feature has to be there, all where ``None``. The position of one that is not is -1.

        Raises
        ------
        ValueError
            If one is missing.
        """
        position = pd.Index(here).get_indexer(pd.Index(known))
        missing = position < 0 if needed is None else (position < 0) & needed
        if missing.any():
            lacking = np.array(known)[missing]
            raise ValueError(
                f"adata.obsm[{key!r}] lacks {len(lacking)} of the {len(known)} {self.what}s that were set up: "
                f"{shorten(lacking)}. There are: {shorten(here)}."
            )
        return position.astype(np.int64)
