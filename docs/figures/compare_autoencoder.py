"""Figure and numbers of docs/diagnostics/compare_autoencoder.md.

SCVAE_EXT_DATA=... python docs/figures/compare_autoencoder.py
"""

import os
from pathlib import Path

import anndata as ad
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


def main():
    pbmc = variable_genes(ad.read_h5ad(DATA / "pbmc3k.h5ad"), 1000)
    sv.SCVAE.setup_anndata(pbmc)
    result = sv.diagnostics.compare_autoencoder(pbmc, accelerator="cpu", enable_progress_bar=False)
    print(f"pbmc3k: {pbmc.n_obs} cells, {pbmc.n_vars} genes\n{result}\n{result.to_frame().round(3).to_string()}\n")
    sv.pl.compare_autoencoder(result)[0].figure.savefig(STATIC / "compare_autoencoder.png", dpi=110)


if __name__ == "__main__":
    main()
