"""What a VAE does better than an autoencoder, and what it does worse."""

import textwrap
from collections.abc import Mapping
from os import PathLike
from typing import Any, Protocol, runtime_checkable

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

__all__ = ["compare_autoencoder"]

_COLORS = {"vae": "#0072B2", "autoencoder": "#E69F00", "autoencoder_normal": "#A65628", "real": "#b5b5b5"}
_NAMES = {"vae": "VAE", "autoencoder": "autoencoder"}


@runtime_checkable
class _AutoencoderComparison(Protocol):
    @property
    def verdict(self) -> str: ...
    @property
    def measures(self) -> Mapping[str, Any]: ...
    @property
    def coverage(self) -> pd.DataFrame: ...
    @property
    def made(self) -> Mapping[str, np.ndarray]: ...
    def winner(self, name: str) -> str | None: ...


def compare_autoencoder(result: _AutoencoderComparison, *, save: str | PathLike[str] | None = None) -> list[Axes]:
    """Draw each measure of a VAE and an autoencoder side by side, and the cells that both generate.

    Is a probabilistic model better? In the upper row, what is better when lower or nearer the dotted line: errors of
    reconstruction, prediction of one half of the molecules from the other, and the way between cells. In the lower row,
    generated cells among real ones in the plane of two principal components, how well a classifier tells them
    apart, and which share of held-out counts the predictive intervals hold. Bars are two standard errors. A star
    stands where a model is better by more than two standard errors of the difference.

    Parameters
    ----------
    result
        What :func:`scvae_ext.diagnostics.compare_autoencoder` returned.
    save
        File to write the figure to; its suffix gives the format.

    Returns
    -------
    list of matplotlib.axes.Axes
        The six panels, row by row.
    """
    figure, grid = plt.subplots(2, 3, figsize=(11.0, 7.2), layout="constrained")
    panels = list(grid.flat)
    figure.suptitle("\n".join(textwrap.wrap(result.verdict, 125)), fontsize=9.5)
    _draw_measures(panels[0], result, {"training_error": "training\ncells", "held_out_error": "held-out\ncells"})
    panels[0].set(title="Reconstruction", ylabel="Squared error of log values")
    _draw_measures(panels[1], result, {"half_deviance": "deviance"})
    panels[1].set(title="One half of the molecules from the other", ylabel="Deviance of a held-out cell")
    _annotate_correlation(panels[1], result)
    _draw_measures(panels[2], result, {"detour": "detour", "largest_step": "largest\nstep", "gap": "gap"})
    panels[2].set(title="On the line between two cells", ylabel="Ratio")
    _draw_made(panels[3], result)
    _draw_generated(panels[4], result)
    _draw_coverage(panels[5], result.coverage)
    panels[0].legend(frameon=False, fontsize=8.5)
    for panel in panels:
        panel.spines[["top", "right"]].set_visible(False)
        panel.title.set_fontsize(10)
    if save is not None:
        figure.savefig(save, dpi=200)
    return panels


def _draw_measures(panel: Axes, result: _AutoencoderComparison, labels: Mapping[str, str]) -> None:
    """Draw both models' values of some measures, each with its reference."""
    names = [name for name in labels if name in result.measures]
    if not names:
        panel.text(0.5, 0.5, "Cells are decoded alike:\nthere are no lines.", ha="center", transform=panel.transAxes)
        panel.set_axis_off()
        return
    for x, name in enumerate(names):
        found = result.measures[name]
        for shift, model in ((-0.14, "vae"), (0.14, "autoencoder")):
            value, error = getattr(found, model), getattr(found, f"{model}_error")
            label = _NAMES[model] if x == 0 else None
            panel.errorbar(x + shift, value, yerr=2 * error, fmt="o", color=_COLORS[model], capsize=3, label=label)
            if result.winner(name) == model:
                _star(panel, x + shift, value + 2 * error)
        if np.isfinite(found.reference):
            panel.hlines(found.reference, x - 0.35, x + 0.35, color="black", linewidth=0.9, linestyle=":")
    panel.set_xticks(range(len(names)), [labels[name] for name in names])
    panel.set_xlim(-0.6, len(names) - 0.4)
    low, high = panel.get_ylim()
    panel.set_ylim(0 if low < 0.5 * high else low, high + 0.12 * (high - low))


def _star(panel: Axes, x: float, y: float) -> None:
    panel.annotate("★", (x, y), (0, 4), textcoords="offset points", ha="center", fontsize=10)


