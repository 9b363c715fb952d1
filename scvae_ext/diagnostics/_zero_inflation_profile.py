"""The profile of each gene's likelihood along pi, and what comes of it."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Self

import numpy as np
import torch
from jaxtyping import Float
from scipy import stats
from torch import Tensor

from scvae_ext.diagnostics._gene_predictions import GenePredictions
from scvae_ext.diagnostics._zero_inflation_fit import DISPERSION, OFFSET, PI, GeneCounts, GeneFit, maximise

__all__ = ["PI_GRID", "GeneProfiles", "likelihood_ratio", "profile_genes"]

PI_GRID = (0.0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.99)
N_FOLDS = 5
# Where a limit lies between two points of the grid is found by this many further fits.
N_REFINEMENTS = 2
START_PI = 0.1
# Entries of cells by genes worked on at once: few enough to stay in a core's cache.
ENTRIES_AT_ONCE = 2**15


@dataclass(frozen=True)
class GeneProfiles:
    """What the fits say of each gene.

    Parameters
    ----------
    pi, lower, upper
        Best pi, and the limits of the interval in which the profile falls by less than the critical value.
    likelihood_ratio
        Twice the log-likelihood gained over pi = 0.
    profile
        Log-likelihood at each point of the grid relative to the best, in nats.
    curvature
        Negative second derivative of the profile at the best pi, in nats; at least zero.
    slope
        Change of the best log mean by pi along the profile, there.
    gain, gain_error
        Mean and standard error over cells of the cross-validated log-likelihood gained by pi, in nats.
    gain_of_cells
        The same of each cell, summed over genes.
    """

    pi: Float[np.ndarray, "genes"]
    lower: Float[np.ndarray, "genes"]
    upper: Float[np.ndarray, "genes"]
    likelihood_ratio: Float[np.ndarray, "genes"]
    profile: Float[np.ndarray, "genes grid"]
    curvature: Float[np.ndarray, "genes"]
    slope: Float[np.ndarray, "genes"]
    gain: Float[np.ndarray, "genes"]
    gain_error: Float[np.ndarray, "genes"]
    gain_of_cells: Float[np.ndarray, "cells"]

    @classmethod
    def join(cls, parts: list[Self]) -> Self:
        """Put genes side by side.

        Parameters
        ----------
        parts
            Profiles of some genes each, of the same cells.
        """
        columns = {
            field.name: np.concatenate([getattr(part, field.name) for part in parts])
            for field in fields(cls)
            if field.name != "gain_of_cells"
        }
        return cls(**columns, gain_of_cells=np.sum([part.gain_of_cells for part in parts], axis=0))


def profile_genes(predictions: GenePredictions, level: float, seed: int) -> GeneProfiles:
    """Fit each gene with pi absent, free, and held at the points of a grid.

    Parameters
    ----------
    predictions
        Counts, and what is known about their means.
    level
        Confidence level of the intervals.
    seed
        Seed of the folds of cross-validation.
    """
    n_cells = len(predictions.log_mean)
    fold = torch.from_numpy(np.random.default_rng(seed).permutation(n_cells) % N_FOLDS)
    critical = math.sqrt(stats.chi2.ppf(level, 1))
    return GeneProfiles.join([_profile(data, fold, critical) for data in _chunks(predictions)])


def likelihood_ratio(
    predictions: GenePredictions,
) -> tuple[Float[np.ndarray, "genes"], Float[np.ndarray, "genes"]]:
    """Return twice the log-likelihood that pi gains, and the best pi.

    Parameters
    ----------
    predictions
        Counts, and what is known about their means.
    """
    parts = []
    for data in _chunks(predictions):
        without = _without(data)
        free = _free(data, without, _at(without.parameters, START_PI))
        parts.append(torch.stack([2 * (free.value - without.value), free.parameters[:, PI]]))
    ratio, pi = torch.cat(parts, dim=1).numpy()
    return ratio, pi


def _chunks(predictions: GenePredictions) -> Iterator[GeneCounts]:
    n_cells, n_genes = predictions.log_mean.shape
    category = torch.from_numpy(predictions.category)
    counts = predictions.counts.tocsc()
    size = max(1, ENTRIES_AT_ONCE // n_cells)
    for start in range(0, n_genes, size):
        genes = slice(start, start + size)
        counts_here, log_mean, deviation, log_theta = (
            torch.from_numpy(np.ascontiguousarray(matrix, dtype=np.float64))
            for matrix in (
                counts[:, genes].toarray(),
                predictions.log_mean[:, genes],
                predictions.deviation[:, genes],
                predictions.log_theta[:, genes],
            )
        )
        yield GeneCounts(counts_here, log_mean, deviation, log_theta, category)


def _without(data: GeneCounts) -> GeneFit:
    start = torch.zeros(data.n_genes, 3, dtype=torch.float64)
    return maximise(data, start, held=(PI,))


def _free(data: GeneCounts, without: GeneFit, start: Float[Tensor, "genes 3"]) -> GeneFit:
    """Return the best fit with pi free, which is that without pi where none is better."""
    found = maximise(data, start)
    return found.where(found.value > without.value, without)


def _at(parameters: Float[Tensor, "genes 3"], pi: float | Float[Tensor, "genes"]) -> Float[Tensor, "genes 3"]:
    """Return parameters with another pi and the same expected counts."""
    moved = parameters.clone()
    moved[:, PI] = pi
    moved[:, OFFSET] += torch.log1p(-parameters[:, PI]) - torch.log1p(-moved[:, PI])
    return moved


def _profile(data: GeneCounts, fold: Tensor, critical: float) -> GeneProfiles:
    without = _without(data)
    fits = [without]
    for pi in PI_GRID[1:]:
        fits.append(maximise(data, _at(fits[-1].parameters, pi), held=(PI,)))
    values = torch.stack([fit.value for fit in fits])
    parameters = torch.stack([fit.parameters for fit in fits])
    genes = torch.arange(data.n_genes)
    free = _free(data, without, parameters[values.argmax(0), genes])
    root = (2 * (free.value - values)).clamp_min(0).sqrt()
    grid = torch.tensor(PI_GRID, dtype=torch.float64)
    lower = _limit(data, free, grid, root, parameters, critical, side=-1)
    upper = _limit(data, free, grid, root, parameters, critical, side=1)
    curvature, slope = _curvature(free.hessian)
    gain = _cross_validated_gain(data, fold, without, free)
    return GeneProfiles(
        pi=free.parameters[:, PI].numpy(),
        lower=lower.numpy(),
        upper=upper.numpy(),
        likelihood_ratio=(2 * (free.value - without.value)).numpy(),
        profile=(values - free.value).clamp_max(0).T.numpy(),
        curvature=curvature.numpy(),
        slope=slope.numpy(),
        gain=gain.mean(0).numpy(),
        gain_error=(gain.std(0) / math.sqrt(len(gain))).numpy(),
        gain_of_cells=gain.sum(1).numpy(),
    )


def _limit(
    data: GeneCounts,
    free: GeneFit,
    grid: Float[Tensor, "grid"],
    root: Float[Tensor, "grid genes"],
    parameters: Float[Tensor, "grid genes 3"],
    critical: float,
    side: int,
) -> Float[Tensor, "genes"]:
    """Return where the signed root of the likelihood ratio crosses the critical value, by false position.

    The root is nearly linear in pi, so that few fits give the limit. Where the profile never falls so far, the limit is
    that of the parameter, zero or one.
    """
    genes = torch.arange(data.n_genes)
    best = free.parameters[:, PI]
    is_outside = (side * (grid[:, None] - best) > 0) & (root > critical)
    exists = is_outside.any(0)
    # The outside point nearest to the best pi, and the point before it, which may be the best pi itself.
    order = torch.arange(len(grid)) if side > 0 else torch.arange(len(grid)).flip(0)
    outside = order[is_outside[order].int().argmax(0)]
    before = (outside - side).clamp(0, len(grid) - 1)
    is_beyond_best = side * (grid[before] - best) > 0
    inner, outer = torch.where(is_beyond_best, grid[before], best), grid[outside]
    root_inner = torch.where(is_beyond_best, root[before, genes], 0.0)
    root_outer = root[outside, genes]
    start = torch.where(is_beyond_best[:, None], parameters[before, genes], free.parameters)
    where = best
    for _ in range(N_REFINEMENTS):
        where = inner + (critical - root_inner) / (root_outer - root_inner).clamp_min(1e-9) * (outer - inner)
        where = torch.where(exists, where, best)
        fit = maximise(data, _at(start, where), held=(PI,))
        found = (2 * (free.value - fit.value)).clamp_min(0).sqrt()
        is_inside = found <= critical
        inner, root_inner = torch.where(is_inside, where, inner), torch.where(is_inside, found, root_inner)
        outer, root_outer = torch.where(is_inside, outer, where), torch.where(is_inside, root_outer, found)
        start = fit.parameters
    where = inner + (critical - root_inner) / (root_outer - root_inner).clamp_min(1e-9) * (outer - inner)
    return torch.where(exists, where.clamp(0, 1), 1.0 if side > 0 else 0.0)


def _curvature(hessian: Float[Tensor, "genes 3 3"]) -> tuple[Float[Tensor, "genes"], Float[Tensor, "genes"]]:
    """Return curvature of the profile of pi, and the slope of the best log mean along it, by Schur's complement."""
    information = -hessian
    rest, cross = information[:, :2, :2], information[:, :2, 2]
    # A dispersion that runs away leaves its row at zero.
    moved = -(torch.linalg.pinv(rest, hermitian=True, rtol=1e-9) @ cross[:, :, None]).squeeze(-1)
    curvature = information[:, 2, 2] + (cross * moved).sum(1)
    return curvature.clamp_min(0), moved[:, 0]


def _cross_validated_gain(
    data: GeneCounts, fold: Tensor, without: GeneFit, free: GeneFit
) -> Float[Tensor, "cells genes"]:
    """Return the log-probability that pi gains for cells that its fit has not seen.

    Dispersions stay at their best for all cells, with pi and without: otherwise a single cell with many counts, which
    one fold lacks, would decide.
    """
    gain = torch.zeros(data.is_zero.shape, dtype=torch.float64)
    for held_out in range(N_FOLDS):
        weight = (fold != held_out).double()
        fit_without = maximise(data, without.parameters, held=(DISPERSION, PI), weight=weight)
        fit_free = maximise(data, free.parameters, held=(DISPERSION,), weight=weight)
        fit_free = fit_free.where(fit_free.value > fit_without.value, fit_without)
        rows = fold == held_out
        gain[rows] = (data.log_prob(fit_free.parameters) - data.log_prob(fit_without.parameters))[rows]
    return gain
