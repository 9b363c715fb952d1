"""Mean expression of groups of cells with its error: of all their cells, or within the batches that they share."""

import warnings
from dataclasses import dataclass, fields

import numpy as np
from jaxtyping import Bool, Float, Int

from scvae_ext.analysis.comparison import Comparison
from scvae_ext.analysis.moments import GroupMoments

__all__ = ["GroupEstimates", "group_estimates", "in_shared_batches", "pooled", "summed", "within_batches"]

# A single cell has no spread.
FEWEST_OF_BATCH = 2


@dataclass(frozen=True, eq=False)
class GroupEstimates:
    """What is known of the mean expression of each group, one row a group.

    Parameters
    ----------
    mean
        Mean expression per unit of depth.
    variance
        Its sampling variance.
    exposure
        Counts to be expected per unit of mean expression, if cells were no more variable than Poisson counts.
    n_measured
        Number of cells that the variance comes from: one more than its degrees of freedom.
    n_expressing
        Number of them with a count above zero.
    """

    mean: Float[np.ndarray, "groups genes"]
    variance: Float[np.ndarray, "groups genes"]
    exposure: Float[np.ndarray, "groups genes"]
    n_measured: Float[np.ndarray, "groups genes"]
    n_expressing: Float[np.ndarray, "groups genes"]


def pooled(moments: GroupMoments) -> GroupEstimates:
    """Return the estimates from all cells of each group together.

    Parameters
    ----------
    moments
        Sums of each group.
    """
    names = (field.name for field in fields(GroupEstimates))
    return GroupEstimates(**{name: getattr(moments, name) for name in names})


def within_batches(one: GroupMoments, two: GroupMoments) -> tuple[GroupEstimates, Bool[np.ndarray, "genes"]]:
    r"""Return the estimates of two groups from the batches that both have cells in, each compared within itself.

    The mean of a group is that of its means :math:`\hat m_s` in the batches, with the same weights for both groups,

    .. math:: \hat m = \sum_s \pi_s \hat m_s, \qquad
              \pi_s \propto \frac{n_{1s} n_{2s}}{n_{1s} + n_{2s}}

    (the weights of Mantel and Haenszel, Journal of the National Cancer Institute 22, 719 (1959)), and its variance
    :math:`\sum_s \pi_s^2 v_s`. A batch cancels whatever the model takes for its effect, of which some can be that of
    a group with most of its cells there.

    Parameters
    ----------
    one, two
        Sums of group one and of group two in each batch, in the same order; without cells where there are none.

    Returns
    -------
    GroupEstimates
        Of both groups; not numbers for genes that no batch has been measured of in two cells of each.
    ndarray
        Whether a gene has been.
    """
    both = (one.n_measured >= FEWEST_OF_BATCH) & (two.n_measured >= FEWEST_OF_BATCH)
    total = np.where(both, one.n_measured + two.n_measured, 1.0)
    weight = np.where(both, one.n_measured * two.n_measured / total, 0.0)
    shared: Bool[np.ndarray, genes] = np.asarray(both.any(axis=0))
    with np.errstate(invalid="ignore", divide="ignore"):
        share = weight / weight.sum(0)
        groups = [_average(moments, share, both) for moments in (one, two)]
    names = [field.name for field in fields(GroupEstimates)]
    return GroupEstimates(**{name: np.stack([group[name] for group in groups]) for name in names}), shared


def in_shared_batches(
    own: GroupMoments, comparison: Comparison, batch: Int[np.ndarray, "units"], common_factor: bool = False
) -> tuple[GroupEstimates, Bool[np.ndarray, "genes"]]:
    """Return what is known of two groups from the batches that both have cells in, and for which genes there are any.

    Parameters
    ----------
    own
        Sums with expression in the batch in which each cell was observed.
    comparison
        Which units to compare.
    batch
        Batch of each unit, -1 where it is left out.
    common_factor
        As for :func:`summed`.
    """
    of_batch = batch == np.unique(batch[batch >= 0])[:, None]
    one, two = (summed(own, of_batch & members, common_factor) for members in (comparison.one, comparison.two))
    return within_batches(one, two)


def group_estimates(
    moments: GroupMoments,
    comparison: Comparison,
    own: GroupMoments | None,
    batch: Int[np.ndarray, "units"] | None,
    common_factor: bool,
) -> GroupEstimates:
    """Return what is known of two groups, from the batches that both have cells in where batches are given.

    Parameters
    ----------
    moments
        Sums with expression in the batches to compare in.
    comparison, own, batch, common_factor
        As for :func:`in_shared_batches`; ``None`` for no batches.
    """
    together = pooled(summed(moments, np.stack([comparison.one, comparison.two]), common_factor))
    if own is None or batch is None:
        return together
    within, shared = in_shared_batches(own, comparison, batch, common_factor)
    if not shared.all():
        some = f" for {np.count_nonzero(~shared)} of {len(shared)} rows" if shared.any() else ""
        message = (
            f"{comparison.name}: no batch has two cells of both groups{some}: the model alone tells the difference "
            "between the groups from that between batches there, and cannot where they coincide."
        )
        warnings.warn(message, UserWarning, stacklevel=5)
    names = [field.name for field in fields(GroupEstimates)]
    return GroupEstimates(**{name: np.where(shared, vars(within)[name], vars(together)[name]) for name in names})


def summed(moments: GroupMoments, membership: Bool[np.ndarray, "merged units"], common_factor: bool) -> GroupMoments:
    """Return the sums of unions of units.

    Parameters
    ----------
    moments
        Sums of the units.
    membership
        Whether a unit, a column, belongs to a union, a row.
    common_factor
        Whether what the median gene has more than the model expects is taken out.
    """
    merged = moments.merge(membership.astype(np.float64))
    return merged.without_common_factor() if common_factor else merged


def _average(
    moments: GroupMoments, share: Float[np.ndarray, "batches genes"], used: Bool[np.ndarray, "batches genes"]
) -> dict[str, Float[np.ndarray, "genes"]]:
    """Return the estimates of one group, by the name of each."""

    def total(values: Float[np.ndarray, "batches genes"]) -> Float[np.ndarray, "genes"]:
        summed: Float[np.ndarray, genes] = np.where(used, values, 0.0).sum(0)
        return np.where(used.any(0), summed, np.nan)

    mean = total(share * moments.mean)
    # The variance of Poisson counts with these means: of none, as if all batches had the same.
    of_counts = total(np.square(share) * moments.mean / moments.exposure)
    none = total(np.square(share) / moments.exposure)
    return {
        "mean": mean,
        "variance": total(np.square(share) * moments.variance),
        "exposure": np.where(mean > 0, mean / of_counts, 1.0 / none),
        "n_measured": total(moments.n_measured) - used.sum(0) + 1,
        "n_expressing": total(moments.n_expressing),
    }
