"""What correlations between columns of independent values look like, and what is left of others beyond that."""

import math

import numpy as np
from jaxtyping import Float, Int
from scipy.linalg import eigh
from scipy.special import ndtri
from scipy.stats import gamma, t

__all__ = ["correlated_pairs", "eigenvalue_threshold", "marchenko_pastur_edge", "modules_of", "null_of_mean_square"]

# Shape, scale and shift of the gamma distribution that comes close to that of Tracy and Widom of order one.
TRACY_WIDOM = (46.446, 0.186054, 9.848007781128567)
VARIMAX_STEPS = 100
VARIMAX_TOLERANCE = 1e-6


def null_of_mean_square(n_cells: int, n_genes: int) -> tuple[float, float]:
    r"""Return mean and standard deviation of the mean squared correlation of independent normal columns.

    Squared correlations of n cells have the mean :math:`1/(n - 1)` and the variance
    :math:`2(n - 2) / \{(n - 1)^2 (n + 1)\}`, and those of different pairs are uncorrelated. Source: Schott, Biometrika
    92, 951 (2005).

    Parameters
    ----------
    n_cells, n_genes
        Numbers of rows and of columns.
    """
    n_pairs = n_genes * (n_genes - 1) / 2
    variance = 2 * (n_cells - 2) / ((n_cells - 1) ** 2 * (n_cells + 1))
    return 1 / (n_cells - 1), math.sqrt(variance / n_pairs)


def marchenko_pastur_edge(n_cells: int, n_genes: int) -> float:
    r"""Return :math:`(1 + \sqrt{G / (n - 1)})^2`, where eigenvalues of correlations of independent columns end.

    Parameters
    ----------
    n_cells, n_genes
        n and G. Both are taken to be large.
    """
    return (1 + math.sqrt(n_genes / (n_cells - 1))) ** 2


def eigenvalue_threshold(n_cells: int, n_genes: int, level: float) -> float:
    r"""Return what the largest eigenvalue of correlations of independent columns exceeds with a given probability.

    With :math:`a = \sqrt{n - 1}` and :math:`b = \sqrt G`, :math:`\{(n - 1)\lambda_1 - (a + b)^2\} /
    \{(a + b)(1/a + 1/b)^{1/3}\}` tends to the distribution of Tracy and Widom of order one. Sources: Johnstone,
    Annals of Statistics 29, 295 (2001), with the centring of his remark on small sizes; Bao, Pan and Zhou, Electronic
    Journal of Probability 17, 88 (2012), for correlations; Chiani, Journal of Multivariate Analysis 129, 69 (2014), for
    the gamma distribution in place of that of Tracy and Widom.

    Parameters
    ----------
    n_cells, n_genes
        n and G.
    level
        The probability.
    """
    shape, scale, shift = TRACY_WIDOM
    quantile = float(gamma.isf(level, shape, scale=scale)) - shift
    a, b = math.sqrt(n_cells - 1.5), math.sqrt(n_genes - 0.5)
    return float((a + b) ** 2 + quantile * (a + b) * (1 / a + 1 / b) ** (1 / 3)) / (n_cells - 1)


def correlated_pairs(
    correlation: Float[np.ndarray, "genes genes"], n_cells: int, level: float
) -> tuple[Int[np.ndarray, "pairs 2"], Float[np.ndarray, "pairs"]]:
    r"""Return the pairs whose correlation is not zero, by descending magnitude, and their p-values.

    :math:`r \sqrt{(n - 2)/(1 - r^2)}` has the t distribution with n - 2 degrees of freedom if the columns are
    independent and one of them normal. Pairs are chosen at a false discovery rate (Benjamini and Hochberg, Journal of
    the Royal Statistical Society B 57, 289, 1995).

    Parameters
    ----------
    correlation
        Of the columns.
    n_cells
        Number of rows that it was computed from.
    level
        False discovery rate.
    """
    upper = np.triu_indices(len(correlation), k=1)
    magnitude = np.abs(correlation[upper])
    order = np.argsort(-magnitude, kind="stable")
    r = magnitude[order].clip(max=1.0 - 1e-12)
    p_values = 2 * t.sf(r * np.sqrt((n_cells - 2) / (1 - np.square(r))), n_cells - 2)
    below = np.flatnonzero(p_values <= level * np.arange(1, len(r) + 1) / len(r))
    n_chosen = below[-1] + 1 if len(below) else 0
    chosen = order[:n_chosen]
    return np.column_stack([upper[0][chosen], upper[1][chosen]]), p_values[:n_chosen]


