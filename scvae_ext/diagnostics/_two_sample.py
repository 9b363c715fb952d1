"""How well a classifier tells two samples of cells apart, on cells that it has not seen."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.stats import rankdata
from sklearn.decomposition import PCA
from sklearn.ensemble import HistGradientBoostingClassifier

__all__ = ["Classifier", "ClassifierAuc", "area_under_curve", "classifier_auc"]

Classifier = Literal["linear", "trees"]

# Of the sum of squares of a standardised component: enough that the solution exists, too little to bend it.
RIDGE = 1e-3
TREES = {"max_iter": 60, "max_leaf_nodes": 8, "learning_rate": 0.1, "min_samples_leaf": 20}


@dataclass(frozen=True)
class ClassifierAuc:
    """How well a classifier tells two samples apart.

    Parameters
    ----------
    classifier
        Its name.
    auc
        Mean over folds of the area under the ROC curve of the cells left out; 0.5 where samples cannot be told apart.
    standard_error
        Of that area where samples cannot be told apart; no smaller than the one where they can.
    p_value
        Share of permutations with an area at least as large, or ``None`` where there were none.
    n_first, n_second
        Numbers of cells.
    """

    classifier: Classifier
    auc: float
    standard_error: float
    p_value: float | None
    n_first: int
    n_second: int


def classifier_auc(
    first: Float[np.ndarray, "first features"],
    second: Float[np.ndarray, "second features"],
    classifier: Classifier = "linear",
    *,
    extra: tuple[Float[np.ndarray, "first more"], Float[np.ndarray, "second more"]] | None = None,
    n_components: int = 50,
    n_folds: int = 5,
    n_permutations: int = 0,
    seed: int = 0,
) -> ClassifierAuc:
    r"""Train a classifier to tell two samples apart and return the area under its ROC curve on cells left out.

    Cells are cut into folds, each with the same share of either sample. Principal components, and the classifier on
    them, are fitted to all folds but one. The area is computed within each fold and averaged, since scores of different
    classifiers have no common scale. Given its classifier the area of a fold is a U statistic, whose variance is
    that of DeLong, DeLong and Clarke-Pearson, Biometrics 44, 837 (1988). Areas of two folds are not independent, since
    each is tested on what the other has learned from. Of samples that do not differ a linear classifier learns, for
    fold k, the sum of the chance differences :math:`\delta_j` of the other folds, so that its area is off in proportion
    to :math:`\sum_{j \ne k} \delta_j^\top \delta_k`: each pair of folds enters twice, and the mean of K areas has twice
    the variance that it would have were they independent, :math:`2 \sum_k v_k / K^2`. The standard error is the root of
    that. It is up to :math:`\sqrt 2` too large where samples do differ, and for trees, whose scores are no such sums.

    Permutations exchange the samples of cells within a fold. The linear classifier is ridge regression on the sample,
    whose scores are linear in it: all permutations are one matrix product.

    Source of the test: Lopez-Paz and Oquab, ICLR 2017.

    Parameters
    ----------
    first, second
        Values of the cells of either sample, for example log-normalised counts.
    classifier
        ``"linear"``, or ``"trees"``: gradient boosting, which also sees differences in spread.
    extra
        Further columns of either sample, put beside the components.
    n_components
        Number of principal components of the values.
    n_folds
        Number of folds.
    n_permutations
        Number of permutations; each of them trains the trees anew.
    seed
        Seed of folds, components, trees and permutations.

    Raises
    ------
    ValueError
        If the classifier is unknown, or a sample has fewer cells than there are folds.
    """
    if classifier not in get_args(Classifier):
        raise ValueError(f'classifier={classifier!r} is not known: use "linear" or "trees".')
    n_first, n_second = len(first), len(second)
    if n_folds < 2 or min(n_first, n_second) < n_folds:
        raise ValueError(
            f"n_folds={n_folds!r} cuts samples of {n_first} and {n_second} cells: use at least two folds, and no more "
            "than the smaller sample has cells."
        )
    rng = np.random.default_rng(seed)
    values = np.concatenate([first, second])
    more = np.zeros((len(values), 0)) if extra is None else np.concatenate(extra)
    is_second = np.repeat([False, True], [n_first, n_second])
    fold = np.concatenate([rng.permutation(np.arange(n) % n_folds) for n in (n_first, n_second)])
    # One row for the samples as they are, one for each permutation.
    labels = np.tile(is_second, (1 + n_permutations, 1))
    for row in labels[1:]:
        for k in range(n_folds):
            row[fold == k] = rng.permutation(row[fold == k])
    areas, variance = np.zeros(len(labels)), 0.0
    for k in range(n_folds):
        train, test = np.flatnonzero(fold != k), np.flatnonzero(fold == k)
        features = _features(values, more, train, n_components, seed)
        scores = (_linear_scores if classifier == "linear" else _tree_scores)(features, labels, train, test, seed)
        ranks, positive = rankdata(scores, axis=1), labels[:, test]
        n_positive = int(np.count_nonzero(is_second[test]))
        n_pairs = n_positive * (len(test) - n_positive)
        areas += ((ranks * positive).sum(axis=1) - n_positive * (n_positive + 1) / 2) / n_pairs
        variance += area_under_curve(scores[0], is_second[test])[1]
    areas /= n_folds
    standard_error = math.sqrt(2 * variance) / n_folds
    p_value = float(1 + np.count_nonzero(areas[1:] >= areas[0])) / len(labels) if n_permutations else None
    return ClassifierAuc(classifier, float(areas[0]), standard_error, p_value, n_first, n_second)


def area_under_curve(score: Float[np.ndarray, "cells"], positive: Bool[np.ndarray, "cells"]) -> tuple[float, float]:
    r"""Return the area under the ROC curve, ties counted half, and its variance.

    With :math:`V_i` the share of the other cells that positive cell i scores above, and :math:`W_j` the share that
    scores above other cell j, the variance is :math:`\operatorname{var}(V)/m + \operatorname{var}(W)/n`.

    Source: DeLong, DeLong and Clarke-Pearson, Biometrics 44, 837 (1988).

    Parameters
    ----------
    score
        Of each cell.
    positive
        Which cells should score high.
    """
    high, low = score[positive], score[~positive]
    ranks = rankdata(np.concatenate([high, low]))
    above_low = (ranks[: len(high)] - rankdata(high)) / max(len(low), 1)
    below_high = 1 - (ranks[len(high) :] - rankdata(low)) / max(len(high), 1)
    variance = sum(float(part.var(ddof=1)) / len(part) if len(part) > 1 else 0.25 for part in (above_low, below_high))
    return float(above_low.mean()), variance


def _features(
    values: Float[np.ndarray, "cells features"],
    more: Float[np.ndarray, "cells more"],
    train: Int[np.ndarray, "train"],
    n_components: int,
    seed: int,
) -> Float[np.ndarray, "cells columns"]:
    """Return principal components and further columns, standardised by the training cells."""
    n_components = min(n_components, len(train) - 1, values.shape[1])
    pca = PCA(n_components, random_state=seed).fit(values[train])
    columns = np.concatenate([pca.transform(values), more], axis=1)
    spread = columns[train].std(axis=0)
    standardised: np.ndarray = (columns - columns[train].mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    return standardised


def _linear_scores(
    features: Float[np.ndarray, "cells columns"],
    labels: Bool[np.ndarray, "labellings cells"],
    train: Int[np.ndarray, "train"],
    test: Int[np.ndarray, "test"],
    seed: int,
) -> Float[np.ndarray, "labellings test"]:
    inner = features[train]
    gram = inner.T @ inner
    gram.flat[:: len(gram) + 1] += RIDGE * len(train)
    weights = np.linalg.solve(gram, inner.T @ labels[:, train].T.astype(np.float64))
    scores: np.ndarray = (features[test] @ weights).T
    return scores


def _tree_scores(
    features: Float[np.ndarray, "cells columns"],
    labels: Bool[np.ndarray, "labellings cells"],
    train: Int[np.ndarray, "train"],
    test: Int[np.ndarray, "test"],
    seed: int,
) -> Float[np.ndarray, "labellings test"]:
    scores = np.empty((len(labels), len(test)))
    for row, label in zip(scores, labels, strict=True):
        trees = HistGradientBoostingClassifier(random_state=seed, **TREES).fit(features[train], label[train])
        row[:] = trees.decision_function(features[test])
    return scores
