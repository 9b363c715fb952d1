"""What data drawn from the model get wrong, and whether its predictions are calibrated."""

import textwrap
from os import PathLike
from typing import Literal, Protocol, runtime_checkable

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from jaxtyping import Bool, Float
from matplotlib.axes import Axes

__all__ = ["posterior_predictive_check"]

_INSIDE, _TOO_LOW, _TOO_HIGH = "#a0a0a0", "#D55E00", "#0072B2"
_STRATA = ("#56B4E9", "#009E73", "#CC79A7")
_MAX_PAIRS = 5000


@runtime_checkable
class _PosteriorPredictiveCheck(Protocol):
    @property
    def verdict(self) -> str: ...
    @property
    def n_samples(self) -> int: ...
    @property
    def latent(self) -> str: ...
    def strata(self) -> dict[str, Bool[np.ndarray, "genes"]]: ...
    def pit(self, genes: Bool[np.ndarray, "genes"] | None = None) -> Float[np.ndarray, "bins"]: ...
    def coverage(self, genes: Bool[np.ndarray, "genes"] | None = None) -> pd.Series: ...
    def to_frame(self, table: Literal["genes", "cells", "pairs", "coverage"] = "genes") -> pd.DataFrame: ...


def posterior_predictive_check(
    result: _PosteriorPredictiveCheck, *, save: str | PathLike[str] | None = None
) -> list[Axes]:
    """Draw observed data against replicated data, and the calibration of predictions.

    What does the model get wrong? At the top, variance and share of zeros of each gene against its mean, the black line
    being what replicated data show, and the number of genes detected in each cell, observed and replicated. At the
    bottom, correlations between genes, and whether predictions are calibrated: the probability integral transform
    of counts, flat if they are (a U means predictions that are too narrow, a hump too wide), and the share of counts
    in predictive intervals by their level. Points in colour lie outside the interval that holds 95% of the replicates.

    Parameters
    ----------
    result
        What :func:`scvae_ext.diagnostics.posterior_predictive_check` returned.
    save
        File to write the figure to; its suffix gives the format.

    Returns
    -------
    list of matplotlib.axes.Axes
        The six panels, row by row.
    """
    figure, grid = plt.subplots(2, 3, figsize=(10.2, 6.6), layout="constrained")
    panels: list[Axes] = list(grid.ravel())
    figure.suptitle("\n".join(textwrap.wrap(result.verdict, 110)), fontsize=11)
    genes = result.to_frame("genes")
    _draw_against_mean(panels[0], genes, "variance", "Variance of counts", "Is there enough variance?")
    _draw_against_mean(panels[1], genes, "zeros", "Share of zeros", "Are there enough zeros?")
    _draw_detected(panels[2], result.to_frame("cells"), len(genes))
    _draw_correlations(panels[3], result.to_frame("pairs"))
    _draw_pit(panels[4], result)
    _draw_coverage(panels[5], result)
    for panel in panels:
        panel.spines[["top", "right"]].set_visible(False)
        panel.title.set_fontsize(10)
        if panel.get_legend_handles_labels()[0]:
            panel.legend(frameon=False, fontsize=8.5)
    if save is not None:
        figure.savefig(save, dpi=200)
    return panels


def _sides(tail: Float[np.ndarray, "units"]) -> tuple[tuple[np.ndarray, str, str], ...]:
    """Return which units lie inside the replicated interval or off to a side, with a color and a label."""
    low, high = tail < 0.025, tail > 0.975
    return (
        (~low & ~high, _INSIDE, "as replicated"),
        (low, _TOO_LOW, "replicated too low"),
        (high, _TOO_HIGH, "replicated too high"),
    )


def _scatter(
    panel: Axes, x: Float[np.ndarray, "units"], y: Float[np.ndarray, "units"], tail: Float[np.ndarray, "units"]
) -> None:
    for chosen, color, label in _sides(tail):
        n = np.count_nonzero(chosen)
        panel.plot(
            x[chosen], y[chosen], linestyle="", marker=".", markersize=3, color=color, label=f"{label} ({n})", alpha=0.6
        )


