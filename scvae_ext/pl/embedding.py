"""Embeddings of the same cells, side by side."""

from collections.abc import Hashable, Sequence
from difflib import get_close_matches
from os import PathLike

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from scvae_ext.pl.palette import GROUPS

__all__ = ["embedding_comparison"]

_MISSING = "#d0d0d0"


def embedding_comparison(
    adata: AnnData,
    color: str | Sequence[str],
    *,
    bases: Sequence[str] = ("X_scvae_umap", "X_pca_umap"),
    titles: Sequence[str] | None = None,
    point_size: float | None = None,
    panel_size: float = 3.2,
    save: str | PathLike[str] | None = None,
) -> list[Axes]:
    """Draw embeddings of the same cells side by side, coloured alike.

    Which representation keeps the groups apart, or mixes the batches? One row of panels for each
    colour, one column for each embedding; all panels have the same size and a row shares its legend.

    Parameters
    ----------
    adata
        Annotated data.
    color
        Columns of ``obs`` or names of genes. Text, categories and booleans get one colour a group, by
        ``uns[f"{color}_colors"]`` where scanpy has left it; numbers get a colour bar. Cells without a value are grey.
    bases
        Keys of ``obsm``; their first two columns are drawn.
    titles
        One title an embedding. The keys of ``obsm`` without ``X_`` by default.
    point_size
        Area of a point, in square points. By default it shrinks with the number of cells.
    panel_size
        Width and height of a panel, in inches.
    save
        File to write the figure to; its suffix gives the format.

    Returns
    -------
    list of matplotlib.axes.Axes
        The panels, row by row.

    Raises
    ------
    ValueError
        If a colour or an embedding is not in ``adata``, an embedding has fewer than two columns, or
        titles and embeddings differ in number.

    Examples
    --------
    >>> import numpy as np
    >>> import pandas as pd
    >>> from anndata import AnnData
    >>> import scvae_ext as sv
    >>> adata = AnnData(np.ones((4, 2)), obs=pd.DataFrame({"type": list("aabb")}, index=list("1234")))
    >>> adata.obsm["X_umap"] = np.array([[0.0, 0.0], [0.0, 1.0], [3.0, 0.0], [3.0, 1.0]])
    >>> panels = sv.pl.embedding_comparison(adata, "type", bases=["X_umap"])
    >>> panels[0].get_title()
    'umap'
    """
    colors = [color] if isinstance(color, str) else list(color)
    names = [basis.removeprefix("X_") for basis in bases] if titles is None else list(titles)
    if len(names) != len(bases):
        raise ValueError(f"titles has {len(names)} entries and bases has {len(bases)}; give one title for each basis.")
    if not colors or not bases:
        raise ValueError("color and bases must each name at least one key; both may not be empty.")
    coordinates = [_coordinates(adata, basis) for basis in bases]
    values = [_values(adata, key) for key in colors]
    size = np.clip(6e3 / max(adata.n_obs, 1), 0.5, 14.0) if point_size is None else point_size

    figure, grid = plt.subplots(
        len(colors),
        len(bases),
        figsize=(panel_size * len(bases) + 2.2, (panel_size + 0.1) * len(colors) + 0.3),
        squeeze=False,
        layout="constrained",
    )
    # A fixed random order keeps one group from covering another.
    order = np.random.default_rng(0).permutation(adata.n_obs)
    for panel, name in zip(grid[0], names, strict=True):
        panel.set_title(name, fontsize=11)
    for row, key, series in zip(grid, colors, values, strict=True):
        for panel, xy in zip(row, coordinates, strict=True):
            panel.set(xticks=[], yticks=[], box_aspect=1)
            panel.spines[:].set_color("#b0b0b0")
            _scatter(panel, xy, series, _palette(adata, key, series), order, float(size))
        _legend(row[-1], key, series, _palette(adata, key, series))
    if save is not None:
        figure.savefig(save, dpi=200, bbox_inches="tight", pad_inches=0.05)
    return list(grid.flat)


