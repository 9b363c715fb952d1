"""Figure and numbers of docs/diagnostics/compare_likelihoods.md.

SCVAE_EXT_DATA=... python docs/figures/compare_likelihoods.py
"""

import os
from pathlib import Path

import anndata as ad
import numpy as np
import scanpy as sc

import scvae_ext as sv

DATA = Path(os.environ["SCVAE_EXT_DATA"])
STATIC = Path(__file__).resolve().parents[1] / "_static"


def variable_genes(adata, n_genes):
    """Return raw counts of the most variable genes, in cells that have any of them."""
    normalised = adata.copy()
    sc.pp.normalize_total(normalised, target_sum=1e4)
    sc.pp.log1p(normalised)
    sc.pp.highly_variable_genes(normalised, n_top_genes=n_genes)
    chosen = adata[:, normalised.var["highly_variable"].to_numpy()].copy()
    sc.pp.filter_cells(chosen, min_counts=1)
    sc.pp.filter_genes(chosen, min_cells=1)
    return ad.AnnData(chosen.X, obs=chosen.obs, var=chosen.var)


def with_dropout(adata, share, seed=0):
    """Set each count to zero with the same probability, as an amplification that fails would."""
    dropped = adata.copy()
    dropped.X.data[np.random.default_rng(seed).random(dropped.X.nnz) < share] = 0
    dropped.X.eliminate_zeros()
    return dropped


def main():
    pbmc = variable_genes(ad.read_h5ad(DATA / "pbmc3k.h5ad"), 1000)
    lines = ad.read_h5ad(DATA / "mixology_cross_protocol.h5ad")
    lines = variable_genes(lines[lines.obs["batch"] == "10x_5cl"][:1000].copy(), 500)
    datasets = {"pbmc3k": pbmc, "cell lines, 10x": lines, "cell lines, 30% dropout": with_dropout(lines, 0.3)}
    for name, adata in datasets.items():
        sv.SCVAE.setup_anndata(adata)
        result = sv.diagnostics.compare_likelihoods(adata, n_fits=1, accelerator="cpu", enable_progress_bar=False)
        print(f"{name}: {adata.n_obs} cells, {adata.n_vars} genes\n{result}\n{result.to_frame().round(3)}\n")
        if name == "pbmc3k":
            sv.pl.compare_likelihoods(result)[0].figure.savefig(STATIC / "compare_likelihoods.png", dpi=110)


if __name__ == "__main__":
    main()
