"""Questions put to posteriors and their draws: what differs, what a cell would be elsewhere, how sure that is."""

from scvae_ext.analysis.abundance import AbundanceRatio, DifferentialAbundance, abundance_ratio
from scvae_ext.analysis.aggregated_posterior import AggregatedPosterior
from scvae_ext.analysis.comparison import Comparison
from scvae_ext.analysis.contrasts import Contrast, CountContrast
from scvae_ext.analysis.correlation import pearson_correlation, spearman_correlation
from scvae_ext.analysis.counterfactual import Counterfactual, CounterfactualEffect
from scvae_ext.analysis.differential_expression import TestMode, change_table, count_table
from scvae_ext.analysis.draws import PosteriorDraws
from scvae_ext.analysis.fdr import expected_fdr
from scvae_ext.analysis.intervals import (
    ExpressionInterval,
    IntervalCalibration,
    calibrate_intervals,
    interval_level,
)
from scvae_ext.analysis.label_calibration import LabelCalibration, fit_label_calibration
from scvae_ext.analysis.library_sizes import LibrarySizes, fit_library_sizes
from scvae_ext.analysis.moments import GroupMoments, group_moments
from scvae_ext.analysis.novelty import Novelty, rank_among, replicate_test
from scvae_ext.analysis.overlap import Dependence, Overlap, setting_overlap
from scvae_ext.analysis.pairs import PairProbabilities
from scvae_ext.analysis.ranking import rank_genes_groups
from scvae_ext.analysis.replicates import SampleContrast
from scvae_ext.analysis.shrinkage import FoldChangePosterior, fold_change_posterior
from scvae_ext.analysis.uncertainty import gaussian_entropy, gaussian_information, label_probabilities

__all__ = [
    "AbundanceRatio",
    "AggregatedPosterior",
    "Comparison",
    "Contrast",
    "CountContrast",
    "Counterfactual",
    "CounterfactualEffect",
    "Dependence",
    "DifferentialAbundance",
    "ExpressionInterval",
    "FoldChangePosterior",
    "GroupMoments",
    "IntervalCalibration",
    "LabelCalibration",
    "LibrarySizes",
    "Novelty",
    "Overlap",
    "PairProbabilities",
    "PosteriorDraws",
    "SampleContrast",
    "TestMode",
    "abundance_ratio",
    "calibrate_intervals",
    "change_table",
    "count_table",
    "expected_fdr",
    "fit_label_calibration",
    "fit_library_sizes",
    "fold_change_posterior",
    "gaussian_entropy",
    "gaussian_information",
    "group_moments",
    "interval_level",
    "label_probabilities",
    "pearson_correlation",
    "rank_among",
    "rank_genes_groups",
    "replicate_test",
    "setting_overlap",
    "spearman_correlation",
]
