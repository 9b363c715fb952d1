"""How good a model is: its held-out ELBO, and how well Leiden clusters and a UMAP of its latent space show groups."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import scanpy as sc
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from scvae_ext.cli.files import replacing
from scvae_ext.models import SCVAE, CiteVAE, MultiomeVAE, SemiSupervisedVAE
from scvae_ext.pl import embedding_comparison

__all__ = ["FEWEST_CELLS", "CountModel", "add_clusters", "add_pca", "agreement", "draw", "held_out_elbo"]

CountModel: TypeAlias = SCVAE | CiteVAE | MultiomeVAE | SemiSupervisedVAE


def held_out_elbo(model: CountModel) -> str:
    """Return a line that tells the ELBO of the cells that the model was not trained on.

    Parameters
    ----------
    model
        Trained model.
    """
    elbo = np.asarray(model.get_elbo(indices=model.validation_indices, return_mean=False))
    return f"held-out ELBO: {elbo.mean():.1f} nats per cell ({len(elbo)} cells)"


def add_pca(adata: ad.AnnData, seed: int) -> None:
    """Write principal components of log-normalised counts to ``obsm["X_pca"]``.

    Parameters
    ----------
    adata
        Counts in ``X``.
    seed
        Seed of the solver.
    """
    scratch = ad.AnnData(adata.X.copy())
    sc.pp.normalize_total(scratch)
    sc.pp.log1p(scratch)
    sc.pp.pca(scratch, random_state=seed)
    adata.obsm["X_pca"] = scratch.obsm["X_pca"]


FEWEST_CELLS = 4
"""Cells that a UMAP needs, which starts from three eigenvectors of their graph."""
RESOLUTIONS = np.arange(1, 21) / 10
"""Resolutions of Leiden clustering that are tried where groups are known."""


def add_clusters(adata: ad.AnnData, key: str, seed: int, known: str | None = None) -> None:
    """Write Leiden clusters to ``obs[f"{key}_leiden"]`` and a UMAP to ``obsm[f"{key}_umap"]``.

    How many clusters there are is a matter of the resolution. Where groups are known, the clusters are those of the
    resolution, among 0.1, 0.2, ..., 2.0, that share the most information with them, as is usual in benchmarks of
    integration (Luecken et al., Nature Methods 2022); otherwise those of resolution one.

    Parameters
    ----------
    adata
        Annotated data of at least :data:`FEWEST_CELLS` cells.
    key
        Key of ``obsm`` with the representation.
    seed
        Seed of all steps.
    known
        Column of ``obs`` with known groups.
    """
    scratch = ad.AnnData(obsm={key: adata.obsm[key]})
    sc.pp.neighbors(scratch, use_rep=key, random_state=seed)
    best = -1.0
    for resolution in (1.0,) if known is None else RESOLUTIONS:
        sc.tl.leiden(
            scratch, resolution, flavor="igraph", n_iterations=2, directed=False, random_state=seed, key_added="found"
        )
        if known is not None:
            scratch.obs["known"] = adata.obs[known].to_numpy()
        shared = 0.0 if known is None else agreement(scratch, "known", "found")[1]
        if shared > best:
            best = shared
            adata.obs[f"{key}_leiden"] = scratch.obs["found"].to_numpy()
    sc.tl.umap(scratch, random_state=seed)
    adata.obsm[f"{key}_umap"] = scratch.obsm["X_umap"]


def agreement(adata: ad.AnnData, known: str, found: str) -> tuple[float, float]:
    """Return the adjusted Rand index and the normalised mutual information of two groupings.

    Parameters
    ----------
    adata
        Annotated data.
    known, found
        Columns of ``obs``. Cells without a known group are left out.
    """
    pairs = adata.obs[[known, found]].dropna()
    groups = pairs[known].astype(str), pairs[found].astype(str)
    return float(adjusted_rand_score(*groups)), float(normalized_mutual_info_score(*groups))


def draw(adata: ad.AnnData, colors: Sequence[str], titles: Mapping[str, str], path: Path) -> None:
    """Write a figure of embeddings.

    Parameters
    ----------
    adata
        Annotated data.
    colors
        Columns of ``obs`` or genes, one row of panels each.
    titles
        Title of each key of ``obsm``, one column of panels each.
    path
        File to write.
    """
    with replacing(path) as temporary:
        panels = embedding_comparison(adata, colors, bases=list(titles), titles=list(titles.values()), save=temporary)
    plt.close(panels[0].get_figure(root=True))
