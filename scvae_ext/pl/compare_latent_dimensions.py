"""How much dependence between genes is left as the latent space grows."""

import textwrap
from os import PathLike
from typing import Any, Protocol, runtime_checkable

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

__all__ = ["compare_latent_dimensions"]

_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


@runtime_checkable
class _LatentDimensionComparison(Protocol):
    @property
    def verdict(self) -> str: ...
    def to_frame(self) -> pd.DataFrame: ...


def compare_latent_dimensions(
    result: _LatentDimensionComparison, *, save: str | PathLike[str] | None = None
) -> list[Axes]:
    """Draw residual correlations between genes, modules, and held-out evidence by the size of the latent space.

    Does a larger latent space explain what genes share? On the left, the root mean square residual correlation beyond
    chance, with the largest value that chance alone gives in 95% of cases; in the middle, the number of modules. What
    does it gain? On the right, the held-out evidence less that of the best setting, with two standard errors. A line
    for each residual rank.

    Parameters
    ----------
    result
        What :func:`scvae_ext.diagnostics.compare_latent_dimensions` returned.
    save
        File to write the figure to; its suffix gives the format.

    Returns
    -------
    list of matplotlib.axes.Axes
        The three panels.
    """
    frame = result.to_frame()
    figure, panels = plt.subplots(1, 3, figsize=(10.0, 3.7), layout="constrained")
    figure.suptitle("\n".join(textwrap.wrap(result.verdict, 120)), fontsize=10)
    left, middle, right = panels
    left.axhspan(0, np.sqrt(1.645 * frame["excess_error"].max()), color="#e8e8e8", linewidth=0, label="chance")
    ranks = sorted(set(frame.index.get_level_values("residual_rank")))
    for position, rank in enumerate(ranks):
        rows = frame.xs(rank, level="residual_rank").sort_index()
        x = rows.index.to_numpy()
        style: dict[str, Any] = {"color": _COLORS[position % len(_COLORS)], "marker": "o", "markersize": 4}
        label = f"{rank} residual factors" if rank != 1 else "1 residual factor"
        left.plot(x, rows["rms_correlation"], label=label, **style)
        middle.plot(x, rows["n_modules"], **style)
        right.errorbar(x, rows["difference"], yerr=2 * rows["standard_error"], capsize=3, **style)
    left.set(ylabel="Root mean square correlation\nbeyond chance", title="Dependence between genes")
    middle.set(ylabel="Eigenvalues above chance", title="Modules")
    right.set(ylabel="Held-out evidence, difference to best\n(nats per cell)", title="What it gains")
    for panel in (left, middle):
        panel.set_ylim(0, 1.35 * max(panel.get_ylim()[1], 1e-3))
    right.axhline(0.0, color="black", linewidth=0.9, linestyle=":")
    sizes = sorted(set(frame.index.get_level_values("n_latent")))
    for panel in panels:
        panel.set_xscale("log")
        panel.set_xticks(sizes, [str(size) for size in sizes])
        panel.xaxis.set_minor_locator(NullLocator())
        panel.set_xlabel("Latent dimensions")
        panel.spines[["top", "right"]].set_visible(False)
        panel.title.set_fontsize(10)
    left.legend(frameon=False, fontsize=8.5, loc="upper right")
    if save is not None:
        figure.savefig(save, dpi=200)
    return list(panels)
