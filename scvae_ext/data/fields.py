"""Fields of an AnnData: where one kind of value lies, how it is read, what it must satisfy."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from jaxtyping import Float, Int

from scvae_ext.data.names import (
    category_names,
    distinct_names,
    find_category,
    require_one_column,
    shorten,
    unknown_key,
)

__all__ = [
    "CategoricalObs",
    "Layer",
    "NumericalObs",
    "in_pandas",
    "layer_names",
    "require_anndata",
]

_MANY_CATEGORIES = 20


def require_anndata(adata: object) -> AnnData:
    """Return the argument if it is an AnnData that holds cells and genes.

    Parameters
    ----------
    adata
        What the user passed.

    Returns
    -------
    AnnData
        The same object.

    Raises
    ------
    TypeError
        If it is not an AnnData.
    ValueError
        If it has no cells or no genes, or two genes of one name.
    """
    if not isinstance(adata, AnnData):
        raise TypeError(
            f"adata must be an anndata.AnnData, but is {type(adata).__module__}.{type(adata).__qualname__}. "
            "Wrap a matrix of cells by genes as anndata.AnnData(matrix)."
        )
    if 0 in adata.shape:
        raise ValueError(
            f"adata is empty: {adata.n_obs} cells by {adata.n_vars} genes. "
            "Check the filter that was applied to it before."
        )
    if not adata.var_names.is_unique:
        repeated = adata.var_names[adata.var_names.duplicated()].unique()
        raise ValueError(
            f"adata.var_names holds {len(repeated)} names more than once: {shorten(repeated)}. "
            "Call adata.var_names_make_unique() first."
        )
    return adata


def layer_names(adata: AnnData) -> list[str]:
    """Return the names of the layers; from anndata 0.13 on, ``None`` among its keys stands for X.

    Parameters
    ----------
    adata
        Whose layers.
    """
    return [name for name in adata.layers if name is not None]


def in_pandas(obs: Any, columns: list[str] | None = None) -> pd.DataFrame:
    """Return the annotation of cells as a data frame, also where it is that of a lazy AnnData.

    Parameters
    ----------
    obs
        ``adata.obs``.
    columns
        Which columns; all where ``None``.
    """
    chosen = obs if columns is None else obs[columns]
    return chosen if isinstance(chosen, pd.DataFrame) else chosen.to_memory()


def _obs_column(adata: AnnData, key: str, argument: str) -> pd.Series:
    if key not in adata.obs.columns:
        raise unknown_key(f"{argument}: the column {key!r} of adata.obs was", key, adata.obs.columns)
    require_one_column(adata.obs.columns, key, argument)
    column: pd.Series = in_pandas(adata.obs, [key])[key]
    return column


@dataclass(frozen=True)
class Layer:
    """The matrix of counts: ``adata.X`` or one of ``adata.layers``.

    Parameters
    ----------
    key
        Key in ``adata.layers``, or ``None`` for ``adata.X``.
    """

    key: str | None = None

    @property
    def where(self) -> str:
        """The slot as a user writes it."""
        return "adata.X" if self.key is None else f"adata.layers[{self.key!r}]"

    def read(self, adata: AnnData) -> object:
        """Return the matrix as AnnData holds it.

        Parameters
        ----------
        adata
            Where to read.

        Raises
        ------
        ValueError
            If there is no such matrix.
        """
        if self.key is None:
            matrix: object = adata.X
            if matrix is None:
                raise ValueError(
                    f"adata.X is None. Pass the layer that holds the counts as layer=...; "
                    f"there are: {shorten(layer_names(adata)) or 'none'}."
                )
            return matrix
        names = layer_names(adata)
        if self.key not in names:
            hint = "" if names else " To use adata.X, pass layer=None."
            error = unknown_key(f"layer: {self.where} was", self.key, names)
            raise ValueError(f"{error}{hint}")
        return adata.layers[self.key]


@dataclass(frozen=True)
class CategoricalObs:
    """A column of ``adata.obs`` with one category for each cell.

    Categories are known by name: ``1``, ``1.0`` and ``"1"`` are the same category.

    Parameters
    ----------
    key
        Column of ``adata.obs``.
    argument
        The argument of ``setup_anndata`` that named it, for messages.
    missing
        Category of cells without a value; ``None`` if there may be none.
    """

    key: str
    argument: str
    missing: str | None = None

    def read(self, adata: AnnData) -> tuple[Int[np.ndarray, "cells"], tuple[str, ...]]:
        """Return the position of each cell's category, and the names of the categories that occur.

        Categories come in the order of a categorical column, sorted otherwise.

        Parameters
        ----------
        adata
            Where to read.

        Raises
        ------
        ValueError
            If the column is missing, holds missing values, or different values of the same name.
        """
        column = _obs_column(adata, self.key, self.argument)
        missing = column.isna().to_numpy()
        if missing.any() and self.missing is not None:
            column = column.astype("category")
            # Named before a word stands among them: numbers with missing values are floats, also where all are whole.
            names_of_values = category_names(column.cat.categories)
            if len(set(names_of_values)) == len(names_of_values):
                column = column.cat.rename_categories(names_of_values)
            if self.missing not in column.cat.categories:
                column = column.cat.add_categories([self.missing])
            column = column.fillna(self.missing)
        elif missing.any():
            raise ValueError(
                f"{self.argument}: adata.obs[{self.key!r}] has no value for {missing.sum()} of {adata.n_obs} cells, "
                f"the first of them {adata.obs_names[missing][0]!r}. Give them a category of their own, or leave "
                f"them out: adata = adata[adata.obs[{self.key!r}].notna()].copy()."
            )
        categorical = column.astype("category").cat.remove_unused_categories()
        names = distinct_names(categorical.cat.categories, self.key, self.argument)
        return categorical.cat.codes.to_numpy(dtype=np.int64), names

    def register(self, adata: AnnData) -> tuple[Int[np.ndarray, "cells"], tuple[str, ...]]:
        """Return the same as :meth:`read`, for the data that define the categories.

        Parameters
        ----------
        adata
            Where to read.

        Raises
        ------
        ValueError
            As :meth:`read`, and if there are too many values for categories.
        """
        codes, names = self.read(adata)
        dtype = _obs_column(adata, self.key, self.argument).dtype
        is_decimal = pd.api.types.is_float_dtype(dtype) and any("." in name for name in names)
        if len(names) > _MANY_CATEGORIES and (is_decimal or len(names) > adata.n_obs / 2):
            raise ValueError(
                f"{self.argument}: adata.obs[{self.key!r}] has {len(names)} different values in {adata.n_obs} cells "
                f"({shorten(names, 3)}), too many for categories. If it is a measured quantity, pass it in "
                "continuous_covariate_keys."
            )
        return codes, names

    def codes(self, adata: AnnData, categories: tuple[str, ...]) -> Int[np.ndarray, "cells"]:
        """Return the position of each cell's category in a given list.

        Parameters
        ----------
        adata
            Where to read.
        categories
            The known categories.

        Raises
        ------
        ValueError
            As :meth:`read`, and if a category is not among the known ones.
        """
        codes, names = self.read(adata)
        positions = [find_category(name, categories) for name in names]
        unseen = [name for name, position in zip(names, positions, strict=True) if position is None]
        if unseen:
            n_cells = int(np.isin(codes, [names.index(name) for name in unseen]).sum())
            mapping = "map them onto the model with load_query_data, " if self.argument == "batch_key" else ""
            raise ValueError(
                f"{self.argument}: adata.obs[{self.key!r}] holds categories that were not there at set-up: "
                f"{shorten(unseen)} ({n_cells} cells). Known are: {shorten(categories)}. "
                f"Rename them to known ones, leave these cells out, {mapping}or train a model on data that includes "
                "them."
            )
        return np.take(np.array(positions, dtype=np.int64), codes)


@dataclass(frozen=True)
class NumericalObs:
    """A column of ``adata.obs`` with one finite number for each cell.

    Parameters
    ----------
    key
        Column of ``adata.obs``.
    argument
        The argument of ``setup_anndata`` that named it, for messages.
    positive
        Whether every value must be greater than zero.
    """

    key: str
    argument: str
    positive: bool = False

    def read(self, adata: AnnData) -> Float[np.ndarray, "cells"]:
        """Return the values in float64.

        Parameters
        ----------
        adata
            Where to read.

        Raises
        ------
        ValueError
            If the column is missing, not numeric, not finite, or not positive where it must be.
        """
        column = _obs_column(adata, self.key, self.argument)
        if not pd.api.types.is_numeric_dtype(column.dtype) or pd.api.types.is_complex_dtype(column.dtype):
            raise ValueError(
                f"{self.argument}: adata.obs[{self.key!r}] must hold numbers, but its dtype is {column.dtype}. "
                f"Convert it, adata.obs[{self.key!r}] = adata.obs[{self.key!r}].astype(float), "
                "or pass categories in categorical_covariate_keys."
            )
        values = np.asarray(column.to_numpy(dtype=np.float64, na_value=np.nan), dtype=np.float64)
        wrong, rule = ~np.isfinite(values), "finite"
        if self.positive:
            wrong, rule = wrong | (values <= 0), "finite and greater than zero"
        if wrong.any():
            first = int(np.argmax(wrong))
            raise ValueError(
                f"{self.argument}: adata.obs[{self.key!r}] must be {rule}, but is not in {wrong.sum()} of "
                f"{adata.n_obs} cells; cell {adata.obs_names[first]!r} has {values[first]:g}. "
                f"Correct these values or leave the cells out."
            )
        return values
