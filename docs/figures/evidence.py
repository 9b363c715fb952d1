"""Numbers of real data in docs/diagnostics/evidence.md.

SCVAE_EXT_DATA=... python docs/figures/evidence.py
"""

import os
import warnings
from pathlib import Path

import anndata as ad
import scanpy as sc

import scvae_ext as sv

DATA = Path(os.environ["SCVAE_EXT_DATA"])
STATIC = Path(__file__).resolve().parents[1] / "_static"
N_GENES = 1000


def variable_genes(adata):
    """Keep the most variable genes, and the cells that have counts in them."""
    normalised = adata.copy()
    sc.pp.normalize_total(normalised, target_sum=1e4)
    sc.pp.log1p(normalised)
    sc.pp.highly_variable_genes(normalised, n_top_genes=N_GENES)
    adata = adata[:, normalised.var["highly_variable"].to_numpy()].copy()
    sc.pp.filter_cells(adata, min_counts=1)
    return adata


def main():
    for name in ("pbmc3k", "bladder_mca_2100"):
        adata = variable_genes(ad.read_h5ad(DATA / f"{name}.h5ad"))
        sv.SCVAE.setup_anndata(adata)
        model = sv.SCVAE(adata)
        model.train(accelerator="cpu", enable_progress_bar=False)
        for proposal in ("encoder", "optimised"):
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="The effective sample size")
                found = sv.diagnostics.evidence(model, proposal=proposal)
            print(f"{name}, {adata.n_obs} cells x {adata.n_vars} genes, {proposal}\n{found}\n", flush=True)
        if name == "pbmc3k":
            sv.pl.evidence(found)[0].figure.savefig(STATIC / "evidence_pbmc3k.png", dpi=110)


if __name__ == "__main__":
    main()
