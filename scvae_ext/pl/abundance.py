"""Where in an embedding cells are more frequent in one group of samples."""

from os import PathLike
from typing import Protocol, runtime_checkable

import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm

__all__ = ["differential_abundance"]

_UNSURE = "#d0d0d0"
_STANDARD_ERRORS = 2.0
_SHOWN = 0.98


@runtime_checkable
class _Ratio(Protocol):
    @property
    def group1(self) -> str: ...
    @property
    def group2(self) -> str: ...
    @property
    def n_samples1(self) -> int: ...
    @property
    def n_samples2(self) -> int: ...
    @property
    def log_ratio(self) -> Float[np.ndarray, "cells"]: ...
    @property
    def standard_error(self) -> Float[np.ndarray, "cells"]: ...


@runtime_checkable
class _Abundance(Protocol):
    @property
    def ratio(self) -> _Ratio | None: ...


def differential_abundance(
    result: _Abundance, coordinates: Float[np.ndarray, "cells two"], *, save: str | PathLike[str] | None = None
) -> Axes:
    """Draw cells in an embedding, coloured by the log ratio of their abundance in two groups of samples.

    Which states are more frequent in which group? Cells whose ratio is within two standard errors (between samples) of
    zero are grey, as are all where a group has one sample and there is no error. Colours end at the 98th percentile.

    Parameters
    ----------
    result
        What :meth:`scvae_ext.SCVAE.differential_abundance` returned with ``groupby``.
    coordinates
        Place of each cell, ``adata.obsm["X_umap"]`` for example.
    save
        File to write the figure to; its suffix gives the format.

    Returns
    -------
    matplotlib.axes.Axes
        The panel.

    Raises
    ------
    ValueError
        If the result has no groups, or the coordinates are not two for each of its cells.
    """
    ratio = result.ratio
    if ratio is None:
        raise ValueError("The result has no ratio: pass groupby=... and group1=... to differential_abundance.")
    if coordinates.shape != (len(ratio.log_ratio), 2):
        raise ValueError(
            f"coordinates has shape {coordinates.shape}, but must be ({len(ratio.log_ratio)}, 2): two numbers for each "
            "cell of the result, in its order."
        )
    with np.errstate(invalid="ignore"):
        sure = np.abs(ratio.log_ratio) > _STANDARD_ERRORS * ratio.standard_error
    # A few cells in empty places have ratios far beyond all others.
    reach = float(np.quantile(np.abs(ratio.log_ratio), _SHOWN)) or 1.0
    figure, axes = plt.subplots(figsize=(6.2, 4.8), layout="constrained")
    size = float(np.clip(12_000 / len(sure), 2, 14))
    x, y = coordinates.T
    axes.scatter(x[~sure], y[~sure], s=size, color=_UNSURE, linewidths=0, label=f"unsure ({np.sum(~sure)})")
    # The largest ratios last, so that they are not hidden.
    order = np.flatnonzero(sure)[np.argsort(np.abs(ratio.log_ratio[sure]))]
    drawn = axes.scatter(
        x[order],
        y[order],
        c=ratio.log_ratio[order],
        cmap="RdBu_r",
        norm=TwoSlopeNorm(0.0, -reach, reach),
        s=size,
        linewidths=0,
    )
    bar = figure.colorbar(drawn, ax=axes, shrink=0.85, aspect=25, extend="both")
    bar.set_label(f"Log ratio of abundance\n← more in {ratio.group2}      more in {ratio.group1} →", fontsize=9)
    axes.set(
        xticks=[],
        yticks=[],
        title=f"{ratio.group1} ({ratio.n_samples1} samples) over {ratio.group2} ({ratio.n_samples2} samples)",
    )
    axes.title.set_fontsize(11)
    axes.spines[:].set_visible(False)
    axes.set_aspect("equal", adjustable="datalim")
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(0, 0.02), fontsize=8.5, markerscale=2)
    if save is not None:
        figure.savefig(save, dpi=150)
    return axes
