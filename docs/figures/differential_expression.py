"""Draw docs/_static/differential_expression.png: B cells of pbmc3k against all others, and two random halves.

The folder of the data is taken from the environment variable SCVAE_EXT_DATA.
"""

import os
import time
from pathlib import Path

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import scanpy as sc

import scvae_ext as sv

OUT = Path(__file__).parent.parent / "_static" / "differential_expression.png"


def main() -> None:
    """Train once, compare twice."""
    adata = ad.read_h5ad(Path(os.environ["SCVAE_EXT_DATA"]) / "pbmc3k.h5ad")
    normalised = adata.copy()
    sc.pp.normalize_total(normalised, target_sum=1e4)
    sc.pp.log1p(normalised)
    sc.pp.highly_variable_genes(normalised, n_top_genes=2000)
    everything = adata
    adata = adata[:, normalised.var["highly_variable"].to_numpy()].copy()
    sv.SCVAE.setup_anndata(adata)
    model = sv.SCVAE(adata)
    model.train(accelerator="cpu", enable_progress_bar=False)
    table = model.differential_expression(groupby="cell_type")
    print(table.groupby("group1", observed=True)["is_de_fdr_0.05"].sum())
    print(table[table["group1"] == "B"].head(8)[["lfc_mean", "lfc_std", "raw_mean1", "raw_mean2"]].round(2))
    print(sc.get.rank_genes_groups_df(adata, "B").head(6))
    monocytes = np.flatnonzero(adata.obs["cell_type"] == "CD14+ Mono")
    one = np.random.default_rng(0).permutation(monocytes)[: len(monocytes) // 2]
    halves = model.differential_expression(idx1=one, idx2=np.setdiff1d(monocytes, one), key_added=None)
    print("flagged between random halves of monocytes:", int(halves["is_de_fdr_0.05"].sum()))
    start = time.perf_counter()
    wide = model.differential_expression(everything, groupby="cell_type", group1="B", layer="X", key_added=None)
    outside = wide[~wide.index.isin(adata.var_names)]
    print(f"{len(outside)} other genes, {outside['is_de_fdr_0.05'].sum()} flagged, {time.perf_counter() - start:.1f} s")
    print(outside.sort_values("lfc_mean", ascending=False).query("proba_de > 0.999").head(8)[["lfc_mean", "lfc_std"]])
    axes = sv.pl.volcano(table, "B")
    axes.figure.savefig(OUT, dpi=110)
    plt.close(axes.figure)


if __name__ == "__main__":
    main()
