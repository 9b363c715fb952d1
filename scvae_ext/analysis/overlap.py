"""Whether states of cells were seen under a setting, and whether states know the setting."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

__all__ = ["Dependence", "Overlap", "setting_overlap"]

N_NEIGHBOURS = 50
N_PERMUTATIONS = 200
# Cells that neighbours are looked for among, a bound on time.
MAX_REFERENCE = 20_000
# A state is supported if its neighbourhood holds at least this fraction of the target setting's overall share.
SMALLEST_RATIO = 0.1
# ... and if it lies no further from that setting than all but this fraction of its own cells do.
FAR_OUT = 0.01
# Area under the curve from which dependence is called out; below, it hardly moves a prediction.
NOTABLE_AUC = 0.6


@dataclass(frozen=True, eq=False, repr=False)
class Dependence:
    """How well the setting of a cell can be told from its latent state.

    Parameters
    ----------
    auc
        Area under the ROC curve of the share of neighbours, the cell itself left out, that have the target setting.
    null_auc, null_sd
        Mean and standard deviation of that area with settings permuted between cells.
    p_value
        Share of permutations with an area at least as large.
    n_cells
        Number of cells.
    """

    auc: float
    null_auc: float
    null_sd: float
    p_value: float
    n_cells: int

    @property
    def is_notable(self) -> bool:
        """Whether the state knows the setting, beyond chance (p at most 0.05) and by much (area at least 0.6)."""
        return bool(self.p_value <= 0.05 and self.auc >= NOTABLE_AUC)

    def summary(self) -> str:
        """Return the result in plain words."""
        figures = (
            f"the area under the ROC curve is {self.auc:.2f}, {self.null_auc:.2f} ± {self.null_sd:.2f} with settings "
            f"permuted, p = {self.p_value:.2g}"
        )
        if self.is_notable:
            return (
                f"The setting of a cell can be told from its latent state ({figures}): either states were not "
                "treated alike (confounding, or a difference in composition), or part of the effect is in the state. "
                "Of that part a counterfactual says nothing, and the effect may be wrong by it."
            )
        return f"The latent state says little about the setting ({figures})."

    def __repr__(self) -> str:
        return self.summary()


@dataclass(frozen=True, eq=False, repr=False)
class Overlap:
    """Whether the states of some cells were seen under a setting.

    Parameters
    ----------
    ratio
        Share of the target setting among the nearest cells, over its share among all; one where settings mix.
    distance_rank
        Share of the target setting's own cells that lie further from it than the cell does.
    dependence
        Whether the state knows the setting at all; ``None`` where no cell, or every cell, has it.
    """

    ratio: Float[np.ndarray, "cells"]
    distance_rank: Float[np.ndarray, "cells"]
    dependence: Dependence | None

    @property
    def is_supported(self) -> Bool[np.ndarray, "cells"]:
        """Whether such a state was seen under the setting: the ratio is at least 0.1 and the rank at least 0.01."""
        return (self.ratio >= SMALLEST_RATIO) & (self.distance_rank >= FAR_OUT)

    def to_frame(self) -> pd.DataFrame:
        """Return one row for each cell."""
        return pd.DataFrame(
            {"ratio": self.ratio, "distance_rank": self.distance_rank, "is_supported": self.is_supported}
        )

    def summary(self) -> str:
        """Return the result in plain words."""
        n_out = int(np.count_nonzero(~self.is_supported))
        seen = (
            f"All {len(self.ratio)} cells are in states that were seen under the setting."
            if n_out == 0
            else f"{n_out} of {len(self.ratio)} cells are in states that were not seen under the setting: what is "
            "predicted for them is carried over from other states."
        )
        return seen if self.dependence is None else f"{seen}\n{self.dependence.summary()}"

    def __repr__(self) -> str:
        return self.summary()


def setting_overlap(
    reference: Float[np.ndarray, "reference latent"],
    has_setting: Bool[np.ndarray, "reference"],
    query: Float[np.ndarray, "cells latent"],
    *,
    seed: int = 0,
) -> Overlap:
    r"""Ask whether states were seen under a setting, and whether the state knows the setting.

    A query cell gets the ratio of two shares of the setting: among its 50 nearest reference cells, and among all. It is
    an estimate of the density ratio :math:`p(z \mid \text{setting}) / p(z)`. A cell far from everything has neighbours
    too: therefore its distance to the setting's cells is ranked among the distances that those have to each other.

    The state knows the setting if the first share, each reference cell itself left out, tells the cells that have it
    from the others: the area under the ROC curve is compared with that of 200 permutations of the settings.

    Parameters
    ----------
    reference
        Latent states of cells with known settings; of more than 20,000 a random subset is used.
    has_setting
        Which of them have the setting.
    query
        Latent states that are asked about.
    seed
        Seed of permutations and of the subset.

    Returns
    -------
    Overlap
        One entry for each query cell.

    Examples
    --------
    >>> import numpy as np
    >>> from scvae_ext.analysis import setting_overlap
    >>> rng = np.random.default_rng(0)
    >>> states, treated = rng.normal(size=(600, 2)), rng.random(600) < 0.5
    >>> found = setting_overlap(states, treated, np.array([[0.0, 0.0], [40.0, 40.0]]))
    >>> found.is_supported.tolist(), found.dependence.is_notable
    ([True, False], False)
    """
    rng = np.random.default_rng(seed)
    from sklearn.neighbors import NearestNeighbors  # 65 MB, which training need not load

    if len(reference) > MAX_REFERENCE:
        kept = rng.choice(len(reference), MAX_REFERENCE, replace=False)
        reference, has_setting = reference[kept], has_setting[kept]
    share = float(has_setting.mean())
    if share == 0:
        nothing = np.zeros(len(query))
        return Overlap(nothing, nothing, None)
    n_neighbours = min(N_NEIGHBOURS, len(reference) - 1)
    graph = NearestNeighbors(n_neighbors=n_neighbours).fit(reference)
    ratio = has_setting[graph.kneighbors(query, return_distance=False)].mean(1) / share
    own = reference[has_setting]
    n_near = max(1, min(10, len(own) - 1))
    target = NearestNeighbors(n_neighbors=n_near).fit(own)
    # Asked without points, scikit-learn leaves each point out of its own neighbours.
    inner = np.sort(target.kneighbors()[0][:, -1]) if len(own) > 1 else np.zeros(1)
    outer = target.kneighbors(query)[0][:, -1]
    rank = 1 - np.searchsorted(inner, outer, side="left") / len(inner)
    dependence = None
    if share < 1:
        dependence = _dependence(graph.kneighbors(return_distance=False), has_setting, rng)
    return Overlap(ratio, rank, dependence)


def _dependence(
    neighbours: np.ndarray, has_setting: Bool[np.ndarray, "reference"], rng: np.random.Generator
) -> Dependence:
    observed = _auc(has_setting[neighbours].mean(1), has_setting)
    null = np.empty(N_PERMUTATIONS)
    for i in range(N_PERMUTATIONS):
        permuted = rng.permutation(has_setting)
        null[i] = _auc(permuted[neighbours].mean(1), permuted)
    p_value = (1 + np.count_nonzero(null >= observed)) / (1 + N_PERMUTATIONS)
    return Dependence(observed, float(null.mean()), float(null.std(ddof=1)), p_value, len(has_setting))


def _auc(score: Float[np.ndarray, "reference"], positive: Bool[np.ndarray, "reference"]) -> float:
    """Return the area under the ROC curve, ties counted half."""
    _, position, count = np.unique(score, return_inverse=True, return_counts=True)
    mean_rank = np.cumsum(count) - (count - 1) / 2
    n_positive = int(np.count_nonzero(positive))
    above = mean_rank[position[positive]].sum() - n_positive * (n_positive + 1) / 2
    return float(above / (n_positive * (len(positive) - n_positive)))
