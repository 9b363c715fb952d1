"""Whether a trained model can be believed: each question has a function, a typed result and a plot in ``pl``."""

from scvae_ext.diagnostics.autoencoder_comparison import AutoencoderComparison, Measured
from scvae_ext.diagnostics.compare_autoencoder import compare_autoencoder
from scvae_ext.diagnostics.compare_latent_dimensions import LatentDimensionComparison, compare_latent_dimensions
from scvae_ext.diagnostics.compare_likelihoods import LikelihoodComparison, compare_likelihoods
from scvae_ext.diagnostics.conditional_independence import ConditionalIndependence, conditional_independence
from scvae_ext.diagnostics.evidence import Evidence, evidence
from scvae_ext.diagnostics.gradient_estimators import GradientEstimate, GradientEstimators, gradient_estimators
from scvae_ext.diagnostics.posterior_collapse import PosteriorCollapse, posterior_collapse
from scvae_ext.diagnostics.posterior_predictive_check import PosteriorPredictiveCheck, posterior_predictive_check
from scvae_ext.diagnostics.replicated import Replicated
from scvae_ext.diagnostics.report import report
from scvae_ext.diagnostics.two_sample_test import TwoSampleTest, two_sample_test
from scvae_ext.diagnostics.zero_inflation import ZeroInflation, zero_inflation

__all__ = [
    "AutoencoderComparison",
    "ConditionalIndependence",
    "Evidence",
    "GradientEstimate",
    "GradientEstimators",
    "LatentDimensionComparison",
    "LikelihoodComparison",
    "Measured",
    "PosteriorCollapse",
    "PosteriorPredictiveCheck",
    "Replicated",
    "TwoSampleTest",
    "ZeroInflation",
    "compare_autoencoder",
    "compare_latent_dimensions",
    "compare_likelihoods",
    "conditional_independence",
    "evidence",
    "gradient_estimators",
    "posterior_collapse",
    "posterior_predictive_check",
    "report",
    "two_sample_test",
    "zero_inflation",
]
