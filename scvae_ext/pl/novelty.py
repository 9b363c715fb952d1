"""How many cells are improbable under a model, and which."""

from collections.abc import Sequence
from os import PathLike
from typing import Protocol, runtime_checkable

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.axes import Axes

from scvae_ext.pl.groups import names_of_groups
from scvae_ext.pl.palette import GROUPS

__all__ = ["novelty"]

_N_BINS = 20
_FEWEST_CELLS = 20
_MOST_NAMED = 5


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
    describes follow the dashed line; novel ones pile up at the left end, where their curve lies above it.

    Without groups, the share of cells in each of twenty bins is drawn. With groups, each has a cumulative curve: the
    share of its cells that have this probability or a lower one, and so would be flagged if it were the limit.

    Parameters
    ----------
    result
        What :meth:`scvae_ext.SCVAE.get_novelty` returned.
    groups
        Group of each cell; all in one where ``None``. Those of fewer than 20 cells are left out, and named in the
        legend.
    save
        File to write the figure to; its suffix gives the format.

    Returns
    -------
    list of matplotlib.axes.Axes
        Panel of the counts, panel of the state.

    Raises
    ------
    ValueError
        If ``groups`` has another length, or names no group that is large enough, or more than ten.
    """
    names = names_of_groups(groups, len(result.elbo_p))
    sizes = pd.Series(names).value_counts().sort_index()
    order = list(sizes.index if groups is None else sizes.index[sizes >= _FEWEST_CELLS])
    if not order:
        raise ValueError(f"groups names no group of at least {_FEWEST_CELLS} cells: pass larger ones.")
    if len(order) > len(GROUPS):
        raise ValueError(f"groups names {len(order)} groups, of which at most {len(GROUPS)} can be told apart.")
    figure, panels = plt.subplots(1, 2, figsize=(10.2, 3.6), sharey=True, layout="constrained")
    contents = (
        (result.elbo_p, "Counts: p of the ELBO\namong cells of the model, at equal depth"),
        (result.latent_p, "State: p of its density\namong known cells"),
    )
    for panel, (values, label) in zip(panels, contents, strict=True):
        if groups is None:
            _draw_shares(panel, values)
        else:
            for name, color in zip(order, GROUPS, strict=False):
                panel.ecdf(values[names == name], color=color, linewidth=1.5, label=f"{name} ({sizes[name]})")
            panel.plot([0, 1], [0, 1], color="black", linewidth=1, linestyle="--", label="uniform, for comparison")
        panel.set(xlim=(0, 1), xlabel=label)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel(
        f"Share of cells (bins of {1 / _N_BINS:g})" if groups is None else "Share of cells at or below p"
    )
    panels[0].set_ylim(bottom=0)
    few = sizes[~sizes.index.isin(order)]
    if len(few):
        panels[1].plot([], [], " ", label=f"fewer than {_FEWEST_CELLS} cells,\nleft out: {_listed(few)}")
    panels[1].legend(frameon=False, fontsize=8.5, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    figure.suptitle("Are there cells that the model does not know?", fontsize=11)
    if save is not None:
        figure.savefig(save, dpi=150)
    return list(panels)


def _draw_shares(panel: Axes, values: Float[np.ndarray, "cells"]) -> None:
    edges = np.linspace(0, 1, _N_BINS + 1)
    share = np.histogram(values, edges)[0] / len(values)
    label = f"all cells ({len(values)})"
    panel.stairs(share, edges, color=GROUPS[0], fill=True, alpha=0.5, label=label)
    panel.axhline(1 / _N_BINS, color="black", linewidth=1, linestyle="--", label="uniform, for comparison")


def _listed(sizes: pd.Series) -> str:
    """Name groups with their numbers of cells, as far as a legend has room."""
    named = [f"{name} ({size})" for name, size in sizes.head(_MOST_NAMED).items()]
    more = f", {len(sizes) - _MOST_NAMED} more" if len(sizes) > _MOST_NAMED else ""
    return ",\n".join(named) + more
