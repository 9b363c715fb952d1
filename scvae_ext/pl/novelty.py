"""How many cells are improbable under a model, and which."""

from collections.abc import Sequence
from os import PathLike
from typing import Protocol, runtime_checkable

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.axes import Axes

__all__ = ["novelty"]

_N_BINS = 20
_MOST_GROUPS = 10


@runtime_checkable
class _Novelty(Protocol):
    @property
    def elbo_p(self) -> Float[np.ndarray, "cells"]: ...
    @property
    def latent_p(self) -> Float[np.ndarray, "cells"]: ...


def novelty(
    result: _Novelty,
    groups: Sequence[str] | np.ndarray | pd.Series | None = None,
    *,
    save: str | PathLike[str] | None = None,
) -> list[Axes]:
    """Draw the distribution of the two probabilities of cells, beside the uniform one that known cells have.

    Are there cells that the model does not know? One panel for the counts, one for the state. Cells that the model
    describes follow the dashed line; novel ones pile up at the left end.

    Parameters
    ----------
    result
        What :meth:`scvae_ext.SCVAE.get_novelty` returned.
    groups
        Group of each cell, each drawn as a line of its own; all in one where ``None``.
    save
        File to write the figure to; its suffix gives the format.

    Returns
    -------
    list of matplotlib.axes.Axes
        Panel of the counts, panel of the state.

    Raises
    ------
    ValueError
        If ``groups`` has another length, or names more than ten groups.
    """
    n_cells = len(result.elbo_p)
    names = np.array(["all cells"] * n_cells) if groups is None else np.asarray(groups).astype(str)
    if len(names) != n_cells:
        raise ValueError(f"groups has {len(names)} entries, but there are {n_cells} cells.")
    order = sorted(set(names.tolist()))
    if len(order) > _MOST_GROUPS:
        raise ValueError(f"groups names {len(order)} groups, of which at most {_MOST_GROUPS} can be told apart.")
    figure, panels = plt.subplots(1, 2, figsize=(8.6, 3.6), sharey=True, layout="constrained")
    palette, edges = plt.get_cmap("tab10"), np.linspace(0, 1, _N_BINS + 1)
    contents = (
        (result.elbo_p, "Counts: p of the ELBO\namong cells of the model, at equal depth"),
        (result.latent_p, "State: p of its density\namong known cells"),
    )
    for panel, (values, label) in zip(panels, contents, strict=True):
        for i, name in enumerate(order):
            chosen = values[names == name]
            share = np.histogram(chosen, edges)[0] / len(chosen)
            panel.stairs(share, edges, color=palette(i), fill=groups is None, alpha=0.5 if groups is None else 1.0)
            panel.plot([], [], color=palette(i), label=f"{name} ({len(chosen)})")
        panel.axhline(1 / _N_BINS, color="black", linewidth=1, linestyle="--", label="uniform, for comparison")
        panel.set(xlim=(0, 1), xlabel=label)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel(f"Share of cells (bins of {1 / _N_BINS:g})")
    panels[0].set_ylim(bottom=0)
    panels[1].legend(frameon=False, fontsize=8.5)
    figure.suptitle("Are there cells that the model does not know?", fontsize=11)
    if save is not None:
        figure.savefig(save, dpi=150)
    return list(panels)
