"""Which latent dimensions are used, and what they say."""

from os import PathLike
from typing import Protocol, runtime_checkable

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

__all__ = ["posterior_collapse"]

_ACTIVE, _INACTIVE = "#0072B2", "#b0b0b0"
_INFORMATION, _MARGINAL = "#009E73", "#E69F00"


@runtime_checkable
class _PosteriorCollapse(Protocol):
    @property
    def verdict(self) -> str: ...
    @property
    def threshold(self) -> float: ...
    @property
    def rate(self) -> float: ...
    @property
    def mutual_information(self) -> float: ...
    @property
    def marginal_kl(self) -> float: ...
    @property
    def max_mutual_information(self) -> float: ...
    @property
    def n_cells(self) -> int: ...
    def to_frame(self) -> pd.DataFrame: ...


def posterior_collapse(result: _PosteriorCollapse, *, save: str | PathLike[str] | None = None) -> list[Axes]:
    """Draw how much each latent dimension is used, and what the posterior says about cells.

    Which dimensions are used? On the left, the divergence of each from the prior, in descending order, inactive ones in
    grey. On the right, the rate, split into what z says about a cell and the mismatch of the aggregated posterior with
    the prior; the dotted line is the most that this number of cells can show.

    Parameters
    ----------
    result
        What :func:`scvae_ext.diagnostics.posterior_collapse` returned.
    save
        File to write the figure to; its suffix gives the format.

    Returns
    -------
    list of matplotlib.axes.Axes
        The two panels.
    """
    frame = result.to_frame()
    figure, (left, right) = plt.subplots(
        1,
        2,
        figsize=(6.6 + 0.14 * min(max(len(frame), 8), 40), 3.5),
        width_ratios=(1.7, 1),
        layout="constrained",
    )
    figure.suptitle(result.verdict.replace(";", ",").split(",")[0].rstrip("."), fontsize=11)
    _draw_dimensions(left, frame, result.threshold)
    _draw_rate(right, result)
    for panel in (left, right):
        panel.spines[["top", "right"]].set_visible(False)
        panel.title.set_fontsize(10)
    if save is not None:
        figure.savefig(save, dpi=200)
    return [left, right]


def _draw_dimensions(panel: Axes, frame: pd.DataFrame, threshold: float) -> None:
    ordered = frame.sort_values("kl", ascending=False)
    active = ordered["is_active"].to_numpy()
    position, kl = np.arange(len(ordered)), ordered["kl"].to_numpy()
    for chosen, color, label in (
        (active, _ACTIVE, f"active ({np.count_nonzero(active)})"),
        (~active, _INACTIVE, f"inactive ({np.count_nonzero(~active)}): variance of mean at most {threshold:g}"),
    ):
        # A marker shows a dimension whose bar is too low to be seen.
        panel.bar(position[chosen], kl[chosen], color=color, width=0.8)
        panel.plot(position[chosen], kl[chosen], linestyle="", marker="o", markersize=4, color=color, label=label)
    step = 1 + len(ordered) // 25
    panel.set_xticks(position[::step], [str(name) for name in ordered.index[::step]])
    panel.set(
        xlim=(-0.6, len(ordered) - 0.4),
        ylim=(0, 1.35 * max(kl.max(), 1e-3)),
        xlabel="Latent dimension, by KL",
        ylabel="KL from the prior (nats per cell)",
        title="Which dimensions are used?",
    )
    panel.legend(frameon=False, loc="upper right", fontsize=8.5)


def _draw_rate(panel: Axes, result: _PosteriorCollapse) -> None:
    information, marginal = max(result.mutual_information, 0.0), max(result.marginal_kl, 0.0)
    panel.bar([0], [information], color=_INFORMATION, width=0.6, label=rf"$I(x; z)$ = {information:.2f}")
    panel.bar(
        [0],
        [marginal],
        bottom=[information],
        color=_MARGINAL,
        width=0.6,
        label=rf"KL$(q(z) \,\|\, p(z))$ = {marginal:.2f}",
    )
    ceiling = result.max_mutual_information
    panel.axhline(
        ceiling, color="black", linewidth=0.9, linestyle=":", label=f"log({result.n_cells:,}) = {ceiling:.2f}"
    )
    panel.set(
        xticks=[],
        xlim=(-0.7, 0.7),
        ylim=(0, 1.5 * max(information + marginal, ceiling)),
        ylabel="Nats per cell",
        title=f"Rate = {result.rate:.2f}",
    )
    panel.legend(frameon=False, loc="upper right", fontsize=8.5)
