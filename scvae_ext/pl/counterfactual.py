"""What changes between two settings, and for which cells that can be said."""

from collections.abc import Sequence
from os import PathLike
from typing import Protocol, runtime_checkable

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from jaxtyping import Bool, Float
from matplotlib.axes import Axes

from scvae_ext.pl.groups import names_of_groups
from scvae_ext.pl.palette import GROUPS

__all__ = ["counterfactual_effect", "overlap"]

_SUPPORTED, _NOT = "#0072B2", "#D55E00"


@runtime_checkable
class _Effect(Protocol):
    @property
    def level(self) -> float: ...
    @property
    def groups(self) -> pd.Index: ...
    @property
    def supported_share(self) -> pd.Series: ...
    def to_frame(self) -> pd.DataFrame: ...


@runtime_checkable
class _Overlap(Protocol):
    @property
    def ratio(self) -> Float[np.ndarray, "cells"]: ...
    @property
    def is_supported(self) -> Bool[np.ndarray, "cells"]: ...


@runtime_checkable
class _Counterfactual(Protocol):
    @property
    def overlap(self) -> _Overlap: ...


def counterfactual_effect(
    result: _Effect,
    genes: Sequence[str] | None = None,
    *,
    n_genes: int = 20,
    save: str | PathLike[str] | None = None,
) -> list[Axes]:
    """Draw the effects on genes, with their intervals, groups side by side.

    Which genes change, in which cells, and how sure is that? Without ``genes``, those that change most are drawn, in
    the order of their largest effect in any group. An interval that leaves out zero has a filled dot. A group of which
    fewer than half the cells are in states seen under both settings is marked in the legend.

    Parameters
    ----------
    result
        What :meth:`scvae_ext.SCVAE.counterfactual_effect` returned.
    genes
        Genes to draw, in this order.
    n_genes
        Number of genes, where none are named.
    save
        File to write the figure to; its suffix gives the format.

    Returns
    -------
    list of matplotlib.axes.Axes
        The panel.

    Raises
    ------
    ValueError
        If there are more than ten groups, no gene is asked for, or one that is not in the result.
    """
    groups = list(result.groups)
    if len(groups) > len(GROUPS):
        raise ValueError(
            f"The result has {len(groups)} groups, of which at most {len(GROUPS)} can be told apart: ask for the "
            "effect in fewer cells by indices=..."
        )
    if n_genes < 1:
        raise ValueError(f"n_genes={n_genes!r} must be at least 1.")
    frame = result.to_frame()
    largest = frame["lfc"].abs().groupby(level="gene", sort=False).max()
    if genes is None:
        genes = list(largest.sort_values(ascending=False, kind="stable").index[:n_genes])
    else:
        genes = [genes] if isinstance(genes, str) else list(genes)
        if not genes or not set(genes) <= set(largest.index):
            known = f"{', '.join(map(str, largest.index[:5]))}, ..."
            raise ValueError(f"genes={genes!r} are not all in the result, which holds {known}: pass some of those.")
    figure, panel = plt.subplots(figsize=(6.4, 1.2 + len(genes) * max(0.24, 0.1 * len(groups))), layout="constrained")
    for i, group in enumerate(groups):
        rows = frame.loc[group].loc[genes]
        height = np.arange(len(genes)) + (i - (len(groups) - 1) / 2) * 0.8 / len(groups)
        color = GROUPS[i]
        share = result.supported_share[group]
        label = f"{group}" if share >= 0.5 else f"{group} (overlap {100 * share:.0f} %)"
        panel.hlines(height, rows["lfc_lower"], rows["lfc_upper"], color=color, linewidth=1.4)
        panel.scatter(
            rows["lfc"],
            height,
            s=22,
            facecolors=[color if sure else "white" for sure in rows["excludes_zero"]],
            edgecolors=[color],
            zorder=3,
            label=label,
        )
    panel.axvline(0, color="black", linewidth=0.8)
    panel.set_yticks(range(len(genes)), genes, fontsize=8.5)
    panel.set(
        ylim=(len(genes) - 0.4, -0.6),
        xlabel=f"Log2 fold change, with {100 * result.level:g} % interval",
        title="What changes between the settings?",
    )
    panel.title.set_fontsize(11)
    panel.grid(axis="x", color="#e5e5e5", linewidth=0.6)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)
    if len(groups) > 1:
        legend = panel.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=8.5)
        # The colour stands for the group; whether a dot is filled depends on the gene.
        for handle, i in zip(legend.legend_handles, range(len(groups)), strict=True):
            handle.set_facecolor(GROUPS[i])  # type: ignore[union-attr]
    if save is not None:
        figure.savefig(save, dpi=150)
    return [panel]


def overlap(
    result: _Overlap | _Counterfactual,
    groups: Sequence[str] | np.ndarray | pd.Series | None = None,
    *,
    save: str | PathLike[str] | None = None,
) -> list[Axes]:
    """Draw for each cell whether its state was seen under the setting.

    For which cells can be said what they would express? One dot a cell, at the density of the setting's cells around it
    relative to that of all cells: one where settings mix, zero where no cell of the setting is near.

    Parameters
    ----------
    result
        What :func:`scvae_ext.analysis.setting_overlap` or :meth:`scvae_ext.SCVAE.counterfactual` returned, or
        ``overlap_control`` or ``overlap_treated`` of an effect.
    groups
        Group of each cell; all in one where ``None``.
    save
        File to write the figure to; its suffix gives the format.

    Returns
    -------
    list of matplotlib.axes.Axes
        The panel.

    Raises
    ------
    ValueError
        If ``groups`` has another length.
    TypeError
        If the result is another one, such as an effect, which has an overlap for each of its two settings.
    """
    if isinstance(result, _Counterfactual):
        result = result.overlap
    if not hasattr(result, "ratio"):
        hint = (
            "has one for each setting: pass its overlap_control or its overlap_treated"
            if hasattr(result, "overlap_control")
            else "is none: pass the result of counterfactual() or of analysis.setting_overlap()"
        )
        raise TypeError(f"result must be an overlap, and a {type(result).__name__} {hint}.")
    ratio, supported = result.ratio, result.is_supported
    names = names_of_groups(groups, len(ratio))
    order = sorted(set(names.tolist()))
    figure, panel = plt.subplots(figsize=(6.4, 1.4 + 0.42 * len(order)), layout="constrained")
    rng = np.random.default_rng(0)
    height = np.searchsorted(order, names) + rng.uniform(-0.3, 0.3, len(names))
    for chosen, color, label in (
        (supported, _SUPPORTED, f"seen ({np.count_nonzero(supported)})"),
        (~supported, _NOT, f"not seen ({np.count_nonzero(~supported)})"),
    ):
        panel.scatter(ratio[chosen], height[chosen], s=6, color=color, alpha=0.6, linewidths=0, label=label)
    share = pd.Series(supported).groupby(names).mean()
    panel.set_yticks(range(len(order)), [f"{name}\n{100 * share[name]:.0f} % seen" for name in order], fontsize=8.5)
    panel.axvline(1, color="black", linewidth=0.8, linestyle=":")
    panel.set(
        ylim=(len(order) - 0.5, -0.5),
        xlim=(-0.05 * max(1.0, ratio.max()), 1.05 * max(1.0, ratio.max())),
        xlabel="Share of the setting among neighbours, over its share of all cells",
        title="Was the state of a cell seen under the setting?",
    )
    panel.title.set_fontsize(11)
    panel.spines[["top", "right"]].set_visible(False)
    panel.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=8.5, markerscale=2)
    if save is not None:
        figure.savefig(save, dpi=150)
    return [panel]
