"""Plots: one function for each question a person asks of a model."""

from scvae_ext.pl.embedding import embedding_comparison
from scvae_ext.pl.evidence import evidence
from scvae_ext.pl.posterior_collapse import posterior_collapse
from scvae_ext.pl.training import history

__all__ = ["embedding_comparison", "evidence", "history", "posterior_collapse"]
