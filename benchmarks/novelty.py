"""How well get_novelty finds cells of a type that the model never saw, and doublets.

    python benchmarks/novelty.py [--data FOLDER]

A model is trained without B cells on four fifths of the other cells. The table has the area under the ROC curve of B
cells, and of doublets (sums of two held-out cells of different types), against held-out cells, for each score alone.
Scores that depend on depth are there for comparison. ``pbmc68k_reduced`` comes with scanpy; ``pbmc3k`` is read from
the folder, where it is there.
"""

import argparse
import os
import warnings
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
from sklearn.metrics import roc_auc_score

import scvae_ext as sv

N_GENES = 1000
SCORES = ["elbo", "elbo per count", "elbo_z", "elbo_p", "latent_log_density", "latent_p", "p"]


def variable_genes(adata):
    """Return the genes of largest variance relative to the mean, and cells with counts of them."""
    mean = np.asarray(adata.X.mean(0)).ravel()
    variance = np.asarray(adata.X.multiply(adata.X).mean(0)).ravel() - mean**2
    adata = adata[:, np.sort(np.argsort(-variance / np.maximum(mean, 1e-9))[:N_GENES])].copy()
    return adata[np.asarray(adata.X.sum(1)).ravel() > 0].copy()


def scores(model, adata):
    frame = model.get_novelty(adata).to_frame()
    frame["elbo per count"] = frame["elbo"] / np.asarray(adata.X.sum(1)).ravel()
    return frame[SCORES]


def compare(name, adata, key, novel, seed):
    types = adata.obs[key].astype(str).to_numpy()
    is_novel = types == novel
    rng = np.random.default_rng(seed)
    held = ~is_novel & (rng.random(len(types)) < 0.2)
    rows = np.flatnonzero(held)
    pairs = [(i, j) for i, j in zip(rng.permutation(rows), rng.permutation(rows), strict=True) if types[i] != types[j]]
    first, second = (list(each) for each in zip(*pairs, strict=True))
    doublets = ad.AnnData(sp.csr_matrix(adata.X[first] + adata.X[second]), var=adata.var[[]])
    train = adata[~is_novel & ~held].copy()
    sv.SCVAE.setup_anndata(train)
    model = sv.SCVAE(train, seed=seed)
    model.train(enable_progress_bar=False, accelerator="cpu")
    known = scores(model, adata[held].copy())
    table = pd.DataFrame(index=SCORES)
    for kind, cells in ((novel, adata[is_novel].copy()), ("doublets", doublets)):
        found = scores(model, cells)
        truth = np.repeat([0, 1], [len(known), len(found)])
        table[f"{name}: {kind}"] = [roc_auc_score(truth, -np.r_[known[score], found[score]]) for score in SCORES]
    print(
        f"{name}: {len(train)} training cells, {len(known)} held out, {is_novel.sum()} of {novel!r}, {len(pairs)} "
        f"doublets; held-out cells at 5 %: elbo_p {100 * (known['elbo_p'] <= 0.05).mean():.1f} %, latent_p "
        f"{100 * (known['latent_p'] <= 0.05).mean():.1f} %"
    )
    return table


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("SCVAE_EXT_DATA", "../shared/data")))
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    tables = [compare("pbmc68k_reduced", sv.datasets.pbmc68k_reduced(), "cell_type", "CD19+ B", arguments.seed)]
    path = arguments.data / "pbmc3k.h5ad"
    if path.exists():
        adata = ad.read_h5ad(path)
        adata = adata[(adata.obs["cell_type"].astype(str) != "unlabelled").to_numpy()].copy()
        tables.append(compare("pbmc3k", variable_genes(adata), "cell_type", "B", arguments.seed))
    else:
        print(f"{path} is missing: pbmc3k is left out.")
    print(pd.concat(tables, axis=1).round(3).to_string())


if __name__ == "__main__":
    main()
