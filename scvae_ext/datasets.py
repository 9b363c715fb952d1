"""Data to try a model on: real cells that come with scanpy, and simulated counts of known truth."""

from scvae_ext.data.datasets import pbmc68k_reduced
from scvae_ext.data.synthetic import synthetic_counts

__all__ = ["pbmc68k_reduced", "synthetic_counts"]
