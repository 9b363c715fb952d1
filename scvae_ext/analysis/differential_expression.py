"""Which genes differ between groups of cells, from sums over the cells of each."""

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from scvae_ext.analysis.between_samples import between_samples
from scvae_ext.analysis.comparison import Comparison
from scvae_ext.analysis.contrasts import Contrast, CountContrast
from scvae_ext.analysis.estimates import group_estimates
from scvae_ext.analysis.fdr import expected_fdr
from scvae_ext.analysis.moments import GroupMoments
from scvae_ext.analysis.shrinkage import fold_change_posterior

__all__ = [
    "FEWEST_CELLS",
    "TestMode",
    "bayes_factor",
    "change_table",
    "count_table",
    "measured_in_both",
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


def change_table(
    moments: GroupMoments,
    comparison: Comparison,
    *,
    delta: float | None,
    fdr_target: float,
    sample: Int[np.ndarray, "units"] | None = None,
    sample_names: Sequence[str] = (),
    own: GroupMoments | None = None,
    batch: Int[np.ndarray, "units"] | None = None,
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
    own, batch
        The same sums with expression in the batch in which each cell was observed, and the batch of each unit, -1 where
        it is not one to compare in: groups are compared within the batches that both have cells in, and by ``moments``
        where they share none. ``None`` for no batches, or with samples.
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
            own=None if own is None else own.of_genes(measured),
            batch=batch,
            test_mode=test_mode,
            levels=levels,
            common_factor=common_factor,
        )
        of_all = table.set_axis(np.flatnonzero(measured)).reindex(range(len(measured)))
        flag = f"is_de_fdr_{fdr_target}"
        return of_all.assign(**{flag: of_all[flag].eq(True)})
    groups = group_estimates(moments, comparison, own, batch, common_factor)
    contrast: Contrast = (
        CountContrast.of(groups)
        if sample is None
        else between_samples(moments, comparison, sample, sample_names, common_factor)
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
            "scale1": groups.mean[0],
            "scale2": groups.mean[1],
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
