"""Sums over the cells of each group, from which its mean expression and the error of that mean follow."""

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import Self

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from scvae_ext.analysis.draws import PosteriorDraws

__all__ = ["GroupMoments", "group_moments"]

# Standard deviations of the model above which a count is cut, and what is added lest single counts of rare genes are.
CUT_AT, CUT_ABOVE = 3.0, 1.0
# 1 / theta that real counts have at least, whatever the model says.
LEAST_OVERDISPERSION = 0.2
FEWEST_FOR_MEDIAN = 5
# What the mean of a gene may be multiplied by before its counts are cut, and what makes the next one be taken.
FACTORS = (1.0, 4.0, 16.0, 64.0)
ENOUGH_ABOVE = 1.5
OF_OBSERVED = ("observed", "observed_squared", "observed_expected", "expression_observed")
# Total that raw counts are scaled to for the columns raw_normalized_mean.
TARGET_TOTAL = 1e4


@dataclass(frozen=True, eq=False)
class GroupMoments:
    r"""Sums over the cells of each group of cells, one row a group.

    With counts :math:`x`, their mean under the model :math:`\mu = \ell\rho`, weights :math:`w = \theta/(\theta + \mu)`
    and expression :math:`\rho^*` in the batches that cells are compared in. Counts above
    :math:`c\mu + 3\sqrt{c\mu + (c\mu)^2/\theta} + 1` are cut there: single cells with very many counts of a gene would
    otherwise decide about the mean of a group (Huber's winsorised residuals), with :math:`\theta` at most five. The
    factor c is 1 where the model expects about what there is, and otherwise the first of 4, 16 and 64 for which
    :math:`\sum wx/\sum w\mu` of the counts that are cut so is at most :math:`1.5\,c`: cells that the model has not
    seen may have far more of a gene than it expects. Sums of raw counts are of all.

    Parameters
    ----------
    n_cells
        Number of cells.
    n_measured
        Number of them in which each gene was measured.
    expression, expression_squared
        Sums of :math:`\rho^*` and of its square.
    observed, observed_squared
        Sums of :math:`w x` and of its square.
    expected, expected_squared
        Sums of :math:`w \mu` and of its square.
    observed_expected, expression_observed, expression_expected
        Sums of products of the three.
    counts, normalized, n_expressing
        Sums of counts, of counts per 10,000, and number of cells with a count above zero.
    """

    n_cells: Float[np.ndarray, "groups"]
    n_measured: Float[np.ndarray, "groups genes"]
    expression: Float[np.ndarray, "groups genes"]
    expression_squared: Float[np.ndarray, "groups genes"]
    observed: Float[np.ndarray, "groups genes"]
    observed_squared: Float[np.ndarray, "groups genes"]
    expected: Float[np.ndarray, "groups genes"]
    expected_squared: Float[np.ndarray, "groups genes"]
    observed_expected: Float[np.ndarray, "groups genes"]
    expression_observed: Float[np.ndarray, "groups genes"]
    expression_expected: Float[np.ndarray, "groups genes"]
    counts: Float[np.ndarray, "groups genes"]
    normalized: Float[np.ndarray, "groups genes"]
    n_expressing: Float[np.ndarray, "groups genes"]

    def merge(self, membership: Float[np.ndarray, "merged groups"]) -> Self:
        """Return the sums of unions of groups.

        Parameters
        ----------
        membership
            One where a group, a column, belongs to a union, a row; zero elsewhere.
        """
        return type(self)(**{field.name: membership @ getattr(self, field.name) for field in fields(self)})

    def of_genes(self, chosen: Bool[np.ndarray, "genes"]) -> Self:
        """Return the sums of some genes.

        Parameters
        ----------
        chosen
            Which.
        """
        of_cells = {"n_cells": self.n_cells}
        of_genes = {each.name: getattr(self, each.name)[:, chosen] for each in fields(self) if each.name != "n_cells"}
        return type(self)(**of_cells, **of_genes)

    def without_common_factor(self) -> Self:
        """Return the sums as if the model expected as much as was observed of the median gene of each group.

        With fewer than five genes there is no telling a common factor from a change, and nothing is done.
        """
        with np.errstate(invalid="ignore", divide="ignore"):
            ratio = np.where(self.expected > 0, self.observed / self.expected, np.nan)
        enough = (~np.isnan(ratio)).sum(1) >= FEWEST_FOR_MEDIAN
        factor = np.ones((len(ratio), 1))
        factor[enough, 0] = np.nanmedian(ratio[enough], axis=1)
        factor = np.where(factor > 0, factor, 1.0)
        return replace(
            self,
            expected=self.expected * factor,
            expected_squared=self.expected_squared * np.square(factor),
            observed_expected=self.observed_expected * factor,
            expression_expected=self.expression_expected * factor,
        )

    @property
    def mean(self) -> Float[np.ndarray, "groups genes"]:
        r"""Mean expression of a group, :math:`\bar\rho^* \sum wx / \sum w\mu`, per unit of depth.

        The model says how expression varies between cells; the counts say how much there is of it. Where the model is
        off by a factor in some group, the second factor takes that back: a regression estimator of survey sampling
        (Särndal, Swensson and Wretman, Model Assisted Survey Sampling, 1992).
        """
        mean: Float[np.ndarray, "groups genes"] = self.observed / self.exposure
        return mean

    @property
    def exposure(self) -> Float[np.ndarray, "groups genes"]:
        """Weighted counts to be expected per unit of mean expression."""
        exposure: Float[np.ndarray, "groups genes"] = self.expected * self.n_cells[:, None] / self.expression
        return exposure

    @property
    def variance(self) -> Float[np.ndarray, "groups genes"]:
        r"""Sampling variance of :attr:`mean`, from the spread between cells; not a number for a single cell.

        The sum over cells of their squared influence
        :math:`c(\rho^*_n - \bar\rho^*)/n + \bar\rho^* w_n (x_n - c\mu_n)/\sum w\mu` with :math:`c = \sum wx/\sum w\mu`,
        times :math:`n/(n-1)`. It takes neither the model's dispersion nor its posterior for granted.
        """
        n = self.n_cells[:, None]
        rho = self.expression / n
        factor = self.observed / self.expected
        of_state = np.square(factor / n) * (self.expression_squared - n * np.square(rho))
        of_counts = np.square(rho / self.expected) * (
            self.observed_squared - 2 * factor * self.observed_expected + np.square(factor) * self.expected_squared
        )
        of_both = (
            2 * factor * rho / (n * self.expected) * (self.expression_observed - factor * self.expression_expected)
        )
        with np.errstate(invalid="ignore", divide="ignore"):
            correction = np.where(n > 1, n / (n - 1), np.nan)
        variance: Float[np.ndarray, "groups genes"] = correction * np.maximum(of_state + of_counts + of_both, 0.0)
        return variance