def _annotate_correlation(panel: Axes, result: _AutoencoderComparison) -> None:
    reference = result.measures["half_deviance"].reference
    panel.annotate("the mean cell", (-0.35, reference), (0, -11), textcoords="offset points", fontsize=8.5)
    found, better = result.measures["half_correlation"], result.winner("half_correlation")
    words = [
        f"{_NAMES[model]} {getattr(found, model):.3f}{' ★' if better == model else ''}"
        for model in ("vae", "autoencoder")
    ]
    panel.set_xticks([0], [f"deviance\n(correlation: {', '.join(words)})"])


def _draw_made(panel: Axes, result: _AutoencoderComparison) -> None:
    labels = {
        "real": "real, held out",
        "autoencoder_normal": "autoencoder, N(0, I)",
        "autoencoder": "autoencoder, Gaussian of codes",
        "vae": "VAE, prior",
    }
    for name, label in labels.items():
        size = 26 if name == "real" else 9
        panel.scatter(
            result.made[name][:, 0],
            result.made[name][:, 1],
            s=size,
            color=_COLORS[name],
            alpha=0.7,
            linewidth=0,
            label=label,
        )
    # A few cells far off would leave no room for the others.
    made = np.concatenate([result.made[name] for name in labels])
    low, high = np.quantile(made, [0.005, 0.995], axis=0)
    low, high = low - 0.08 * (high - low), high + 0.08 * (high - low)
    # Room for the legend above the cells.
    panel.set(xlim=(low[0], high[0]), ylim=(low[1], high[1] + 0.5 * (high[1] - low[1])))
    panel.set(title="Generated cells", xlabel="First component", ylabel="Second component", xticks=[], yticks=[])
    panel.legend(frameon=False, fontsize=8, handletextpad=0.1, loc="upper left")


def _draw_generated(panel: Axes, result: _AutoencoderComparison) -> None:
    codes, normal = result.measures["generated_auc"], result.measures["generated_auc_normal"]
    rows = [
        ("VAE,\nprior", codes.vae, codes.vae_error, _COLORS["vae"], result.winner("generated_auc") == "vae"),
        (
            "autoencoder,\nGaussian of codes",
            codes.autoencoder,
            codes.autoencoder_error,
            _COLORS["autoencoder"],
            result.winner("generated_auc") == "autoencoder",
        ),
        (
            "autoencoder,\nN(0, I)",
            normal.autoencoder,
            normal.autoencoder_error,
            _COLORS["autoencoder_normal"],
            False,
        ),
    ]
    for x, (_, value, error, color, is_better) in enumerate(rows):
        panel.errorbar(x, value, yerr=2 * error, fmt="o", color=color, capsize=3)
        if is_better:
            _star(panel, x, value + 2 * error)
    panel.axhline(codes.reference, color=_COLORS["real"], linewidth=1.2, linestyle="--")
    if np.isfinite(codes.reference_error):
        spread = 2 * codes.reference_error * np.array([-1, 1]) + codes.reference
        panel.axhspan(*spread, color=_COLORS["real"], alpha=0.2, linewidth=0)
    panel.annotate("real cells", (2.45, codes.reference), (0, 3), textcoords="offset points", ha="right", fontsize=8.5)
    panel.axhline(0.5, color="black", linewidth=0.9, linestyle=":")
    panel.set_xticks(range(3), [name for name, *_ in rows], fontsize=8.5)
    lowest = min([0.5, codes.reference, *(value - 2 * error for _, value, error, *_ in rows)])
    panel.set(
        title="Are they told from real ones?",
        ylabel="Area under the curve",
        xlim=(-0.5, 2.5),
        ylim=(lowest - 0.04, 1.06),
    )


def _draw_coverage(panel: Axes, coverage: pd.DataFrame) -> None:
    panel.plot([0, 1], [0, 1], color="black", linewidth=0.9, linestyle=":")
    panel.plot(coverage.index, coverage["vae"], color=_COLORS["vae"], label="VAE")
    panel.plot(
        coverage.index,
        coverage["autoencoder"],
        color=_COLORS["autoencoder"],
        linestyle="--",
        label="autoencoder, which states none,\nwere the noise Poisson",
    )
    panel.set(
        title="Is the uncertainty right?",
        xlabel="Level of the interval",
        ylabel="Held-out counts inside",
        xlim=(0, 1),
        ylim=(0, 1),
    )
    panel.legend(frameon=False, fontsize=8)