def _coordinates(adata: AnnData, basis: str) -> NDArray[np.float64]:
    if basis not in adata.obsm:
        raise ValueError(f"obsm has no {basis!r}; it has {sorted(adata.obsm)}. Compute it first, or change bases.")
    values = np.asarray(adata.obsm[basis], dtype=np.float64)
    if values.ndim != 2 or values.shape[1] < 2:
        raise ValueError(f"obsm[{basis!r}] has shape {values.shape}; a picture needs at least two columns.")
    return values[:, :2]


def _values(adata: AnnData, key: str) -> pd.Series:
    if key not in adata.obs and key not in adata.var_names:
        near = get_close_matches(key, [*map(str, adata.obs), *map(str, adata.var_names)])
        hint = f"Did you mean {' or '.join(map(repr, near))}?" if near else f"obs has {list(adata.obs)}."
        raise ValueError(f"{key!r} is neither a column of obs nor a gene. {hint}")
    series = pd.Series(adata.obs_vector(key))
    if pd.api.types.is_numeric_dtype(series) and not pd.api.types.is_bool_dtype(series):
        return series.astype(np.float64)
    series = series if isinstance(series.dtype, pd.CategoricalDtype) else series.astype("category")
    return series.cat.remove_unused_categories()


def _palette(adata: AnnData, key: str, series: pd.Series) -> dict[Hashable, str] | None:
    """Return one colour for each category, or None for numbers."""
    if not isinstance(series.dtype, pd.CategoricalDtype):
        return None
    stored = adata.uns.get(f"{key}_colors")
    column = adata.obs.get(key)
    if stored is not None and column is not None and isinstance(column.dtype, pd.CategoricalDtype):
        everything = dict(zip(column.cat.categories, map(str, stored), strict=False))
        if all(category in everything for category in series.cat.categories):
            return {category: everything[category] for category in series.cat.categories}
    n = len(series.cat.categories)
    if n <= 20:
        # No set of twenty stays apart under colour-vision deficiencies.
        sequence = list(GROUPS) if n <= 10 else [mpl.colors.to_hex(c) for c in mpl.color_sequences["tab20"]]
    else:
        sequence = [mpl.colors.to_hex(c) for c in mpl.colormaps["turbo"](np.linspace(0.03, 0.97, n))]
    return dict(zip(series.cat.categories, sequence, strict=False))


def _scatter(
    panel: Axes,
    xy: NDArray[np.float64],
    series: pd.Series,
    palette: dict[Hashable, str] | None,
    order: NDArray[np.int64],
    size: float,
) -> None:
    known = series.notna().to_numpy()
    panel.scatter(xy[~known, 0], xy[~known, 1], s=size, c=_MISSING, linewidths=0, rasterized=True)
    order = order[known[order]]
    shown = series.iloc[order]
    colors = shown.to_numpy() if palette is None else [palette[value] for value in shown]
    cmap = "viridis" if palette is None else None
    panel.scatter(xy[order, 0], xy[order, 1], s=size, c=colors, cmap=cmap, linewidths=0, rasterized=True)


def _legend(panel: Axes, key: str, series: pd.Series, palette: dict[Hashable, str] | None) -> None:
    if palette is None:
        colorbar_axes = panel.inset_axes((1.05, 0.1, 0.05, 0.8))
        panel.figure.colorbar(panel.collections[-1], cax=colorbar_axes, label=key)
        return
    entries: dict[Hashable, str] = {**palette, "missing": _MISSING} if series.isna().any() else palette
    handles = [
        Line2D([], [], linestyle="", marker="o", markersize=6, color=value, label=str(label))
        for label, value in entries.items()
    ]
    panel.legend(
        handles=handles,
        title=key,
        loc="center left",
        bbox_to_anchor=(1.02, 0.5),
        ncols=1 + (len(handles) - 1) // 16,
        frameon=False,
        fontsize=8.5,
        alignment="left",
        handletextpad=0.2,
        borderaxespad=0.0,
    )
