"""Figure and numbers of docs/analysis/denoising.md.

SCVAE_EXT_DATA=... python docs/figures/denoising.py
"""

import os
from pathlib import Path

import anndata as ad
import matplotlib as mpl

import scvae_ext as sv

mpl.use("agg")
DATA = Path(os.environ["SCVAE_EXT_DATA"])
STATIC = Path(__file__).resolve().parents[1] / "_static"


def coverage():
    """Return how often intervals hold the truth, on counts whose expression is known."""
    adata = sv.datasets.synthetic_counts(1000, 300, seed=0)
    sv.SCVAE.setup_anndata(adata)
    model = sv.SCVAE(adata)
    model.train(enable_progress_bar=False)
    print(model.calibrate_intervals())
    truth = adata.layers["expression"]
    for level in (0.5, 0.8, 0.9, 0.95):
        found = model.get_normalized_expression(interval=level, key_added=None)
        print(level, ((truth >= found.lower) & (truth <= found.upper)).mean().round(3))


def main():
    adata = ad.read_h5ad(DATA / "kang_ifnb_muscat1556.h5ad")
    sv.SCVAE.setup_anndata(adata, batch_key="condition")
    model = sv.SCVAE(adata)
    model.train(enable_progress_bar=False)
    print(model.calibrate_intervals())
    control = (adata.obs["condition"] == "ctrl").to_numpy()
    genes = ["CD74", "NKG7", "FTL"]
    intervals = model.get_normalized_expression(indices=control, gene_list=genes, interval=0.9)
    print(intervals)
    sv.pl.expression_intervals(
        intervals, genes, adata.obs["cell_type"][control].astype(str), save=STATIC / "denoising.png"
    )
    coverage()


if __name__ == "__main__":
    main()
