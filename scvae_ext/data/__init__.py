"""The road of the data: set-up, registry, alignment, minibatches."""

from scvae_ext.data.alignment import align
from scvae_ext.data.datasets import pbmc68k_reduced
from scvae_ext.data.loading import BlockReader, CellSource
from scvae_ext.data.new_batches import add_batches, keep_shared_genes
from scvae_ext.data.provenance import make_actual, read_registry, read_uns, record_result, write_registry
from scvae_ext.data.registry import CategoricalCovariate, ContinuousCovariate, Registry
from scvae_ext.data.setup import setup_anndata
from scvae_ext.data.synthetic import synthetic_counts
from scvae_ext.data.training import TrainingBlocks, split_indices
from scvae_ext.data.validation import CountFacts, Entry

__all__ = [
    "BlockReader",
    "CategoricalCovariate",
    "CellSource",
    "ContinuousCovariate",
    "CountFacts",
    "Entry",
    "Registry",
    "TrainingBlocks",
    "add_batches",
    "align",
    "keep_shared_genes",
    "make_actual",
    "pbmc68k_reduced",
    "read_registry",
    "read_uns",
    "record_result",
    "setup_anndata",
    "split_indices",
    "synthetic_counts",
    "write_registry",
]
