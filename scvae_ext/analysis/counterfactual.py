"""What cells would express under another setting, and effects of one setting against another."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
import scipy.sparse as sp
from jaxtyping import Bool, Float

from scvae_ext.analysis.overlap import Overlap

__all__ = ["Counterfactual", "CounterfactualEffect"]

ASSUMPTIONS = (
    "Assumed, and not tested: the settings act as interventions would (nothing unmeasured drives both setting and "
    "expression), and the latent state is what an intervention leaves as it is."
)


@dataclass(frozen=True, eq=False, repr=False)
class Counterfactual:
    """What cells are predicted to express under a setting.

    Parameters
    ----------
    setting
        Value of each covariate that was set.
    lower, median, upper
        Expression under the setting, and the ends of its interval.
    level
        Share of true values that intervals are to hold.
    counts
        Draws of the counts that the same cells would have shown.
    overlap
        Whether each cell's state was seen under the setting.
    obs_names, var_names
        Names of cells and genes.
    """

    setting: Mapping[str, str | float]
    lower: Float[np.ndarray, "cells chosen"]
    median: Float[np.ndarray, "cells chosen"]
    upper: Float[np.ndarray, "cells chosen"]
    level: float
    counts: tuple[sp.csr_matrix, ...]
    overlap: Overlap
    obs_names: pd.Index
    var_names: pd.Index

    def to_frame(self) -> pd.DataFrame:
        """Return one row for each cell: whether its state was seen under the setting."""
        return self.overlap.to_frame().set_index(self.obs_names)

    def summary(self) -> str:
        """Return the result in plain words."""
        values = ", ".join(f"{key} = {value}" for key, value in self.setting.items())
        return "\n".join(
            [
                f"{self.median.shape[1]} genes of {self.median.shape[0]} cells as if {values}, with "
                f"{100 * self.level:g} % intervals.",
                self.overlap.summary(),
                ASSUMPTIONS,
            ]
        )

    def __repr__(self) -> str:
        return self.summary()


@dataclass(frozen=True, eq=False, repr=False)
class CounterfactualEffect:
    """Difference in expression between two settings of the same cells, by gene and group of cells.

    Parameters
    ----------
    control, treated
        Value of each covariate under either setting.
    mean_control, mean_treated
        Mean expression of the group's cells under either, per unit of depth.
    lfc, half_width
        Log2 of their ratio, and half the width of its interval.
    level
        Share of true effects that intervals are to hold.
    groups
        Names of the groups.
    n_cells
        Number of cells in each.
    overlap_control, overlap_treated
        Whether each cell's state was seen under either setting, cells in the order asked for.
    group_of_cell
        Name of each cell's group.
    var_names
        Names of the genes.
    """

    control: Mapping[str, str | float]
    treated: Mapping[str, str | float]
    mean_control: Float[np.ndarray, "groups chosen"]
    mean_treated: Float[np.ndarray, "groups chosen"]
    lfc: Float[np.ndarray, "groups chosen"]
    half_width: Float[np.ndarray, "groups chosen"]
    level: float
    groups: pd.Index
    n_cells: np.ndarray
    overlap_control: Overlap
    overlap_treated: Overlap
    group_of_cell: np.ndarray
    var_names: pd.Index

    @property
    def is_supported(self) -> Bool[np.ndarray, "cells"]:
        """Whether each cell's state was seen under both settings."""
        both: np.ndarray = self.overlap_control.is_supported & self.overlap_treated.is_supported
        return both

    @property
    def supported_share(self) -> pd.Series:
        """Share of each group's cells whose state was seen under both settings."""
        shares = pd.Series(self.is_supported).groupby(self.group_of_cell).mean()
        return shares.reindex(self.groups).rename("supported_share")

    def to_frame(self) -> pd.DataFrame:
        """Return one row for each group and gene, those of a group by decreasing size of the effect."""
        index = pd.MultiIndex.from_product([self.groups, self.var_names], names=["group", "gene"])
        frame = pd.DataFrame(
            {
                "mean_control": self.mean_control.ravel(),
                "mean_treated": self.mean_treated.ravel(),
                "lfc": self.lfc.ravel(),
                "lfc_lower": (self.lfc - self.half_width).ravel(),
                "lfc_upper": (self.lfc + self.half_width).ravel(),
                "excludes_zero": (np.abs(self.lfc) > self.half_width).ravel(),
                "n_cells": np.repeat(self.n_cells, len(self.var_names)),
                "supported_share": np.repeat(self.supported_share.to_numpy(), len(self.var_names)),
            },
            index=index,
        )
        order = np.argsort(-np.abs(self.lfc), axis=1, kind="stable")
        rows = (order + np.arange(len(order))[:, None] * order.shape[1]).ravel().tolist()
        return frame.take(rows)

    def summary(self) -> str:
        """Return the result in plain words."""
        of = " against ".join(
            ", ".join(f"{key} = {value}" for key, value in setting.items()) for setting in (self.treated, self.control)
        )
        changed = (np.abs(self.lfc) > self.half_width).sum(axis=1)
        lines = [f"Effect of {of} on {len(self.var_names)} genes."]
        lines += [
            f"{group}: the {100 * self.level:g} % interval leaves out zero for {n} genes; {100 * share:.0f} % of "
            f"{size} cells are in states seen under both settings."
            for group, n, share, size in zip(self.groups, changed, self.supported_share, self.n_cells, strict=True)
        ]
        if self.overlap_treated.dependence is not None:
            lines.append(self.overlap_treated.dependence.summary())
        return "\n".join([*lines, ASSUMPTIONS])

    def __repr__(self) -> str:
        return self.summary()
