"""Which genes differ between groups of cells, from sums over the cells of each."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from scvae_ext.analysis.contrasts import Contrast, CountContrast
from scvae_ext.analysis.fdr import expected_fdr
from scvae_ext.analysis.moments import GroupMoments
from scvae_ext.analysis.replicates import SampleContrast
from scvae_ext.analysis.shrinkage import fold_change_posterior

__all__ = [
    "FEWEST_CELLS",
    "Comparison",
    "TestMode",
    "bayes_factor",
    "change_table",
    "count_table",
    "measured_in_both",
    "shortage_of_samples",
]

TestMode = Literal["two", "three"]

# Fewer cells say nothing about how much cells of a group differ.
FEWEST_CELLS = 3
# scvi-tools adds this to both probabilities of a Bayes factor.
EPSILON = 1e-8
SMALLEST_DELTA = 0.1
# Share of the typical change of genes that differ, as scvi-tools has it.
SHARE_OF_CHANGE = 0.6
# Ends of the interval that lfc_min and lfc_max hold.
EXTREMES = (0.0005, 0.9995)


@dataclass(frozen=True, eq=False)
class Comparison:
    """Two sets of units of cells to compare: groups, or the cells of a group in a sample.

    Parameters
    ----------
    group1, group2
        Names of the two.
    one, two
        Which units belong to them.
    """

    group1: str
    group2: str
    one: Bool[np.ndarray, "units"]
    two: Bool[np.ndarray, "units"]

    @property
    def name(self) -> str:
        """What is compared, in words."""
        return f"{self.group1} vs {self.group2}"


def change_table(
    moments: GroupMoments,
    comparison: Comparison,
    *,
    delta: float | None,
    fdr_target: float,
    sample: Int[np.ndarray, "units"] | None = None,
    sample_names: Sequence[str] = (),
    test_mode: TestMode = "three",
    levels: Sequence[float] = (),
    common_factor: bool = False,
) -> pd.DataFrame:
    """Return the posterior of each gene's log2 fold change, and whether it is large, one row a gene.

    A gene that was not measured in both groups (:func:`measured_in_both`) has missing values, and is not flagged.

    Parameters
    ----------
    moments
        Sums of each unit.
    comparison
        Which units to compare.
    delta
        Log2 fold change above which a difference counts, 0 for any; chosen from the data where ``None``.
    fdr_target
        False discovery rate to be expected of the genes that are flagged.
    sample
        Sample of each unit, for samples as replicates; cells are the replicates where ``None``.
    sample_names
        Their names, for messages.
    test_mode
        Whether up and down count as one kind of difference (``"two"``), or the likelier of the two (``"three"``).
    levels
        Probabilities of credible intervals to add.
    common_factor
        Whether what the median gene of a group (or of a group in a sample) has more than the model expects is taken
        for a factor of its cells, as the binding of antibodies is, and not for a change of genes.

    Raises
    ------
    ValueError
        If ``test_mode`` is unknown, or there are too few samples.
    """
    if test_mode not in get_args(TestMode):
        raise ValueError(f'test_mode={test_mode!r} is not known: use "two" or "three".')
    measured = measured_in_both(moments, comparison, sample)
    if not measured.all():
        table = change_table(
            moments.of_genes(measured),
            comparison,
            delta=delta,
            fdr_target=fdr_target,
            sample=sample,
            sample_names=sample_names,
            test_mode=test_mode,
            levels=levels,
            common_factor=common_factor,
        )
        of_all = table.set_axis(np.flatnonzero(measured)).reindex(range(len(measured)))
        flag = f"is_de_fdr_{fdr_target}"
        return of_all.assign(**{flag: of_all[flag].eq(True)})
    pooled = moments.merge(np.stack([comparison.one, comparison.two]).astype(np.float64))
    if common_factor:
        pooled = pooled.without_common_factor()
    contrast: Contrast = (
        CountContrast.from_moments(pooled)
        if sample is None
        else _between_samples(moments, comparison, sample, sample_names, common_factor)
    )
    posterior = fold_change_posterior(contrast)
    if delta is None:
        delta = max(SMALLEST_DELTA, SHARE_OF_CHANGE * posterior.typical_change)
    up, down = posterior.probability_above(delta), posterior.probability_below(-delta)
    probability = np.maximum(up, down) if test_mode == "three" else np.minimum(up + down, 1.0)
    fdr = expected_fdr(probability)
    intervals = {
        f"lfc_confidence_interval_{level}_{side}": posterior.quantile(0.5 + sign * level / 2)
        for level in levels
        for side, sign in (("min", -1), ("max", 1))
    }
    return pd.DataFrame(
        {
            "proba_de": probability,
            "proba_not_de": 1.0 - probability,
            "bayes_factor": bayes_factor(probability),
            "scale1": pooled.mean[0],
            "scale2": pooled.mean[1],
            "delta": delta,
            "lfc_mean": posterior.mean,
            "lfc_median": posterior.quantile(0.5),
            "lfc_std": posterior.std,
            "lfc_min": posterior.quantile(EXTREMES[0]),
            "lfc_max": posterior.quantile(EXTREMES[1]),
            **intervals,
            "expected_fdr": fdr,
            f"is_de_fdr_{fdr_target}": fdr <= fdr_target,
        }
    )


def measured_in_both(
    moments: GroupMoments, comparison: Comparison, sample: Int[np.ndarray, "units"] | None
) -> Bool[np.ndarray, "genes"]:
    """Return which genes were measured in three cells of both groups or, with samples, in each of them.

    Parameters
    ----------
    moments, comparison, sample
        As for :func:`change_table`.
    """
    sides = [comparison.one, comparison.two]
    if sample is not None:
        sides = [side & (sample == each) for side in sides for each in np.unique(sample[side])]
    membership = np.stack(sides).astype(np.float64)
    fewest = np.minimum(FEWEST_CELLS, membership @ moments.n_cells)
    measured: Bool[np.ndarray, genes] = (membership @ moments.n_measured >= fewest[:, None]).all(0)
    return measured


def count_table(moments: GroupMoments, comparison: Comparison) -> pd.DataFrame:
    """Return what the raw counts of two groups look like, one row a gene.

    Parameters
    ----------
    moments, comparison
        As for :func:`change_table`.
    """
    pooled = moments.merge(np.stack([comparison.one, comparison.two]).astype(np.float64))
    columns = {"raw_mean": "counts", "non_zeros_proportion": "n_expressing", "raw_normalized_mean": "normalized"}
    n_measured = np.where(pooled.n_measured > 0, pooled.n_measured, np.nan)
    return pd.DataFrame(
        {
            f"{column}{group + 1}": getattr(pooled, field)[group] / n_measured[group]
            for column, field in columns.items()
            for group in (0, 1)
        }
    )


def bayes_factor(probability: Float[np.ndarray, "genes"]) -> Float[np.ndarray, "genes"]:
    """Return the natural logarithm of the odds, with 1e-8 added to both probabilities as scvi-tools does.

    Parameters
    ----------
    probability
        Posterior probabilities.
    """
    log_odds: Float[np.ndarray, genes] = np.log(probability + EPSILON) - np.log(1.0 - probability + EPSILON)
    return log_odds


def shortage_of_samples(comparison: Comparison, sample: Int[np.ndarray, "units"], names: Sequence[str]) -> str | None:
    """Return in words why a comparison has too few samples, or ``None`` where they suffice.

    Parameters
    ----------
    comparison
        Which units to compare.
    sample, names
        Sample of each unit, and the names of the samples.
    """
    in_one, in_two = (np.unique(sample[members]) for members in (comparison.one, comparison.two))
    if min(len(in_one), len(in_two)) >= 2:
        return None
    return (
        f"{comparison.name}: with sample_key, samples are the replicates, but {comparison.group1!r} has cells of "
        f"{_listed(in_one, names)} and {comparison.group2!r} of {_listed(in_two, names)}. Each group needs two "
        "samples at least. Leave sample_key out to take cells as replicates, which says nothing about new samples."
    )


def _between_samples(
    moments: GroupMoments,
    comparison: Comparison,
    sample: Int[np.ndarray, "units"],
    names: Sequence[str],
    common_factor: bool,
) -> SampleContrast:
    shortage = shortage_of_samples(comparison, sample, names)
    if shortage is not None:
        raise ValueError(shortage)
    in_one, in_two = (np.unique(sample[members]) for members in (comparison.one, comparison.two))
    shared = np.intersect1d(in_one, in_two)
    paired = len(shared) >= 2
    left_out = np.setxor1d(in_one, in_two) if paired else shared
    if paired:
        in_one = in_two = shared
    if len(left_out):
        named = _listed(left_out, names)
        message = (
            f"{len(shared)} samples are compared within themselves; left out, for lack of cells of one group: {named}"
            if paired
            else f"cells of both groups come from {named}, and are taken as independent"
        )
        warnings.warn(f"{comparison.name}: {message}.", UserWarning, stacklevel=5)

    def of_samples(members: np.ndarray, chosen: np.ndarray) -> GroupMoments:
        merged = moments.merge(((sample[None] == chosen[:, None]) & members[None]).astype(np.float64))
        return merged.without_common_factor() if common_factor else merged

    return SampleContrast.from_moments(
        of_samples(comparison.one, in_one), of_samples(comparison.two, in_two), paired=paired
    )


def _listed(samples: Int[np.ndarray, "chosen"], names: Sequence[str]) -> str:
    shown = ", ".join(repr(names[each]) for each in samples[:5])
    more = ", ..." if len(samples) > 5 else ""
    return f"{len(samples)} sample{'s' if len(samples) != 1 else ''} ({shown}{more})"
