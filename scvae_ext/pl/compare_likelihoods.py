"""Which likelihood the data support, and what the others get wrong."""

import textwrap
from collections.abc import Mapping
from os import PathLike
from typing import Any, Protocol, runtime_checkable

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import NullFormatter

__all__ = ["compare_likelihoods"]

_COLORS = {"poisson": "#E69F00", "nb": "#0072B2", "zinb": "#009E73", "normal": "#CC79A7"}
_N_GROUPS = 15


@runtime_checkable
class _LikelihoodComparison(Protocol):
    @property
    def verdict(self) -> str: ...
    @property
    def supported(self) -> str: ...
    @property
    def least_gain(self) -> float: ...
    @property
    def checks(self) -> Mapping[str, Any]: ...
    def to_frame(self) -> pd.DataFrame: ...


def compare_likelihoods(result: _LikelihoodComparison, *, save: str | PathLike[str] | None = None) -> list[Axes]:
    """Draw the held-out evidence of each likelihood, and what its replicated data get wrong.

    Which likelihood do the data support? On the left, the evidence of each minus that of the supported one, with two
    standard errors to either side; within the grey band a likelihood with more parameters gains too little. Why? In the
    middle and on the right, the replicated variance and share of zeros of genes against those observed, by the mean of
    the gene: the median of genes of similar mean, and the range of the middle half of them, for genes with at least ten
    replicated counts. A likelihood that fits stays on the dotted line.

    Parameters
    ----------
    result
        What :func:`scvae_ext.diagnostics.compare_likelihoods` returned.
    save
        File to write the figure to; its suffix gives the format.

    Returns
    -------
    list of matplotlib.axes.Axes
        The three panels.
    """
    figure, panels = plt.subplots(1, 3, figsize=(10.6, 3.9), layout="constrained")
    figure.suptitle("\n".join(textwrap.wrap(result.verdict, 115)), fontsize=10.5)
    evidence, variance, zeros = panels
    _draw_differences(evidence, result)
    tables = {name: check.to_frame("genes")[check.is_testable] for name, check in result.checks.items()}
    _draw_misfit(variance, tables, "variance")
    variance.axhline(1.0, color="black", linewidth=0.9, linestyle=":")
    variance.set(yscale="log", ylabel="Variance, replicated / observed", title="Is there enough variance?")
    _draw_misfit(zeros, tables, "zeros")
    zeros.axhline(0.0, color="black", linewidth=0.9, linestyle=":")
    zeros.set(ylabel="Share of zeros, replicated $-$ observed", title="Are there enough zeros?")
    variance.legend(frameon=False, fontsize=8.5)
    for panel in panels:
        panel.spines[["top", "right"]].set_visible(False)
        panel.title.set_fontsize(10)
    if save is not None:
        figure.savefig(save, dpi=200)
    return list(panels)


def _draw_differences(panel: Axes, result: _LikelihoodComparison) -> None:
    frame = result.to_frame()
    position = np.arange(len(frame))[::-1]
    linear = max(result.least_gain, 0.1)
    panel.axvspan(-result.least_gain, result.least_gain, color="#e8e8e8", linewidth=0)
    panel.axvline(0.0, color="black", linewidth=0.9, linestyle=":")
    for y, (name, row) in zip(position, frame.iterrows(), strict=True):
        color = _COLORS[str(name)]
        panel.errorbar(row["difference"], y, xerr=2 * row["standard_error"], fmt="o", color=color, capsize=3)
        label = "supported" if row["is_supported"] else f"{row['difference']:+.2f} ± {row['standard_error']:.2f}"
        # Labels far to the left would run into the names.
        side, shift = ("left", -8) if row["difference"] < -10 * linear else ("center", 0)
        panel.annotate(
            label, (row["difference"], y), xytext=(shift, 8), textcoords="offset points", ha=side, fontsize=8.5
        )
    # Differences run from tenths of a nat to hundreds.
    panel.set_xscale("symlog", linthresh=linear)
    low, high = (
        (frame["difference"] - 2 * frame["standard_error"]).min(),
        (frame["difference"] + 2 * frame["standard_error"]).max(),
    )
    panel.set(
        xlim=(min(4 * low, -2.5 * linear), max(4 * high, 2.5 * linear)),
        ylim=(-0.6, len(frame) - 0.3),
        xlabel="Held-out evidence, difference to supported\n(nats per cell)",
        title="Which likelihood predicts best?",
    )
    panel.set_yticks(position, list(frame.index))


def _draw_misfit(panel: Axes, tables: Mapping[str, pd.DataFrame], statistic: str) -> None:
    for name, genes in tables.items():
        # The median: statistics of counts are skewed, and their mean is above what most genes show.
        seen = genes[genes["mean"] > 0]
        if seen.empty:
            continue
        observed, replicated = seen[statistic].to_numpy(), seen[f"{statistic}_median"].to_numpy()
        misfit = replicated / observed if statistic == "variance" else replicated - observed
        mean = seen["mean"].to_numpy()
        groups = np.array_split(np.argsort(mean), max(1, min(_N_GROUPS, len(seen) // 4)))
        x = [np.median(mean[group]) for group in groups]
        low, middle, high = np.array([np.quantile(misfit[group], [0.25, 0.5, 0.75]) for group in groups]).T
        panel.fill_between(x, low, high, color=_COLORS[name], alpha=0.18, linewidth=0)
        # One that contains another often lies on top of it.
        style = "--" if name == "zinb" else "-"
        panel.plot(x, middle, color=_COLORS[name], linewidth=1.6, linestyle=style, label=name)
    panel.set(xscale="log", xlabel="Mean count of the gene")
    panel.xaxis.set_minor_formatter(NullFormatter())
