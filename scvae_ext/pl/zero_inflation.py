"""Where zero inflation is supported, and where the data cannot tell."""

from os import PathLike
from typing import Protocol, runtime_checkable

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from scipy import interpolate, stats

__all__ = ["zero_inflation"]

_COLORS = {"supported": "#D55E00", "not needed": "#009E73", "not identifiable": "#9a9a9a"}
_DEPTH = 8.0


@runtime_checkable
class _ZeroInflation(Protocol):
    @property
    def n_cells(self) -> int: ...
    @property
    def level(self) -> float: ...
    @property
    def fdr_target(self) -> float: ...
    @property
    def profile(self) -> pd.DataFrame: ...
    def to_frame(self) -> pd.DataFrame: ...


def zero_inflation(result: _ZeroInflation, *, save: str | PathLike[str] | None = None) -> list[Axes]:
    r"""Draw the probability of an extra zero of each gene, and how well it is known.

    Which genes have extra zeros? On the left, the best :math:`\pi` of each gene against the share of cells in which it
    was detected, coloured by verdict, with the interval of those that are supported. How well can :math:`\pi` be known?
    On the right, the profile of the likelihood of a typical gene of each verdict: the one whose interval is of median
    width. The interval is where the curve lies above the dotted line; a flat curve says nothing.

    Parameters
    ----------
    result
        What :func:`scvae_ext.diagnostics.zero_inflation` returned.
    save
        File to write the figure to; its suffix gives the format.

    Returns
    -------
    list of matplotlib.axes.Axes
        The two panels.
    """
    frame = result.to_frame()
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.7), width_ratios=(1.35, 1), layout="constrained")
    n_supported = int((frame["verdict"] == "supported").sum())
    figure.suptitle(
        f"Zero inflation is supported in {n_supported:,} of {len(frame):,} genes "
        f"(false discovery rate {result.fdr_target:g}, {result.n_cells:,} cells)",
        fontsize=11,
    )
    _draw_genes(left, frame)
    _draw_profiles(right, frame, result.profile, result.level)
    for panel in (left, right):
        panel.spines[["top", "right"]].set_visible(False)
        panel.title.set_fontsize(10)
    if save is not None:
        figure.savefig(save, dpi=200)
    return [left, right]


def _smooth(grid: np.ndarray, profile: np.ndarray, best: float) -> tuple[np.ndarray, np.ndarray]:
    """Return a profile on a fine grid, interpolated by its signed root, which is nearly a straight line."""
    is_other = np.abs(grid - best) > 1e-6
    knots = np.append(grid[is_other], best)
    roots = np.append(np.sign(grid - best)[is_other] * np.sqrt(-2 * profile[is_other]), 0.0)
    order = np.argsort(knots)
    x = np.linspace(0, grid[-1], 400)
    return x, -0.5 * np.square(interpolate.PchipInterpolator(knots[order], roots[order])(x))


def _draw_genes(panel: Axes, frame: pd.DataFrame) -> None:
    # The most common verdict lies at the back.
    for verdict in ("not identifiable", "not needed", "supported"):
        of_verdict = frame[frame["verdict"] == verdict]
        x, y = of_verdict["detected"].to_numpy(), of_verdict["pi"].to_numpy()
        color = _COLORS[verdict]
        if verdict == "supported":
            panel.vlines(x, of_verdict["lower"], of_verdict["upper"], color=color, linewidth=0.8, alpha=0.5)
        panel.scatter(
            x, y, s=11, color=color, alpha=0.75, linewidth=0, label=f"{verdict} ({len(of_verdict):,})", zorder=3
        )
    panel.set(
        xlim=(-0.02, 1.02),
        ylim=(-0.03, 1.3),
        yticks=np.linspace(0, 1, 6),
        xlabel="Share of cells with counts",
        ylabel=r"Probability of an extra zero, $\pi$",
        title="Which genes have extra zeros?",
    )
    panel.legend(frameon=False, loc="upper right", fontsize=8.5)


def _draw_profiles(panel: Axes, frame: pd.DataFrame, profile: pd.DataFrame, level: float) -> None:
    for verdict, color in _COLORS.items():
        of_verdict = np.flatnonzero(frame["verdict"] == verdict)
        if len(of_verdict) == 0:
            continue
        width = (frame["upper"] - frame["lower"]).to_numpy()[of_verdict]
        position = of_verdict[np.argsort(width, kind="stable")[len(width) // 2]]
        x, y = _smooth(
            profile.columns.to_numpy(dtype=float), profile.iloc[position].to_numpy(), frame["pi"].iloc[position]
        )
        panel.plot(x, y, color=color, linewidth=1.6, label=f"{frame.index[position]}: {verdict}")
    critical = -0.5 * stats.chi2.ppf(level, 1)
    panel.axhline(critical, color="black", linewidth=0.9, linestyle=":")
    panel.text(1.0, critical + 0.1, f"{level:.0%}", ha="right", fontsize=8.5)
    panel.set(
        xlim=(0, 1),
        ylim=(-_DEPTH, 0.45 * _DEPTH),
        yticks=np.arange(-_DEPTH, 1, 2),
        xlabel=r"$\pi$, all else refitted",
        ylabel="Profile log-likelihood (nats)",
        title=r"How well can $\pi$ be known?",
    )
    panel.legend(frameon=False, loc="upper right", fontsize=8.5)
