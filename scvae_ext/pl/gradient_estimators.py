"""How noisy each estimator of the gradient is, and whether it is right."""

from os import PathLike
from typing import Protocol, runtime_checkable

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

__all__ = ["gradient_estimators"]

_STYLES = {
    "score_function": ("#D55E00", "X", "score function"),
    "score_function_with_baseline": ("#E69F00", "P", "score function, baseline"),
    "pathwise": ("#0072B2", "o", "pathwise"),
    "sticking_the_landing": ("#56B4E9", "D", "sticking the landing"),
    "importance_weighted": ("#505050", "s", "importance-weighted"),
    "doubly_reparameterised": ("#009E73", "^", "doubly reparameterised"),
}


@runtime_checkable
class _GradientEstimators(Protocol):
    @property
    def n_samples(self) -> int: ...
    @property
    def n_estimates(self) -> int: ...
    @property
    def n_cells(self) -> int: ...
    @property
    def bias_limit(self) -> float: ...
    def to_frame(self) -> pd.DataFrame: ...


def gradient_estimators(result: _GradientEstimators, *, save: str | PathLike[str] | None = None) -> list[Axes]:
    """Draw noise and bias of each estimator of the gradient, by group of parameters.

    Which estimator is the least noisy? On the left, the root of the variance of an estimate over the norm of the
    gradient: at one, noise is as long as the signal. Is it right? On the right, the distance of its mean from a long
    average of the same objective's gradient, in units of what noise alone leaves; beyond the dotted line it would count
    as a bias.

    Parameters
    ----------
    result
        What :func:`scvae_ext.diagnostics.gradient_estimators` returned.
    save
        File to write the figure to; its suffix gives the format.

    Returns
    -------
    list of matplotlib.axes.Axes
        The two panels.
    """
    frame = result.to_frame().reset_index()
    frame["distance"] = (frame["bias"] / frame["bias_error"]).fillna(0.0)
    groups = list(dict.fromkeys(frame["group"]))
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(9.2, 1.7 + 0.5 * len(groups)), width_ratios=(1.6, 1), sharey=True, layout="constrained"
    )
    for panel, column in ((left, "noise_to_signal"), (right, "distance")):
        _draw_dots(panel, frame, groups, column)
        panel.spines[["top", "right", "left"]].set_visible(False)
        panel.tick_params(axis="y", length=0)
        panel.grid(axis="x", color="#e6e6e6", linewidth=0.8)
        panel.set_axisbelow(True)
    left.set(
        xscale="log",
        yticks=np.arange(len(groups)),
        yticklabels=groups,
        ylim=(len(groups) - 0.5, -0.5),
        xlabel="Standard deviation of an estimate / norm of the gradient",
    )
    left.xaxis.set_major_formatter("{x:g}")
    left.set_title("How noisy is the gradient?", fontsize=10)
    right.axvline(result.bias_limit, color="black", linewidth=0.9, linestyle=":")
    right.set(
        xlim=(0, 1.15 * max(result.bias_limit, frame["distance"].max())),
        xlabel="Distance of the mean from a long average\n/ distance that noise alone leaves",
    )
    right.set_title("Is it right?", fontsize=10)
    figure.suptitle(
        f"Gradients on {result.n_cells:,} cells with {result.n_samples} samples each, {result.n_estimates:,} estimates",
        fontsize=11,
    )
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    if save is not None:
        figure.savefig(save, dpi=200)
    return [left, right]


def _draw_dots(panel: Axes, frame: pd.DataFrame, groups: list[str], column: str) -> None:
    shown = [name for name in _STYLES if (frame["estimator"] == name).any()]
    for position, name in enumerate(shown):
        color, marker, label = _STYLES[name]
        rows = frame[frame["estimator"] == name]
        offset = 0.66 * ((position + 0.5) / len(shown) - 0.5)
        height = [groups.index(group) + offset for group in rows["group"]]
        panel.plot(rows[column], height, linestyle="", marker=marker, markersize=6, color=color, label=label)
    for boundary in range(1, len(groups)):
        panel.axhline(boundary - 0.5, color="#d0d0d0", linewidth=0.8)
