"""Figure and numbers of docs/diagnostics/posterior_predictive_check.md.

SCVAE_EXT_DATA=... python docs/figures/posterior_predictive_check.py
"""

import os
from pathlib import Path

import anndata as ad
import scanpy as sc

import scvae_ext as sv

DATA = Path(os.environ["SCVAE_EXT_DATA"])
STATIC = Path(__file__).resolve().parents[1] / "_static"
N_GENES = 1000


def main():
    adata = ad.read_h5ad(DATA / "pbmc3k.h5ad")
    normalised = adata.copy()
    sc.pp.normalize_total(normalised, target_sum=1e4)
    sc.pp.log1p(normalised)
    sc.pp.highly_variable_genes(normalised, n_top_genes=N_GENES)
    adata = adata[:, normalised.var["highly_variable"].to_numpy()].copy()
    sc.pp.filter_cells(adata, min_counts=1)
    sv.SCVAE.setup_anndata(adata)
    for likelihood in ("poisson", "nb"):
        model = sv.SCVAE(adata, gene_likelihood=likelihood)
        model.train(accelerator="cpu", enable_progress_bar=False)
        for latent in ("posterior", "prior"):
            check = sv.diagnostics.posterior_predictive_check(model, latent=latent)
            coverage = check.to_frame("coverage").loc[[0.5, 0.8, 0.9, 0.95]].round(3)
            print(f"{likelihood}, {latent}\n{check}\n{coverage}\n")
            if likelihood == "nb" and latent == "posterior":
                figure = sv.pl.posterior_predictive_check(check)[0].figure
                figure.savefig(STATIC / "posterior_predictive_check.png", dpi=100)


if __name__ == "__main__":
    main()
