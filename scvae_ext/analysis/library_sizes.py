"""A distribution of library sizes by batch and latent state, chosen by how well it predicts cells left out."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from scipy.special import logsumexp

__all__ = ["LibrarySizes", "fit_library_sizes"]

Mean: TypeAlias = Literal["batch", "linear", "quadratic"]
Residual: TypeAlias = Literal["normal", "mixture"]

# Cells that the distribution is fitted to, a bound on time.
MAX_CELLS = 20_000
N_FOLDS = 5
N_COMPONENTS = 3
# Cells' worth of shrinkage towards the overall mean, and of the variance of a batch towards that of all.
RIDGE = 2.0
LOG_TWO_PI = math.log(2 * math.pi)


@dataclass(frozen=True, eq=False, repr=False)
class LibrarySizes:
    r"""Distribution of the library size of a cell given its batch and its latent state.

    .. math:: \log \ell_n = \alpha_{s_n} + f(z_n) + \sigma_{s_n} \varepsilon_n

    Parameters
    ----------
    mean
        What the mean depends on: ``"batch"`` alone (f is zero), or the state as well, ``"linear"`` or ``"quadratic"``.
    residual
        Distribution of :math:`\varepsilon`: ``"normal"``, or a ``"mixture"`` of three Gaussians.
    n_batches
        Number of batches.
    weights
        Of the columns that batch and state make, after an intercept.
    centre, spread
        Mean and standard deviation of these columns.
    scale
        :math:`\sigma_s` of each batch, in nats.
    mixing, location, width
        Shares, means and standard deviations of the Gaussians of the residual.
    scores
        Mean log density of :math:`\log \ell` of cells left out, in nats, for each pair of mean and residual.
    """

    mean: Mean
    residual: Residual
    n_batches: int
    weights: Float[np.ndarray, "columns_and_one"]
    centre: Float[np.ndarray, "columns"]
    spread: Float[np.ndarray, "columns"]
    scale: Float[np.ndarray, "batches"]
    mixing: Float[np.ndarray, "components"]
    location: Float[np.ndarray, "components"]
    width: Float[np.ndarray, "components"]
    scores: dict[tuple[Mean, Residual], float]

    def log_mean(
        self, latent: Float[np.ndarray, "cells latent"], batch: Int[np.ndarray, "cells"]
    ) -> Float[np.ndarray, "cells"]:
        """Return the mean of the log library size.

        Parameters
        ----------
        latent, batch
            State and batch of each cell.
        """
        columns = (_columns(latent, batch, self.n_batches, self.mean) - self.centre) / self.spread
        mean: np.ndarray = self.weights[0] + columns @ self.weights[1:]
        return mean

    def log_prob(
        self,
        log_size: Float[np.ndarray, "cells"],
        latent: Float[np.ndarray, "cells latent"],
        batch: Int[np.ndarray, "cells"],
    ) -> Float[np.ndarray, "cells"]:
        """Return the log density of log library sizes, in nats.

        Parameters
        ----------
        log_size
            Logarithm of the library sizes in counts.
        latent, batch
            State and batch of each cell.
        """
        scale = self.scale[batch]
        residual = (log_size - self.log_mean(latent, batch)) / scale
        z = (residual[:, None] - self.location) / self.width
        density = logsumexp(np.log(self.mixing) - np.log(self.width) - 0.5 * (LOG_TWO_PI + z**2), axis=1)
        result: np.ndarray = density - np.log(scale)
        return result

    def sample(
        self,
        latent: Float[np.ndarray, "cells latent"],
        batch: Int[np.ndarray, "cells"],
        rng: np.random.Generator,
    ) -> Float[np.ndarray, "cells"]:
        """Draw a library size for each cell, in counts.

        Parameters
        ----------
        latent, batch
            State and batch of each cell.
        rng
            Source of randomness.
        """
        component = rng.choice(len(self.mixing), len(latent), p=self.mixing)
        residual = rng.normal(self.location[component], self.width[component])
        size: np.ndarray = np.exp(self.log_mean(latent, batch) + self.scale[batch] * residual)
        return size

    def to_frame(self) -> pd.DataFrame:
        """Return one row for each distribution that was tried, the best first."""
        rows = [{"mean": mean, "residual": residual, "score": score} for (mean, residual), score in self.scores.items()]
        return pd.DataFrame(rows).sort_values("score", ascending=False, kind="stable", ignore_index=True)

    def summary(self) -> str:
        """Return the result in plain words."""
        of = {"batch": "batch", "linear": "batch and, linearly, state", "quadratic": "batch and, as a parabola, state"}
        shape = {"normal": "log-normal", "mixture": "a mixture of three log-normal distributions"}
        plain = self.scores["batch", "normal"]
        return (
            f"Library sizes by {of[self.mean]}, {shape[self.residual]} around it: cells left out gain "
            f"{self.scores[self.mean, self.residual] - plain:.3f} nats each over a log-normal distribution by batch."
        )

    def __repr__(self) -> str:
        return self.summary()


def fit_library_sizes(
    library_size: Float[np.ndarray, "cells"],
    latent: Float[np.ndarray, "cells latent"],
    batch: Int[np.ndarray, "cells"],
    n_batches: int,
    *,
    seed: int = 0,
) -> LibrarySizes:
    """Fit distributions of library sizes and keep the one that predicts cells left out best.

    Six are tried: the mean by batch alone, or also linear or quadratic in each latent coordinate; around it a normal
    distribution of the logarithm, or a mixture of three. Each is scored by the mean log density in five folds.

    Parameters
    ----------
    library_size
        Total counts of each cell.
    latent, batch
        State and batch of each cell; of more than 20,000 cells a random subset is used.
    n_batches
        Number of batches; one without cells gets the distribution of all.
    seed
        Seed of folds, mixtures and the subset.

    Returns
    -------
    LibrarySizes
        The distribution, and the scores of all.
    """
    rng = np.random.default_rng(seed)
    chosen = np.arange(len(latent))
    if len(chosen) > MAX_CELLS:
        chosen = rng.choice(len(chosen), MAX_CELLS, replace=False)
    log_size, latent, batch = np.log(library_size[chosen].astype(np.float64)), latent[chosen], batch[chosen]
    fold = rng.permutation(np.arange(len(latent)) % N_FOLDS)

    def fit(mean: Mean, residual: Residual, rows: np.ndarray) -> LibrarySizes:
        return _fit(log_size[rows], latent[rows], batch[rows], n_batches, mean, residual, seed)

    scores: dict[tuple[Mean, Residual], float] = {}
    folds = range(N_FOLDS) if len(latent) >= 2 * N_FOLDS else ()
    for mean in get_args(Mean):
        for residual in get_args(Residual):
            found = [_left_out(fit, mean, residual, fold, k, log_size, latent, batch) for k in folds]
            scores[mean, residual] = float(np.concatenate(found).mean()) if found else 0.0
    best = max(scores, key=lambda kind: scores[kind])
    result = fit(*best, np.arange(len(latent)))
    result.scores.update(scores)
    return result


def _left_out(
    fit: Callable[[Mean, Residual, np.ndarray], LibrarySizes],
    mean: Mean,
    residual: Residual,
    fold: np.ndarray,
    k: int,
    log_size: np.ndarray,
    latent: np.ndarray,
    batch: np.ndarray,
) -> np.ndarray:
    out = fold == k
    return fit(mean, residual, np.flatnonzero(~out)).log_prob(log_size[out], latent[out], batch[out])


def _columns(latent: np.ndarray, batch: np.ndarray, n_batches: int, mean: Mean) -> Float[np.ndarray, "cells columns"]:
    parts = [np.eye(n_batches)[batch]]
    if mean != "batch":
        parts.append(latent.astype(np.float64))
    if mean == "quadratic":
        parts.append(np.square(latent, dtype=np.float64))
    return np.concatenate(parts, axis=1)


def _fit(
    log_size: np.ndarray,
    latent: np.ndarray,
    batch: np.ndarray,
    n_batches: int,
    mean: Mean,
    residual: Residual,
    seed: int,
) -> LibrarySizes:
    columns = _columns(latent, batch, n_batches, mean)
    centre, spread = columns.mean(axis=0), columns.std(axis=0)
    spread = np.where(spread > 0, spread, 1.0)
    columns = (columns - centre) / spread
    middle = log_size.mean()
    weights = np.linalg.solve(columns.T @ columns + RIDGE * np.eye(columns.shape[1]), columns.T @ (log_size - middle))
    left = log_size - middle - columns @ weights
    # A batch with few cells borrows the spread of all; where all cells have one size, a little of it is left.
    overall = max(float(np.square(left).mean()), 1e-8)
    sums, counts = np.zeros(n_batches), np.bincount(batch, minlength=n_batches)
    np.add.at(sums, batch, np.square(left))
    scale = np.sqrt((sums + RIDGE * overall) / (counts + RIDGE))
    mixing, location, width = np.ones(1), np.zeros(1), np.ones(1)
    if residual == "mixture" and len(left) >= 10 * N_COMPONENTS:
        from sklearn.mixture import GaussianMixture  # 65 MB, which training need not load

        mixture = GaussianMixture(N_COMPONENTS, reg_covar=1e-3, random_state=seed)
        mixture.fit((left / scale[batch])[:, None])
        mixing, location = mixture.weights_ / mixture.weights_.sum(), mixture.means_[:, 0]
        width = np.sqrt(mixture.covariances_[:, 0, 0])
    weights = np.concatenate([[middle], weights])
    return LibrarySizes(mean, residual, n_batches, weights, centre, spread, scale, mixing, location, width, {})
