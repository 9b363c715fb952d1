"""Whether generated cells can be told from real ones."""

from os import PathLike
from typing import Protocol, runtime_checkable

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

__all__ = ["two_sample_test"]

_GENERATED, _REAL = "#D55E00", "#7a7a7a"
_HIGHER, _LOWER = "#0072B2", "#E69F00"
_NAMES = {"generated": "generated\nagainst real", "real": "real\nagainst real"}


@runtime_checkable
class _TwoSampleTest(Protocol):
    @property
    def verdict(self) -> str: ...
    @property
    def features(self) -> pd.DataFrame: ...
    def to_frame(self) -> pd.DataFrame: ...


def two_sample_test(
    result: _TwoSampleTest, *, n_features: int = 12, save: str | PathLike[str] | None = None
) -> list[Axes]:
    """Draw how well classifiers tell generated cells from real ones, and which features give them away.

    Can they be told apart? On the left, the area under the curve of each classifier with two standard errors, for
    generated cells and for real ones against each other; 0.5 is chance. By what? On the right, the features that differ
    most by themselves, with the probability that a generated cell is above a real one; faint ones may be chance.

    Parameters
    ----------
    result
        What :func:`scvae_ext.diagnostics.two_sample_test` returned.
    n_features
        Number of features to show.
    save
        File to write the figure to; its suffix gives the format.

    Returns
    -------
    list of matplotlib.axes.Axes
        The two panels.
    """
    frame = result.to_frame()
    shown = result.features.head(n_features)
    height = max(2.8, 1.2 + 0.24 * max(len(shown), 2 * frame["classifier"].nunique()))
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.2, height), width_ratios=(1, 1.1), layout="constrained")
    figure.suptitle(result.verdict.split(" (")[0].rstrip("."), fontsize=11)
    _draw_areas(left, frame)
    _draw_features(right, shown)
    for panel in (left, right):
        panel.spines[["top", "right"]].set_visible(False)
        panel.title.set_fontsize(10)
    if save is not None:
        figure.savefig(save, dpi=200)
    return [left, right]


def _draw_areas(panel: Axes, frame: pd.DataFrame) -> None:
    classifiers = list(dict.fromkeys(frame["classifier"]))
    place = {name: i for i, name in enumerate(reversed(classifiers))}
    for comparison, offset, color in (("generated", 0.13, _GENERATED), ("real", -0.13, _REAL)):
        rows = frame[frame["comparison"] == comparison]
        y = np.array([place[name] for name in rows["classifier"]]) + offset
        panel.errorbar(
            rows["auc"].to_numpy(),
            y,
            xerr=2 * rows["standard_error"].to_numpy(),
            fmt="o",
            color=color,
            capsize=3,
            label=_NAMES[comparison],
        )
    panel.axvline(0.5, color="black", linewidth=0.9, linestyle=":")
    ends = frame["auc"] + 2 * frame["standard_error"]
    starts = frame["auc"] - 2 * frame["standard_error"]
    panel.set_yticks(list(place.values()), list(place))
    panel.set(
        ylim=(-0.5, len(place) - 0.1),
        xlim=(min(0.45, starts.min() - 0.02), min(1.02, max(0.6, ends.max() + 0.03))),
        xlabel="Area under the curve, cells left out",
        title="Can they be told apart?",
    )
    panel.legend(frameon=False, fontsize=8.5, ncols=2, loc="upper center")
    panel.set_ylim(-0.5, len(place) + 0.1)


def _draw_features(panel: Axes, shown: pd.DataFrame) -> None:
    area, notable = shown["auc"].to_numpy(), (shown["q_value"] <= 0.05).to_numpy()
    y = np.arange(len(shown))[::-1]
    colors = np.where(area > 0.5, _HIGHER, _LOWER)
    for chosen, alpha in ((notable, 1.0), (~notable, 0.3)):
        panel.barh(y[chosen], area[chosen] - 0.5, left=0.5, color=colors[chosen], alpha=alpha, height=0.7)
    panel.axvline(0.5, color="black", linewidth=0.9)
    reach = max(0.05, 1.15 * float(np.abs(area - 0.5).max(initial=0.0)))
    panel.set_yticks(y, shown.index.astype(str), fontsize=8.5)
    panel.set(
        xlim=(0.5 - reach, 0.5 + reach),
        xlabel="← lower     P(generated above real)     higher →",
        title="By what? (faint: may be chance)",
    )
