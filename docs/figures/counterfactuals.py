"""Figures and numbers of docs/analysis/counterfactuals.md.

SCVAE_EXT_DATA=... python docs/figures/counterfactuals.py
"""

import os
from pathlib import Path

import anndata as ad
import matplotlib as mpl

import scvae_ext as sv

mpl.use("agg")
DATA = Path(os.environ["SCVAE_EXT_DATA"])
STATIC = Path(__file__).resolve().parents[1] / "_static"


def main():
    adata = ad.read_h5ad(DATA / "kang_ifnb_muscat1556.h5ad")
    monocytes = adata.obs["cell_type"] == "CD14+ Monocytes"
    left_out = monocytes & (adata.obs["condition"] == "stim")
    adata = adata[~left_out].copy()
    sv.SCVAE.setup_anndata(adata, batch_key="condition")
    model = sv.SCVAE(adata)
    model.train(enable_progress_bar=False)

    control = (adata.obs["condition"] == "ctrl").to_numpy()
    predicted = model.counterfactual({"condition": "stim"}, indices=control, shift_within="cell_type", key_added=None)
    print(predicted)
    effect = model.counterfactual_effect(
        {"condition": "ctrl"}, {"condition": "stim"}, indices=control, groupby="cell_type", shift_within="cell_type"
    )
    print(effect)
    print(effect.to_frame().groupby("group").head(3).to_string())
    sv.pl.counterfactual_effect(effect, n_genes=15, save=STATIC / "counterfactual_effect.png")
    sv.pl.overlap(predicted.overlap, adata.obs["cell_type"][control].astype(str), save=STATIC / "counterfactuals.png")


if __name__ == "__main__":
    main()
