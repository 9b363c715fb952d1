"""Questions put to posterior draws: which genes differ, and what a cell would be like elsewhere."""

from scvae_ext.analysis.contrasts import Contrast, CountContrast
from scvae_ext.analysis.counterfactual import (
    Counterfactual,
    CounterfactualEffect,
    Dependence,
    Overlap,
    setting_overlap,
)
from scvae_ext.analysis.differential_expression import Comparison, TestMode, change_table, count_table
from scvae_ext.analysis.draws import PosteriorDraws
from scvae_ext.analysis.fdr import expected_fdr
from scvae_ext.analysis.intervals import (
    ExpressionInterval,
    IntervalCalibration,
    calibrate_intervals,
    interval_level,
)
from scvae_ext.analysis.moments import GroupMoments, group_moments
from scvae_ext.analysis.pairs import PairProbabilities
from scvae_ext.analysis.ranking import rank_genes_groups
from scvae_ext.analysis.replicates import SampleContrast
from scvae_ext.analysis.shrinkage import FoldChangePosterior, fold_change_posterior

__all__ = [
    "Comparison",
    "Contrast",
    "CountContrast",
    "Counterfactual",
    "CounterfactualEffect",
    "Dependence",
    "ExpressionInterval",
    "FoldChangePosterior",
    "GroupMoments",
    "IntervalCalibration",
    "Overlap",
    "PairProbabilities",
    "PosteriorDraws",
    "SampleContrast",
    "TestMode",
    "calibrate_intervals",
    "change_table",
    "count_table",
    "expected_fdr",
    "fold_change_posterior",
    "group_moments",
    "interval_level",
    "rank_genes_groups",
    "setting_overlap",
]
