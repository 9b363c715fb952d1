"""``scvae-ext demo``: the main job on 700 real cells."""

import time
from pathlib import Path

from scvae_ext.cli.files import UserError, check_writable, replacing
from scvae_ext.cli.quality import add_clusters, add_pca, agreement, draw, held_out_elbo
from scvae_ext.datasets import pbmc68k_reduced
from scvae_ext.models import SCVAE

__all__ = ["demo"]


def demo(folder: Path, *, seed: int = 0) -> None:
    """Train on the PBMCs that come with scanpy; write the AnnData and a picture, print how good it is.

    Parameters
    ----------
    folder
        Where ``scvae-ext-demo.h5ad`` and ``scvae-ext-demo.png`` go; made if it is not there.
    seed
        Seed of everything random.

    Raises
    ------
    UserError
        If the folder cannot be made or written to.
    """
    started = time.perf_counter()
    data, figure = folder / "scvae-ext-demo.h5ad", folder / "scvae-ext-demo.png"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {folder}: {error.strerror}. Choose another --out.") from error
    for path in (data, figure):
        check_writable(path, overwrite=True)

    adata = pbmc68k_reduced()
    print(f"{adata.n_obs} peripheral blood mononuclear cells, {adata.n_vars} genes")
    SCVAE.setup_anndata(adata)
    model = SCVAE(adata, seed=seed)
    model.train(seed=seed)
    model.get_latent_representation()
    model.get_normalized_expression()
    print(held_out_elbo(model))

    add_pca(adata, seed)
    scores = {}
    for name, key in {"scVAE latent space": "X_scvae", "PCA": "X_pca"}.items():
        add_clusters(adata, key, seed, "cell_type")
        scores[name] = agreement(adata, "cell_type", f"{key}_leiden")
    draw(adata, ["cell_type"], {"X_scvae_umap": "scVAE latent space", "X_pca_umap": "PCA"}, figure)
    with replacing(data) as temporary:
        adata.write_h5ad(temporary)

    print("Leiden clusters (at the best of 20 resolutions) against the known types:")
    for name, (ari, nmi) in scores.items():
        print(f"  {name:<20} ARI {ari:.2f}   NMI {nmi:.2f}")
    print(f"wrote {data} and {figure} after {time.perf_counter() - started:.0f} s")
