"""Plots: one function for each question a person asks of a model."""

from scvae_ext.pl.abundance import differential_abundance
from scvae_ext.pl.compare_autoencoder import compare_autoencoder
from scvae_ext.pl.compare_latent_dimensions import compare_latent_dimensions
from scvae_ext.pl.compare_likelihoods import compare_likelihoods
from scvae_ext.pl.conditional_independence import conditional_independence
from scvae_ext.pl.counterfactual import counterfactual_effect, overlap
from scvae_ext.pl.embedding import embedding_comparison
from scvae_ext.pl.evidence import evidence
from scvae_ext.pl.gradient_estimators import gradient_estimators
from scvae_ext.pl.intervals import expression_intervals
from scvae_ext.pl.novelty import novelty
from scvae_ext.pl.posterior_collapse import posterior_collapse
from scvae_ext.pl.posterior_predictive_check import posterior_predictive_check
from scvae_ext.pl.training import history
from scvae_ext.pl.two_sample_test import two_sample_test
from scvae_ext.pl.volcano import volcano
from scvae_ext.pl.zero_inflation import zero_inflation

__all__ = [
    "compare_autoencoder",
    "compare_latent_dimensions",
    "compare_likelihoods",
    "conditional_independence",
    "counterfactual_effect",
    "differential_abundance",
    "embedding_comparison",
    "evidence",
    "expression_intervals",
    "gradient_estimators",
    "history",
    "novelty",
    "overlap",
    "posterior_collapse",
    "posterior_predictive_check",
    "two_sample_test",
    "volcano",
    "zero_inflation",
]
