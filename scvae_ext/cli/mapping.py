"""``scvae-ext map``: cells of new batches, mapped onto a saved model."""

import argparse

import anndata as ad

from scvae_ext.cli.files import UserError, replacing
from scvae_ext.cli.inputs import check_tables, class_of_model, one_line, read_h5ad
from scvae_ext.cli.quality import CountModel
from scvae_ext.cli.results import write_results
from scvae_ext.cli.training import train
from scvae_ext.models.mixins import UncertaintyMixin

__all__ = ["map_cells"]

FAR = 0.01


def map_cells(options: argparse.Namespace) -> None:
    """Map the cells of a file onto a saved model; write the AnnData with the results.

    Parameters
    ----------
    options
        Options of the command line.

    Raises
    ------
    UserError
        If a file, a key or a value is not what it has to be.
    """
    if options.labels_key is not None and options.reference is None:
        raise UserError("--labels-key names labels of the cells of --reference FILE.h5ad, which is missing.")
    check_tables(options)
    adata = read_h5ad(options.file)
    reference = None if options.reference is None else read_h5ad(options.reference)
    if reference is not None and options.labels_key not in (None, *reference.obs):
        raise UserError(f"{options.labels_key!r} is no column of obs of --reference ({', '.join(reference.obs)}).")
    with one_line(options):
        model = _model_of(options).load_query_data(adata, options.model, drop_missing_genes=options.drop_missing_genes)
        train(model, options)
    write_results(model, adata, normalized_expression=options.normalized_expression)
    if options.save_model:
        # With the split of the new cells, which a model forgets that is given others.
        model.save(options.save_model, overwrite=options.overwrite)
    if reference is not None and isinstance(model, UncertaintyMixin):
        with one_line(options):
            _beside(model, adata, reference, options.labels_key)
    with replacing(options.out) as temporary:
        adata.write_h5ad(temporary)
    print(f"wrote {' and '.join(str(path) for path in (options.out, options.save_model) if path)}")


def _model_of(options: argparse.Namespace) -> type[CountModel]:
    """Return the class of the saved model."""
    kind = class_of_model(options.model, "cells can be mapped onto")
    if options.reference is not None and not issubclass(kind, UncertaintyMixin):
        raise UserError(f"--reference compares cells by what a {kind.__name__} cannot say; leave it out.")
    return kind


def _beside(model: UncertaintyMixin, adata: ad.AnnData, reference: ad.AnnData, labels_key: str | None) -> None:
    """Ask where among the cells of the reference the new ones lie."""
    model.adata = reference
    if labels_key is not None:
        frame = model.get_cell_uncertainty(adata, labels_key=labels_key)
        adata.obs["scvae_neighbor_label"] = frame["label"].astype("category").to_numpy()
        print(f'labels of their neighbours in {labels_key} of the reference are in obs["scvae_neighbor_label"]')
    novelty = model.get_novelty(adata).to_frame()
    n_far = int((novelty["latent_p"] < FAR).sum())
    print(f"{n_far:,} of {adata.n_obs:,} cells lie where the reference has hardly any (scvae_novelty_latent_p < {FAR})")
