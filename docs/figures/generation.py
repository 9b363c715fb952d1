"""Figure of docs/analysis/generation.md.

SCVAE_EXT_DATA=... python docs/figures/generation.py
"""

import os
from pathlib import Path

import anndata as ad
import matplotlib as mpl
import numpy as np

import scvae_ext as sv

mpl.use("agg")
DATA = Path(os.environ["SCVAE_EXT_DATA"])
STATIC = Path(__file__).resolve().parents[1] / "_static"


def main():
    adata = ad.read_h5ad(DATA / "pbmc_3tech_1767genes.h5ad")
    order = np.random.default_rng(0).permutation(adata.n_obs)
    n_held_out = adata.n_obs // 3
    train, held_out = (adata[np.sort(of)].copy() for of in (order[n_held_out:], order[:n_held_out]))
    others = adata[np.sort(order[n_held_out : 2 * n_held_out])]
    sv.SCVAE.setup_anndata(train, batch_key="batch")
    model = sv.SCVAE(train)
    model.train(enable_progress_bar=False)
    for like in ("cells", "prior"):
        generated = model.generate(n_held_out, like=like)
        test = sv.diagnostics.two_sample_test(held_out, generated, reference=others)
        print(f"like={like!r}", test, sep="\n")
        sv.pl.two_sample_test(test, save=STATIC / f"generation_{like}.png")


if __name__ == "__main__":
    main()
