"""How far the ELBO is from the evidence, and how well the evidence is known."""

from os import PathLike
from typing import Protocol, runtime_checkable

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

__all__ = ["evidence"]

_AMORTIZATION, _APPROXIMATION = "#0072B2", "#E69F00"


@runtime_checkable
class _Evidence(Protocol):
    @property
    def mean(self) -> float: ...
    @property
    def mean_standard_error(self) -> float: ...
    @property
    def n_samples(self) -> int: ...
    @property
    def trusted_from(self) -> int: ...
    def to_frame(self) -> pd.DataFrame: ...


def evidence(result: _Evidence, *, save: str | PathLike[str] | None = None) -> list[Axes]:
    """Draw the gap between ELBO and evidence, cell by cell, and the precision of the estimate.

    How much does the ELBO miss, and why? On the left, cells in the order of their gap, which is split into what a
    better encoder would win (amortization) and what no diagonal Gaussian can (approximation). On the right, can the
    estimate be believed? The effective sample size of each cell, with those that are too low in grey.

    Parameters
    ----------
    result
        What :func:`scvae_ext.diagnostics.evidence` returned.
    save
        File to write the figure to; its suffix gives the format.

    Returns
    -------
    list of matplotlib.axes.Axes
        The two panels.
    """
    frame = result.to_frame()
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.2, 3.5), width_ratios=(1.5, 1), layout="constrained")
    figure.suptitle(
        rf"$\log p(x) = {result.mean:.2f} \pm {result.mean_standard_error:.2g}$,  ELBO $= {frame['elbo'].mean():.2f}$ "
        f"nats per cell  ({len(frame):,} cells)",
        fontsize=11,
    )
    _draw_gaps(left, frame)
    _draw_effective_sample_size(right, frame, result.trusted_from, result.n_samples)
    for panel in (left, right):
        panel.spines[["top", "right"]].set_visible(False)
    if save is not None:
        figure.savefig(save, dpi=200)
    return [left, right]


def _draw_gaps(panel: Axes, frame: pd.DataFrame) -> None:
    ordered = frame.sort_values("gap", ascending=False)
    edges = np.arange(len(ordered) + 1) + 0.5
    approximation, total = ordered["approximation_gap"].to_numpy(), ordered["gap"].to_numpy()
    panel.stairs(
        total, edges, baseline=approximation, fill=True, color=_AMORTIZATION, label=_label(frame, "amortization")
    )
    panel.stairs(approximation, edges, fill=True, color=_APPROXIMATION, label=_label(frame, "approximation"))
    panel.axhline(total.mean(), color="black", linewidth=0.9, linestyle="--", label=f"gap, mean {total.mean():.2f}")
    panel.set(
        xlabel="Cell, by gap",
        ylabel=r"$\log p(x)$ $-$ ELBO (nats)",
        xlim=(edges[0], edges[-1]),
        title="What does the ELBO miss?",
    )
    panel.title.set_fontsize(10)
    panel.legend(frameon=False, loc="upper right")


def _label(frame: pd.DataFrame, gap: str) -> str:
    return f"{gap}, mean {frame[f'{gap}_gap'].mean():.2f}"


def _draw_effective_sample_size(panel: Axes, frame: pd.DataFrame, trusted_from: int, n_samples: int) -> None:
    size = frame["effective_sample_size"].to_numpy()
    # Bins of equal ratio, one edge of which is the limit of trust.
    width = np.log(n_samples / trusted_from) / 12 if n_samples > trusted_from else np.log(trusted_from) / 12
    n_below = int(np.ceil(np.log(trusted_from) / width))
    n_above = int(np.round(np.log(n_samples / trusted_from) / width))
    edges = trusted_from * np.exp(width * np.arange(-n_below, n_above + 1))
    # Rounding may not push the largest possible value out of the last bin.
    edges[-1] = max(edges[-1], n_samples) * (1 + 1e-9)
    counts, _ = np.histogram(size, edges)
    n_low = int(np.count_nonzero(size < trusted_from))
    panel.stairs(counts[n_below:], edges[n_below:], fill=True, color="#009E73")
    panel.stairs(counts[:n_below], edges[: n_below + 1], fill=True, color="#808080")
    panel.axvline(trusted_from, color="black", linewidth=0.9, linestyle=":")
    panel.text(
        0.03,
        0.97,
        f"below {trusted_from}:\n{n_low} of {len(size)}",
        transform=panel.transAxes,
        va="top",
        fontsize=9,
        color="#404040",
    )
    panel.set(
        xscale="log",
        xlim=(min(1.0, edges[0]), edges[-1]),
        ylim=(0, 1.3 * max(1, counts.max())),
        xlabel=f"Effective sample size (of {n_samples:,})",
        ylabel="Cells",
        title="Is the estimate precise?",
    )
    panel.title.set_fontsize(10)
