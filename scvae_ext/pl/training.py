"""How training went."""

from os import PathLike
from typing import Protocol, runtime_checkable

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes

__all__ = ["history"]

_UNITS = {
    "elbo": "ELBO (nats per cell)",
    "iwae": "Importance-weighted bound (nats per cell)",
    "mse": "Mean squared error",
}
_LOWER_IS_BETTER = frozenset({"kl", "kl_library", "mse"})
_COLORS = {"train": "#0072B2", "validation": "#D55E00"}


@runtime_checkable
class _Trained(Protocol):
    @property
    def history(self) -> pd.DataFrame: ...


def history(
    model: _Trained | pd.DataFrame,
    metric: str | None = None,
    *,
    ax: Axes | None = None,
    save: str | PathLike[str] | None = None,
) -> Axes:
    """Draw the training curve: a metric of training and held-out cells over optimiser steps.

    Did training converge, and did it overfit? The best held-out value is marked. The vertical axis leaves out what
    falls below the values reached after the first tenth of the steps, where the curve is too steep to say anything.

    Parameters
    ----------
    model
        Trained model, or its ``history``.
    metric
        What to draw: ``"elbo"`` (nats per cell), ``"reconstruction"``, ``"kl"`` or any other name for which the
        history has a column ``{metric}_train``. The objective of the model by default.
    ax
        Axes to draw on; new ones by default.
    save
        File to write the figure to; its suffix gives the format.

    Returns
    -------
    matplotlib.axes.Axes
        The axes drawn on.

    Raises
    ------
    ValueError
        If the model has not been trained, or the history has no such metric.
    """
    frame = model if isinstance(model, pd.DataFrame) else model.history
    metrics = [name.removesuffix("_train") for name in frame.columns if name.endswith("_train")]
    if frame.empty or not metrics:
        raise ValueError("The history is empty; call model.train() first.")
    metric = metrics[0] if metric is None else metric
    if metric not in metrics:
        raise ValueError(f"The history has no metric {metric!r}; choose one of {metrics}.")

    if ax is None:
        ax = plt.subplots(figsize=(5.0, 3.4), layout="constrained")[1]
    for part, label in {"train": "training cells", "validation": "held-out cells"}.items():
        if f"{metric}_{part}" in frame:
            marker = "." if len(frame) < 10 else "none"
            ax.plot(frame["step"], frame[f"{metric}_{part}"], marker=marker, color=_COLORS[part], label=label)
    if f"{metric}_validation" in frame:
        _mark_best(ax, frame, metric)
    _mark_end_of_warm_up(ax, frame)
    _zoom(ax, frame, metric)
    ax.set(xlabel="Optimiser step", ylabel=_UNITS.get(metric, f"{metric} (nats per cell)"))
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, loc="best")
    if save is not None and (figure := ax.get_figure(root=True)):
        figure.savefig(save, dpi=200)
    return ax


def _mark_best(ax: Axes, frame: pd.DataFrame, metric: str) -> None:
    values = frame[f"{metric}_validation"]
    if values.notna().any():
        best = int((-values if metric in _LOWER_IS_BETTER else values).argmax())
        ax.plot(
            frame["step"].iloc[best],
            values.iloc[best],
            linestyle="",
            marker="o",
            markersize=5,
            color=_COLORS["validation"],
            label=f"best: {values.iloc[best]:.4g}",
        )


def _mark_end_of_warm_up(ax: Axes, frame: pd.DataFrame) -> None:
    if "kl_weight" in frame and (frame["kl_weight"] < 1).any() and (frame["kl_weight"] == 1).any():
        end = frame.loc[frame["kl_weight"] == 1, "step"].iloc[0]
        ax.axvline(end, color="#808080", linewidth=0.8, linestyle=":", label="KL weight reaches 1")


def _zoom(ax: Axes, frame: pd.DataFrame, metric: str) -> None:
    columns = [name for name in (f"{metric}_train", f"{metric}_validation") if name in frame]
    settled = frame.loc[frame["step"] >= 0.1 * frame["step"].max(), columns]
    low, high = settled.min(axis=None), settled.max(axis=None)
    if high > low:
        margin = 0.06 * (high - low)
        ax.set_ylim(low - margin, high + margin)
