"""Which genes still correlate, given the latent state."""

import textwrap
from os import PathLike
from typing import Protocol, runtime_checkable

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullFormatter
from scipy.stats import norm

__all__ = ["conditional_independence"]

_CHANCE, _FOUND = "#8c8c8c", "#D55E00"
_BULK = "#0072B2"
_SHOWN_GENES = 45
_NAMED_GENES = 30


@runtime_checkable
class _ConditionalIndependence(Protocol):
    @property
    def verdict(self) -> str: ...
    @property
    def var_names(self) -> pd.Index: ...
    @property
    def n_cells(self) -> int: ...
    @property
    def correlation(self) -> Float[np.ndarray, "genes genes"]: ...
    @property
    def eigenvalues(self) -> Float[np.ndarray, "genes"]: ...
    @property
    def edge(self) -> float: ...
    @property
    def threshold(self) -> float: ...
    @property
    def n_modules(self) -> int: ...
    @property
    def pairs(self) -> Int[np.ndarray, "pairs 2"]: ...
    @property
    def rms_correlation(self) -> float: ...
    def to_frame(self, table: str = "pairs") -> pd.DataFrame: ...


def conditional_independence(
    result: _ConditionalIndependence, *, save: str | PathLike[str] | None = None
) -> list[Axes]:
    r"""Draw residual correlations between genes beside what chance gives, and the modules that remain.

    Are genes independent given the latent state? On the left, the correlations of all pairs of genes, and the density
    that they have under independence. In the middle, the eigenvalues of the matrix of correlations: under independence
    they follow the curve (Marchenko and Pastur), and none exceeds the dashed line; those that do are modules of genes.
    On the right, the correlations of the genes that load most on them, module by module.

    Parameters
    ----------
    result
        What :func:`scvae_ext.diagnostics.conditional_independence` returned.
    save
        File to write the figure to; its suffix gives the format.

    Returns
    -------
    list of matplotlib.axes.Axes
        The three panels.
    """
    figure, panels = plt.subplots(1, 3, figsize=(11.4, 3.9), width_ratios=(1, 1, 1.25), layout="constrained")
    figure.suptitle("\n".join(textwrap.wrap(result.verdict, 120)), fontsize=10.5)
    left, middle, right = panels
    _draw_correlations(left, result)
    _draw_eigenvalues(middle, result)
    _draw_modules(right, result)
    for panel in panels:
        panel.spines[["top", "right"]].set_visible(False)
        panel.title.set_fontsize(10)
    if save is not None:
        figure.savefig(save, dpi=200)
    return list(panels)


def _draw_correlations(panel: Axes, result: _ConditionalIndependence) -> None:
    values = result.correlation[np.triu_indices(len(result.correlation), k=1)]
    limit = 1.05 * max(np.abs(values).max(), 5 / np.sqrt(result.n_cells))
    bins = np.linspace(-limit, limit, 82)
    density, _ = np.histogram(values, bins, density=True)
    panel.stairs(density, bins, fill=True, color=_BULK, alpha=0.45, label=f"{len(values):,} pairs")
    x = np.linspace(-limit, limit, 400)
    chance = norm.pdf(x, scale=1 / np.sqrt(result.n_cells - 1))
    panel.plot(x, chance, color="black", linewidth=1.1, label="independent")
    if len(result.pairs):
        of_pairs = np.abs(result.correlation[tuple(result.pairs.T)])
        panel.axvspan(of_pairs.min(), limit, color=_FOUND, alpha=0.1, linewidth=0)
        panel.axvspan(-limit, -of_pairs.min(), color=_FOUND, alpha=0.1, linewidth=0)
        panel.plot([], [], color=_FOUND, alpha=0.3, linewidth=6, label=f"{len(of_pairs):,} found")
    smallest = 0.3 / (len(values) * (bins[1] - bins[0]))
    panel.set(
        yscale="log",
        xlim=(-limit, limit),
        ylim=(smallest, 8 * max(density.max(), chance.max())),
        xlabel="Correlation of residuals",
        ylabel="Density",
        title=f"Pairs of genes: {result.rms_correlation:.3f} beyond chance",
    )
    panel.legend(frameon=False, fontsize=8.5, loc="upper right")


