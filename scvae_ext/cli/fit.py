"""``scvae-ext fit``: the main job on a user's file."""

import argparse
from collections.abc import Sequence

import anndata as ad
from matplotlib.backend_bases import FigureCanvasBase

from scvae_ext.cli.files import UserError, check_distinct, check_writable, replacing
from scvae_ext.cli.inputs import check_tables, one_line, read_h5ad
from scvae_ext.cli.quality import FEWEST_CELLS, CountModel, add_clusters, agreement, draw
from scvae_ext.cli.results import write_results
from scvae_ext.cli.training import train
from scvae_ext.models import SCVAE, CiteVAE, MultiomeVAE, SemiSupervisedVAE

__all__ = ["fit"]


def fit(options: argparse.Namespace) -> None:
    """Train on the counts in a file; write the AnnData with the results, and a picture where asked.

    Parameters
    ----------
    options
        Options of the command line.

    Raises
    ------
    UserError
        If a file, a key or a value is not what it has to be.
    """
    _check_model(options)
    colors = _check_outputs(options)
    adata = read_h5ad(options.file)
    if unknown := [key for key in colors if key not in adata.obs and key not in adata.var_names]:
        raise UserError(f"{unknown[0]!r} is neither a column of obs ({list(adata.obs)}) nor a gene; change --color.")
    if options.figure and adata.n_obs < FEWEST_CELLS:
        raise UserError(f"--figure needs {FEWEST_CELLS} cells, and {options.file} holds {adata.n_obs}; leave it out.")
    with one_line(options):
        model = _model(adata, options)
        train(model, options)
    write_results(model, adata, normalized_expression=options.normalized_expression)

    if options.figure or (options.labels_key and not options.predict_labels):
        _clusters(adata, options, colors)
    with replacing(options.out) as temporary:
        adata.write_h5ad(temporary)
    if options.save_model:
        model.save(options.save_model, overwrite=options.overwrite)
    written = [str(path) for path in (options.out, options.figure, options.save_model) if path]
    print(f"wrote {' and '.join(written)}")


def _model(adata: ad.AnnData, options: argparse.Namespace) -> CountModel:
    """Set up the file, and build the model of its genes, with proteins, peaks or labels where they are named."""
    keys = {
        name: getattr(options, name)
        for name in (
            "layer",
            "batch_key",
            "labels_key",
            "size_factor_key",
            "categorical_covariate_keys",
            "continuous_covariate_keys",
        )
    }
    chosen = {name: getattr(options, name) for name in ("gene_likelihood", "seed")}
    if options.n_latent is not None:
        chosen["n_latent"] = options.n_latent
    if options.protein_key is not None:
        CiteVAE.setup_anndata(adata, **keys, protein_expression_obsm_key=options.protein_key)
        return CiteVAE(adata, **chosen)
    if options.accessibility_key is not None:
        peaks = {
            "accessibility_obsm_key": options.accessibility_key,
            "peak_names_uns_key": options.peak_names_key,
        }
        MultiomeVAE.setup_anndata(adata, **keys, **peaks)
        return MultiomeVAE(adata, **chosen)
    if options.predict_labels:
        SemiSupervisedVAE.setup_anndata(adata, **keys, unlabeled_category=options.unlabeled_category)
        return SemiSupervisedVAE(adata, **chosen)
    SCVAE.setup_anndata(adata, **keys)
    return SCVAE(adata, **chosen)


def _check_model(options: argparse.Namespace) -> None:
    """Refuse options that do not go together."""
    kinds = {
        "--protein-key": options.protein_key,
        "--accessibility-key": options.accessibility_key,
        "--predict-labels": options.predict_labels or None,
    }
    named = [option for option, value in kinds.items() if value is not None]
    if len(named) > 1:
        raise UserError(f"{' and '.join(named)} ask for different models; give one of them.")
    if options.predict_labels and options.labels_key is None:
        raise UserError("--predict-labels needs --labels-key KEY, the column with the labels that are known.")
    if options.peak_names_key is not None and options.accessibility_key is None:
        raise UserError("--peak-names-key names the peaks of --accessibility-key, which is missing.")


def _check_outputs(options: argparse.Namespace) -> list[str]:
    """Return what colours the figure."""
    check_tables(options)
    if options.figure is None:
        if options.color:
            raise UserError("--color is for the figure; add --figure FILE.png.")
        return []
    check_distinct({"--out": options.out, "--save-model": options.save_model, "--figure": options.figure})
    check_writable(options.figure, overwrite=options.overwrite)
    if options.figure.suffix.removeprefix(".") not in FigureCanvasBase.get_supported_filetypes():
        raise UserError(f"--figure {options.figure} has no known suffix; use .png, .pdf or .svg.")
    colors = options.color or [key for key in (options.labels_key, options.batch_key) if key]
    if not colors:
        raise UserError("--figure needs --color KEY where neither --labels-key nor --batch-key is given.")
    return colors


def _clusters(adata: ad.AnnData, options: argparse.Namespace, colors: Sequence[str]) -> None:
    # Labels that the model learned from are no check of its clusters.
    known = None if options.predict_labels else options.labels_key
    if adata.n_obs < FEWEST_CELLS:
        print(f"{adata.n_obs} cells are too few for clusters to compare with {known}")
        return
    add_clusters(adata, "X_scvae", options.seed, known)
    if known:
        ari, nmi = agreement(adata, known, "X_scvae_leiden")
        where = f"Leiden clusters (at the best of 20 resolutions) against {known}"
        print(f"{where}: ARI {ari:.2f}, NMI {nmi:.2f}")
    if options.figure:
        draw(adata, colors, {"X_scvae_umap": "scVAE latent space"}, options.figure)