def modules_of(
    correlation: Float[np.ndarray, "genes genes"], n_cells: int, level: float
) -> tuple[Float[np.ndarray, "eigenvalues"], Float[np.ndarray, "genes modules"]]:
    r"""Return the eigenvalues in descending order, and the loadings of genes on modules.

    There are as many modules as eigenvalues :math:`\lambda_j` above :func:`eigenvalue_threshold`. Their eigenvectors,
    times :math:`\sqrt{\lambda_j - 1}`, are the loadings of a factor model of the correlations; they are rotated by
    varimax (Kaiser, Psychometrika 23, 187, 1958), so that each gene belongs to few of them. A loading that noise alone
    could give is set to zero, where the bound is exceeded by any of the loadings with the probability ``level``. With
    :math:`\gamma = G/(n - 1)`, the true eigenvalue :math:`\ell` behind an observed
    :math:`\lambda = \ell + \gamma\ell/(\ell - 1)` has an eigenvector of which the share
    :math:`1 - \{1 - \gamma/(\ell - 1)^2\}/\{1 + \gamma/(\ell - 1)\}` is noise (Paul, Statistica Sinica 17, 1617, 2007),
    spread evenly over genes.

    Parameters
    ----------
    correlation
        Of the columns.
    n_cells
        Number of rows that it was computed from.
    level
        Probability of a module where all columns are independent.
    """
    n_genes = len(correlation)
    eigenvalues, vectors = eigh(correlation)
    eigenvalues, vectors = eigenvalues[::-1], vectors[:, ::-1]
    n_modules = int(np.count_nonzero(eigenvalues > eigenvalue_threshold(n_cells, n_genes, level)))
    if not n_modules:
        return eigenvalues, np.zeros((n_genes, 0))
    common = eigenvalues[:n_modules] - 1
    loadings = vectors[:, :n_modules] * np.sqrt(common)
    rotation = _varimax(loadings)
    noise = np.square(rotation).T @ (common * _noise_share(eigenvalues[:n_modules], n_cells, n_genes) / n_genes)
    loadings = loadings @ rotation
    loadings[np.abs(loadings) < -np.sqrt(noise) * ndtri(level / (2 * n_genes * n_modules))] = 0.0
    # The sign of an eigenvector is free: most of a module's genes load positively.
    loadings *= np.where(loadings.sum(0) < 0, -1.0, 1.0)
    strength = np.square(loadings).sum(0)
    return eigenvalues, loadings[:, np.argsort(-strength, kind="stable")]


def _varimax(loadings: Float[np.ndarray, "genes modules"]) -> Float[np.ndarray, "modules modules"]:
    """Return the rotation of loadings after which the variance of their squares is largest."""
    rotation, before = np.eye(loadings.shape[1]), 0.0
    for _ in range(VARIMAX_STEPS):
        rotated = loadings @ rotation
        gradient = loadings.T @ (rotated**3 - rotated * np.square(rotated).mean(0))
        left, singular, right = np.linalg.svd(gradient)
        rotation, total = left @ right, float(singular.sum())
        if total <= before * (1 + VARIMAX_TOLERANCE):
            break
        before = total
    return rotation


def _noise_share(eigenvalues: Float[np.ndarray, "modules"], n_cells: int, n_genes: int) -> Float[np.ndarray, "modules"]:
    """Return which share of the squared length of an eigenvector is noise; all of it at the edge of the spectrum."""
    ratio = n_genes / (n_cells - 1)
    half = (eigenvalues + 1 - ratio) / 2
    excess = half + np.sqrt(np.maximum(np.square(half) - eigenvalues, 0.0)) - 1
    share: np.ndarray = 1 - np.maximum(1 - ratio / np.square(excess), 0.0) / (1 + ratio / excess)
    return share
