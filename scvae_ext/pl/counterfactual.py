"""What changes between two settings, and for which cells that can be said."""

from collections.abc import Sequence
from os import PathLike
from typing import Protocol, runtime_checkable

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from jaxtyping import Bool, Float
from matplotlib.axes import Axes

__all__ = ["counterfactual_effect", "overlap"]

_SUPPORTED, _NOT = "#0072B2", "#D55E00"
_MOST_GROUPS = 10


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


def counterfactual_effect(result: _Effect, *, n_genes: int = 20, save: str | PathLike[str] | None = None) -> list[Axes]:
    """Draw the effects on the genes that change most, with their intervals, groups side by side.

    Which genes change, in which cells, and how sure is that? Genes stand in the order of their largest effect in any
    group; an interval that leaves out zero has a filled dot. A group of which fewer than half the cells are in states
    seen under both settings is marked in the legend.

    Parameters
    ----------
    result
        What :meth:`scvae_ext.SCVAE.counterfactual_effect` returned.
    n_genes
        Number of genes.
    save
        File to write the figure to; its suffix gives the format.

    Returns
    -------
    list of matplotlib.axes.Axes
        The panel.

    Raises
    ------
    ValueError
        If there are more than ten groups, or no gene is asked for.
    """
    groups = list(result.groups)
    if len(groups) > _MOST_GROUPS:
        raise ValueError(
            f"The result has {len(groups)} groups, of which at most {_MOST_GROUPS} can be told apart: ask for the "
            "effect in fewer cells by indices=..."
        )
    if n_genes < 1:
        raise ValueError(f"n_genes={n_genes!r} must be at least 1.")
    frame = result.to_frame()
    wide = frame["lfc"].unstack("gene")
    genes = list(wide.abs().max().sort_values(ascending=False, kind="stable").index[:n_genes])
    figure, panel = plt.subplots(figsize=(6.4, 1.2 + len(genes) * max(0.24, 0.1 * len(groups))), layout="constrained")
    palette = plt.get_cmap("tab10")
    for i, group in enumerate(groups):
        rows = frame.loc[group].loc[genes]
        height = np.arange(len(genes)) + (i - (len(groups) - 1) / 2) * 0.8 / len(groups)
        color = palette(i)
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
            handle.set_facecolor(palette(i))  # type: ignore[union-attr]
    if save is not None:
        figure.savefig(save, dpi=150)
    return [panel]


def overlap(
    result: _Overlap,
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
        What :func:`scvae_ext.analysis.setting_overlap` returned: ``overlap`` of a counterfactual, ``overlap_control``
        or ``overlap_treated`` of an effect.
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
    """
    ratio, supported = result.ratio, result.is_supported
    names = np.array(["all cells"] * len(ratio)) if groups is None else np.asarray(groups).astype(str)
    if len(names) != len(ratio):
        raise ValueError(f"groups has {len(names)} entries, but there are {len(ratio)} cells.")
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
