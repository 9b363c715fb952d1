"""Whether a classifier can tell made cells from real ones, where each is made for one of them."""

import math
from dataclasses import dataclass
from typing import Self

import numpy as np
from jaxtyping import Float
from sklearn.decomposition import PCA
from sklearn.ensemble import ExtraTreesClassifier

from scvae_ext.diagnostics._two_sample import area_under_curve

__all__ = ["CellFeatures", "told_apart"]

N_FOLDS = 5
N_TREES = 200
N_COMPONENTS = 20


@dataclass(frozen=True)
class CellFeatures:
    """What a classifier is told about a cell: where it lies, how far from the others, how many genes it has.

    Parameters
    ----------
    components
        Principal components of log-normalised values of real cells that are not among those to be told apart.
    """

    components: PCA

    @classmethod
    def fit(cls, values: Float[np.ndarray, "cells genes"], seed: int) -> Self:
        """Find the components.

        Parameters
        ----------
        values
            Log-normalised values.
        seed
            Seed of the randomised decomposition.
        """
        most = min(N_COMPONENTS, values.shape[0] - 1, values.shape[1] - 1)
        return cls(PCA(most, svd_solver="randomized", random_state=seed).fit(values))

    def of(self, values: Float[np.ndarray, "cells genes"]) -> Float[np.ndarray, "cells features"]:
        """Return scores, distance from the plane that they span, and number of genes detected.

        Parameters
        ----------
        values
            Log-normalised values.
        """
        scores = self.components.transform(values)
        outside = np.linalg.norm(values - self.components.inverse_transform(scores), axis=1)
        return np.column_stack([scores, outside, np.count_nonzero(values, axis=1)])


def told_apart(
    real: Float[np.ndarray, "cells features"], made: Float[np.ndarray, "cells features"], seed: int
) -> tuple[float, float]:
    """Return how well a classifier tells made cells from real ones that it was not trained on, and its standard error.

    The area under the curve of five-fold cross-validated extremely randomised trees: 0.5 if no better than chance, 1
    if always right. Source of the test: Lopez-Paz and Oquab, ICLR 2017. Two cells of different folds are each learned
    from where the other is judged, so that the variance of the area is up to twice that of independent scores, which is
    what is returned.

    Parameters
    ----------
    real, made
        Features of cells, a made one for each real one.
    seed
        Seed of folds and trees.
    """
    n_cells = len(real)
    # A made cell has the library size of its real one: were only one of them learned from, the other would be taken
    # for its opposite, and the area fall below that of chance.
    fold = np.tile(np.random.default_rng(seed).permutation(n_cells) % N_FOLDS, 2)
    features, is_made = np.concatenate([real, made]), np.repeat([False, True], n_cells)
    scores = np.empty(2 * n_cells)
    for number in range(N_FOLDS):
        trees = ExtraTreesClassifier(N_TREES, min_samples_leaf=5, random_state=seed)
        trees.fit(features[fold != number], is_made[fold != number])
        scores[fold == number] = trees.predict_proba(features[fold == number])[:, 1]
    area, variance = area_under_curve(scores, is_made)
    return area, math.sqrt(2 * variance)
