"""Plots: one function for each question a person asks of a model."""

from scvae_ext.pl.embedding import embedding_comparison
from scvae_ext.pl.training import history

__all__ = ["embedding_comparison", "history"]
