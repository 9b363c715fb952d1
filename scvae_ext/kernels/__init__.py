"""Loops over counts, compiled for the processor: what torch would do in many passes over memory, in one.

Each kernel is the fast path of a definition that stands elsewhere in torch, which other devices and other precisions
take, and is tested against it and against 50-digit references. Kernels know arrays alone; products of dense matrices,
which torch's own libraries do, know its tensors.
"""

from scvae_ext.kernels.dense_product import dense_product, transposed_dense_product
from scvae_ext.kernels.dependence import dependence_and_gradient
from scvae_ext.kernels.gaussian import gaussian_sample, gaussian_sample_backward
from scvae_ext.kernels.likelihood import composed_log_prob
from scvae_ext.kernels.normalised import normalised, normalised_backward
from scvae_ext.kernels.rows import gathered_rows
from scvae_ext.kernels.softmax import write_compositions
from scvae_ext.kernels.sparse_product import cell_offsets, log1p_of, sparse_product, transposed_sparse_product

__all__ = [
    "cell_offsets",
    "composed_log_prob",
    "dense_product",
    "dependence_and_gradient",
    "gathered_rows",
    "gaussian_sample",
    "gaussian_sample_backward",
    "log1p_of",
    "normalised",
    "normalised_backward",
    "sparse_product",
    "transposed_dense_product",
    "transposed_sparse_product",
    "write_compositions",
]
