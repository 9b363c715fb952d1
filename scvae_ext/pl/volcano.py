"""Which genes differ between two groups, by how much, and how sure that is."""

import re
from os import PathLike

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

__all__ = ["volcano"]

_UP, _DOWN, _NEITHER = "#D55E00", "#0072B2", "#b0b0b0"
# Double precision tells no smaller probability from zero.
_SMALLEST = 1e-15


def volcano(
    result: pd.DataFrame, group: str | None = None, *, n_labels: int = 12, save: str | PathLike[str] | None = None
) -> Axes:
    """Draw fold changes against the probability that there is none.

    Which genes (or proteins, or peaks) differ, and by how much? Flagged ones are coloured and those of largest score
    named; the dashed lines are the fold changes from which one counts as different. Those on the top line are certain
    to within the precision of a number.

    Parameters
    ----------
    result
        What :meth:`scvae_ext.SCVAE.differential_expression` returned in mode ``"change"``, or
        :meth:`scvae_ext.CiteVAE.differential_protein_expression`, or
        :meth:`scvae_ext.MultiomeVAE.differential_accessibility`.
    group
        Value of ``group1`` to draw; may be left out where the table holds one comparison.
    n_labels
        Number of genes to name, half of them up and half down.
    save
        File to write the figure to; its suffix gives the format.

    Returns
    -------
    matplotlib.axes.Axes
        The panel.

    Raises
    ------
    ValueError
        If the table is not one of mode ``"change"``, or the group is missing or unknown.
    """
    table = _one_comparison(result, group)
    flag = next((str(column) for column in table if re.match("is_d[ea]_fdr", str(column))), None)
    if flag is None or "lfc_mean" not in table:
        raise ValueError('volcano draws tables of differential_expression(mode="change"); this one has no lfc_mean.')
    table = table[table["lfc_mean"].notna()]  # what was not measured in both groups
    change = table["lfc_mean"].to_numpy()
    height = -np.log10(np.maximum(1 - table["prob_da" if "prob_da" in table else "proba_de"].to_numpy(), _SMALLEST))
    flagged = table[flag].to_numpy(dtype=bool)
    delta = float(table["delta"].iloc[0])
    target = flag.removeprefix("is_de_fdr_")
    rate = "" if target == flag else f" (FDR {target})"
    figure, axes = plt.subplots(figsize=(6.4, 4.6), layout="constrained")
    for chosen, color, label in (
        (~flagged, _NEITHER, "not flagged"),
        (flagged & (change > 0), _UP, f"higher in {table['group1'].iloc[0]}"),
        (flagged & (change <= 0), _DOWN, f"higher in {table['group2'].iloc[0]}"),
    ):
        axes.scatter(
            change[chosen],
            height[chosen],
            s=9,
            color=color,
            linewidths=0,
            alpha=0.75,
            label=f"{label} ({np.count_nonzero(chosen)})",
        )
    reach = 1.12 * max(float(np.abs(change).max()), 2 * delta)
    top = max(float(height.max()), 1.0)
    axes.vlines((-delta, delta), 0, 1.05 * top, color="black", linewidth=0.7, linestyle="--")
    axes.set(
        xlim=(-reach, reach),
        ylim=(-0.03 * top, 1.62 * top),
        xlabel=r"$\log_2$ fold change (posterior mean)",
        ylabel=r"$-\log_{10}$ probability of no difference",
        title=f"{table['comparison'].iloc[0]}: {np.count_nonzero(flagged)} of {len(table)} differ{rate}",
    )
    axes.set_yticks([tick for tick in MaxNLocator(6, integer=True).tick_values(0, top) if tick <= top])
    axes.title.set_fontsize(10.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="upper center", ncols=3, fontsize=8.5, handletextpad=0.2, columnspacing=1.0)
    _name_genes(axes, table.index, change, height, _scores(table), flagged, n_labels // 2)
    if save is not None:
        figure.savefig(save, dpi=200)
    return axes


def _one_comparison(result: pd.DataFrame, group: str | None) -> pd.DataFrame:
    groups = list(dict.fromkeys(result["group1"])) if "group1" in result else []
    if group is None and len(groups) == 1:
        return result
    if group is None or group not in groups:
        asked = "group is missing" if group is None else f"group={group!r} is not in the table"
        raise ValueError(f"{asked}: it holds {', '.join(map(repr, groups)) or 'no column group1'}.")
    return result[result["group1"] == group]


def _scores(table: pd.DataFrame) -> np.ndarray:
    scale = table["lfc_std"].to_numpy()
    scores: np.ndarray = np.divide(table["lfc_mean"].to_numpy(), scale, out=np.zeros(len(table)), where=scale > 0)
    return scores


def _name_genes(
    axes: Axes, names: pd.Index, change: np.ndarray, height: np.ndarray, scores: np.ndarray, flagged: np.ndarray, n: int
) -> None:
    """Name the genes of largest score on each side, in a column beside the points so that names do not overlap."""
    for sign in (1, -1):
        best = [gene for gene in np.argsort(-sign * scores, kind="stable") if flagged[gene] and sign * scores[gene] > 0]
        best = sorted(best[:n], key=lambda gene: (-height[gene], abs(change[gene])))
        for place, gene in enumerate(best):
            axes.annotate(
                str(names[gene]),
                (change[gene], height[gene]),
                xytext=(0.985 if sign > 0 else 0.015, 0.91 - 0.05 * place),
                textcoords="axes fraction",
                ha="right" if sign > 0 else "left",
                va="center",
                fontsize=8,
                arrowprops={
                    "arrowstyle": "-",
                    "color": "#707070",
                    "linewidth": 0.4,
                    "shrinkA": 1,
                    "shrinkB": 1,
                    "relpos": (0.0 if sign > 0 else 1.0, 0.5),
                },
            )