def group_moments(
    draws: Iterable[PosteriorDraws], group: Int[np.ndarray, "cells"], n_groups: int, n_genes: int
) -> GroupMoments:
    """Add up what differential expression needs to know of each group, in one pass over the cells.

    Memory does not depend on the number of cells or of draws.

    Parameters
    ----------
    draws
        Draws of expression of all cells; each cell counts with the mean of its draws.
    group
        Group of each cell, from zero.
    n_groups, n_genes
        How many there are.
    """
    sums = {
        field.name: torch.zeros(n_groups, n_genes, dtype=torch.float64)
        for field in fields(GroupMoments)
        if field.name != "n_cells"
    }
    # What the sums of observed counts gain where they are cut higher.
    gains = {name: torch.zeros(len(FACTORS) - 1, n_groups, n_genes, dtype=torch.float64) for name in OF_OBSERVED}
    for chunk in draws:
        _add(sums, gains, chunk, torch.from_numpy(group[chunk.rows]), n_groups)
    _choose_cut(sums, gains)
    n_cells = np.bincount(group, minlength=n_groups).astype(np.float64)
    return GroupMoments(n_cells, **{name: values.numpy() for name, values in sums.items()})


def _choose_cut(sums: dict[str, Tensor], gains: dict[str, Tensor]) -> None:
    """Take the sums with the lowest cut that leaves enough above what is there, for each group and gene."""
    decided = torch.zeros_like(sums["observed"], dtype=torch.bool)
    observed = sums["observed"].clone()
    for place, factor in enumerate(FACTORS[:-1]):
        decided |= observed <= ENOUGH_ABOVE * factor * sums["expected"]
        for name in OF_OBSERVED:
            sums[name] += torch.where(decided, 0.0, gains[name][place])
        observed += gains["observed"][place]


