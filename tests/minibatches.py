"""Minibatches of random counts, for tests of everything between the data and the models."""

import torch

from scvae_ext.minibatch import Minibatch, SparseCounts


def make_minibatch(
    n_cells=12,
    n_genes=7,
    *,
    n_batches=1,
    n_labels=1,
    n_categories=(),
    n_continuous=0,
    size_factor=False,
    rate=2.0,
    dtype=torch.float32,
    seed=0,
):
    generator = torch.Generator().manual_seed(seed)
    counts = torch.poisson(torch.full((n_cells, n_genes), rate, dtype=dtype), generator=generator)
    counts[:, 0] += 1
    cells = torch.arange(n_cells)
    columns = [(cells // (i + 2)) % n for i, n in enumerate(n_categories)]
    return Minibatch(
        SparseCounts.from_dense(counts),
        counts.sum(1),
        cells % n_batches,
        (cells // 2) % n_labels,
        torch.stack(columns, 1) if columns else torch.zeros(n_cells, 0, dtype=torch.int64),
        torch.randn(n_cells, n_continuous, generator=generator, dtype=dtype),
        0.5 + torch.rand(n_cells, generator=generator, dtype=dtype) if size_factor else None,
    )
