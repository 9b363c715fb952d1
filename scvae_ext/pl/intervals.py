"""How sure the expression of a gene is, cell by cell."""

from collections.abc import Sequence
from os import PathLike
from typing import Protocol, runtime_checkable

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.axes import Axes

from scvae_ext.pl.groups import names_of_groups
from scvae_ext.pl.palette import GROUPS

__all__ = ["expression_intervals"]

_CELLS_SHOWN = 60
_GAP = 8


@runtime_checkable
class _Intervals(Protocol):
    @property
    def lower(self) -> Float[np.ndarray, "cells chosen"]: ...
    @property
    def median(self) -> Float[np.ndarray, "cells chosen"]: ...
    @property
    def upper(self) -> Float[np.ndarray, "cells chosen"]: ...
    @property
    def level(self) -> float: ...
    @property
    def var_names(self) -> pd.Index: ...


def expression_intervals(
    result: _Intervals,
    genes: Sequence[str],
    groups: Sequence[str] | np.ndarray | pd.Series | None = None,
    *,
    save: str | PathLike[str] | None = None,
) -> list[Axes]:
    """Draw the expression of genes in cells, each with its interval, by group.

    How sure is the expression of a gene? One panel a gene; the cells of a group stand in the order of their median. Of
    a group of more than 60 cells 60 are drawn, spread evenly over that order.

    Parameters
    ----------
    result
        Intervals of cells and genes, from ``get_normalized_expression(interval=...)`` or a counterfactual.
    genes
        Genes to draw.
    groups
        Group of each cell; all in one where ``None``.
    save
        File to write the figure to; its suffix gives the format.

    Returns
    -------
    list of matplotlib.axes.Axes
        One panel a gene.

    Raises
    ------
    ValueError
        If a gene is not in the result, or ``groups`` has another length.
    """
    genes = [genes] if isinstance(genes, str) else list(genes)
    missing = [gene for gene in genes if gene not in result.var_names]
    if missing or not genes:
        known = ", ".join(map(str, result.var_names[:5]))
        raise ValueError(f"genes={genes!r} are not all in the result, which holds {known}, ...: pass some of those.")
    names = names_of_groups(groups, len(result.median))
    order = sorted(set(names.tolist()))
    shown = {name: min(_CELLS_SHOWN, int((names == name).sum())) for name in order}
    width = sum(shown.values()) + _GAP * (len(order) - 1)
    figure, panels = plt.subplots(
        len(genes),
        1,
        figsize=(min(12.0, max(5.0, 1.0 + 0.022 * width)), 0.9 + 1.7 * len(genes)),
        sharex=True,
        squeeze=False,
        layout="constrained",
    )
    ticks: list[float] = []
    for gene, panel in zip(genes, panels[:, 0], strict=True):
        column = list(result.var_names).index(gene)
        start = 0
        ticks = []
        for i, name in enumerate(order):
            cells = np.flatnonzero(names == name)
            cells = cells[np.argsort(result.median[cells, column], kind="stable")]
            cells = cells[np.linspace(0, len(cells) - 1, shown[name]).round().astype(int)]
            place = start + np.arange(len(cells))
            color = GROUPS[i % len(GROUPS)]
            panel.vlines(
                place, result.lower[cells, column], result.upper[cells, column], color=color, alpha=0.35, linewidth=1.5
            )
            panel.plot(place, result.median[cells, column], ".", color=color, markersize=3.5)
            ticks.append(start + (len(cells) - 1) / 2)
            start += len(cells) + _GAP
        panel.set_yscale("log")
        panel.set_ylabel(gene, fontsize=9)
        panel.spines[["top", "right"]].set_visible(False)
        panel.tick_params(axis="x", length=0)
    panels[-1, 0].set_xticks(ticks, order, fontsize=8.5, rotation=30 if len(order) > 4 else 0)
    panels[0, 0].set_title(
        f"Normalized expression with {100 * result.level:g} % intervals, cells by median", fontsize=11
    )
    if save is not None:
        figure.savefig(save, dpi=150)
    return list(panels[:, 0])