def _add(
    sums: dict[str, Tensor],
    gains: dict[str, Tensor],
    chunk: PosteriorDraws,
    group: Int[Tensor, "cells"],
    n_groups: int,
) -> None:
    expression = chunk.expression.mean(0)
    fitted = expression if chunk.fitted is chunk.expression else chunk.fitted.mean(0)
    mean = fitted * chunk.depth
    theta = chunk.inverse_dispersion
    weight = torch.ones_like(mean) if theta is None else 1.0 / (1.0 + mean / theta)
    expected = weight * mean
    if chunk.measured is not None:
        expected = expected * chunk.measured
    group = group.to(mean.device)
    membership = mean.new_zeros(n_groups, len(group))
    membership[group, torch.arange(len(group), device=group.device)] = 1.0
    if chunk.measured is None:
        sums["n_measured"] += membership.sum(1, keepdim=True).cpu()
    else:
        sums["n_measured"] += (membership @ chunk.measured.to(mean.dtype)).cpu()
    dense = {
        "expression": expression,
        "expression_squared": expression.square(),
        "expected": expected,
        "expected_squared": expected.square(),
        "expression_expected": expression * expected,
    }
    for name, values in dense.items():
        sums[name] += (membership @ values).cpu()
    # Counts are mostly zero: their sums run over the other entries alone.
    counts = chunk.counts
    at = (counts.cell_index, counts.gene_index)
    mean_at, weight_at = mean[at], weight[at]
    overdispersion = mean_at.new_zeros(()) if theta is None else 1.0 / theta.expand_as(mean)[at]
    overdispersion = overdispersion.clamp_min(LEAST_OVERDISPERSION).expand_as(mean_at)
    highest = _highest(mean_at, overdispersion)
    observed = weight_at * torch.minimum(counts.values, highest)
    total = counts.sum_per_cell(counts.values)
    target = (group[counts.cell_index] * counts.n_genes + counts.gene_index).cpu()
    sparse = {
        "observed": observed,
        "observed_squared": observed.square(),
        "observed_expected": observed * expected[at],
        "expression_observed": observed * expression[at],
        "counts": counts.values,
        "normalized": TARGET_TOTAL * counts.values / total[counts.cell_index],
        "n_expressing": torch.ones_like(observed),
    }
    for name, values in sparse.items():
        sums[name].view(-1).index_add_(0, target, values.double().cpu())
    # Few counts are cut, and only they gain.
    cut = (counts.values > highest).nonzero().squeeze(-1)
    value, mean_of, overdispersion_of, weight_of = (
        each[cut] for each in (counts.values, mean_at, overdispersion, weight_at)
    )
    before, target, places = observed[cut], target[cut.cpu()], (at[0][cut], at[1][cut])
    for place, factor in enumerate(FACTORS[1:]):
        after = weight_of * torch.minimum(value, _highest(factor * mean_of, overdispersion_of))
        gained = {
            "observed": after - before,
            "observed_squared": after.square() - before.square(),
            "observed_expected": (after - before) * expected[places],
            "expression_observed": (after - before) * expression[places],
        }
        for name, values in gained.items():
            gains[name][place].view(-1).index_add_(0, target, values.double().cpu())
        before = after


def _highest(mean: Float[Tensor, "counts"], overdispersion: Float[Tensor, "counts"]) -> Float[Tensor, "counts"]:
    """Return what counts are cut at."""
    return mean + CUT_AT * (mean + overdispersion * mean.square()).sqrt() + CUT_ABOVE