def _draw_eigenvalues(panel: Axes, result: _ConditionalIndependence) -> None:
    eigenvalues, ratio = result.eigenvalues, len(result.eigenvalues) / (result.n_cells - 1)
    # With more genes than cells, the others are zero.
    positive = eigenvalues[: min(len(eigenvalues), result.n_cells - 1)]
    bins = np.geomspace(max(positive.min(), 1e-2), 1.2 * max(positive.max(), result.threshold), 45)
    above = positive > result.threshold
    for chosen, color, label in (
        (~above, _BULK, f"{np.count_nonzero(~above):,} within chance"),
        (above, _FOUND, f"{np.count_nonzero(above):,} above"),
    ):
        if chosen.any():
            number, _ = np.histogram(positive[chosen], bins)
            panel.stairs(number, bins, fill=True, color=color, alpha=0.6, label=label)
    lower, upper = (1 - np.sqrt(ratio)) ** 2, result.edge
    x = np.geomspace(max(lower, bins[0]), upper, 300)
    density = np.sqrt(np.maximum((upper - x) * (x - lower), 0.0)) / (2 * np.pi * ratio * x)
    # Of a logarithmic axis, a bin is wider for larger eigenvalues.
    expected = len(eigenvalues) * density * x * np.log(bins[1] / bins[0])
    panel.plot(x, expected, color="black", linewidth=1.1, label="independent")
    panel.axvline(result.threshold, color="black", linewidth=0.9, linestyle="--")
    panel.set(
        xscale="log",
        yscale="log",
        ylim=(0.5, None),
        xlabel="Eigenvalue of the correlations",
        ylabel="Number",
        title=f"Modules: {result.n_modules} eigenvalue{'' if result.n_modules == 1 else 's'} above chance",
    )
    # Eigenvalues often span less than a decade, which would have a single label.
    panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panel.xaxis.set_major_formatter("{x:g}")
    panel.xaxis.set_minor_formatter(NullFormatter())
    panel.set_ylim(top=8 * panel.get_ylim()[1])
    panel.legend(frameon=False, fontsize=8.5, loc="upper right")


def _draw_modules(panel: Axes, result: _ConditionalIndependence) -> None:
    genes = result.to_frame("genes").reset_index(drop=True)
    members = genes[genes["module"].notna()].assign(magnitude=lambda frame: frame["loading"].abs())
    if len(members) < 2:
        text = "no two genes load on modules\nbeyond chance"
        if len(members):
            text += f",\nonly {result.var_names[members.index[0]]} does"
        panel.text(0.5, 0.5, text, ha="center", va="center", color=_CHANCE)
        panel.set(xticks=[], yticks=[], title="Genes of the modules")
        panel.spines[:].set_visible(False)
        return
    strongest = members.nlargest(_SHOWN_GENES, "magnitude").sort_values(["module", "loading"], ascending=[True, False])
    order = strongest.index.to_numpy()
    shown = result.correlation[np.ix_(order, order)].copy()
    np.fill_diagonal(shown, np.nan)
    limit = max(float(np.nanmax(np.abs(shown))), 0.1)
    image = panel.imshow(shown, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="equal", interpolation="nearest")
    assert panel.figure is not None
    panel.figure.colorbar(image, ax=panel, shrink=0.8, label="Correlation of residuals")
    edges = np.flatnonzero(np.diff(strongest["module"].to_numpy(dtype=int))) + 0.5
    for edge in edges:
        panel.axhline(edge, color="black", linewidth=0.5)
        panel.axvline(edge, color="black", linewidth=0.5)
    panel.set(xticks=[], title=f"{len(order)} of {len(members)} genes of the modules")
    if len(order) <= _NAMED_GENES or all(len(str(name)) <= 12 for name in result.var_names[order]):
        panel.set_yticks(np.arange(len(order)), [str(name) for name in result.var_names[order]], fontsize=5.0)
    else:
        panel.set_yticks([])