def _draw_against_mean(panel: Axes, genes: pd.DataFrame, statistic: str, label: str, title: str) -> None:
    seen = genes[genes["mean"] > 0]
    mean = seen["mean"].to_numpy()
    _scatter(panel, mean, seen[statistic].to_numpy(), seen[f"{statistic}_tail"].to_numpy())
    # Medians of genes of similar mean: replicated values of single genes scatter as the observed ones do.
    replicated = seen[f"{statistic}_median"].groupby(np.round(5 * np.log10(mean)))
    panel.plot(
        seen["mean"].groupby(np.round(5 * np.log10(mean))).median(),
        replicated.median(),
        color="black",
        linewidth=1.2,
        label="replicated, median",
    )
    panel.set(xscale="log", xlabel="Mean count of the gene", ylabel=label, title=title)
    if statistic == "variance":
        panel.set_yscale("log")


def _draw_detected(panel: Axes, cells: pd.DataFrame, n_genes: int) -> None:
    observed = n_genes * cells["detection_rate"].to_numpy()
    replicated = n_genes * cells["detection_rate_replicated"].to_numpy()
    _scatter(panel, observed, replicated, cells["detection_rate_tail"].to_numpy())
    _draw_diagonal(panel, observed, replicated)
    panel.set(xlabel="Genes detected in the cell", ylabel="Replicated", title="Are as many genes detected?")


def _draw_correlations(panel: Axes, pairs: pd.DataFrame) -> None:
    compared = pairs.dropna()
    panel.set(xlabel="Correlation of two genes", ylabel="Replicated", title="Are genes as correlated?")
    if compared.empty:
        panel.text(0.5, 0.5, "no two genes\nwith varying counts", transform=panel.transAxes, ha="center", va="center")
        return
    # A regular subset: more points would only cover each other.
    shown = compared.iloc[:: 1 + len(compared) // _MAX_PAIRS]
    observed, replicated = shown["correlation"].to_numpy(), shown["correlation_replicated"].to_numpy()
    _scatter(panel, observed, replicated, shown["correlation_tail"].to_numpy())
    _draw_diagonal(panel, observed, replicated)
    panel.locator_params(nbins=5)


def _draw_diagonal(panel: Axes, x: Float[np.ndarray, "units"], y: Float[np.ndarray, "units"]) -> None:
    ends = [min(x.min(), y.min()), max(x.max(), y.max())]
    panel.plot(ends, ends, color="black", linewidth=0.9, linestyle=":")


def _draw_pit(panel: Axes, result: _PosteriorPredictiveCheck) -> None:
    highest = 1.0
    for (name, genes), color in zip(result.strata().items(), _STRATA, strict=False):
        # Neighbouring bins together: half the resolution shows the shape.
        density = result.pit(genes).reshape(-1, 2).mean(1)
        highest = max(highest, density.max())
        edges = np.linspace(0, 1, len(density) + 1)
        label = f"mean {name} ({np.count_nonzero(genes)} genes)"
        panel.stairs(density, edges, baseline=None, color=color, linewidth=1.4, label=label)
    panel.axhline(1.0, color="black", linewidth=0.9, linestyle=":")
    panel.set(
        xlim=(0, 1),
        ylim=(0, 1.3 * highest),
        xlabel="Probability integral transform",
        ylabel="Density",
        title=f"Are predictions calibrated? (z from the {result.latent})",
    )


def _draw_coverage(panel: Axes, result: _PosteriorPredictiveCheck) -> None:
    for (name, genes), color in zip(result.strata().items(), _STRATA, strict=False):
        coverage = result.coverage(genes)
        panel.plot(coverage.index, coverage, color=color, linewidth=1.6, label=f"mean {name}")
    panel.plot([0, 1], [0, 1], color="black", linewidth=0.9, linestyle=":")
    panel.set(
        xlim=(0, 1),
        ylim=(0, 1),
        xlabel="Level of the predictive interval",
        ylabel="Share of counts inside",
        title="Do intervals hold what they say?",
    )
