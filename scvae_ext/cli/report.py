"""``scvae-ext report``: everything that can be asked of a trained model, on one page."""

import argparse
import time
from functools import partial

from scvae_ext.cli.files import UserError, check_writable
from scvae_ext.cli.inputs import class_of_model, one_line, read_h5ad
from scvae_ext.cli.quality import CountModel
from scvae_ext.datasets import pbmc68k_reduced
from scvae_ext.diagnostics.report import SECTIONS
from scvae_ext.diagnostics.report import report as write_report
from scvae_ext.models import SCVAE

__all__ = ["report"]


def report(options: argparse.Namespace) -> None:
    """Write the report of a saved model, or of one that is trained on the demo data.

    Parameters
    ----------
    options
        Options of the command line.

    Raises
    ------
    UserError
        If a file or a value is not what it has to be.
    """
    started = time.perf_counter()
    if options.out.suffix != ".html":
        raise UserError(f"--out {options.out} does not end in .html.")
    check_writable(options.out, overwrite=options.overwrite)
    model = _demo_model(options.seed) if options.model is None else _saved_model(options)
    # The options have the names of the sections that train.
    names = [section.name for section in SECTIONS if not section.trains or getattr(options, section.name)]
    tell = partial(print, flush=True)
    write_report(model, options.out, sections=names, overwrite=options.overwrite, seed=options.seed, tell=tell)
    print(f"wrote {options.out} after {time.perf_counter() - started:.0f} s")


def _demo_model(seed: int) -> SCVAE:
    adata = pbmc68k_reduced()
    print(f"{adata.n_obs} peripheral blood mononuclear cells, {adata.n_vars} genes")
    SCVAE.setup_anndata(adata)
    model = SCVAE(adata, seed=seed)
    model.train(seed=seed)
    return model


def _saved_model(options: argparse.Namespace) -> CountModel:
    if options.data is None:
        raise UserError(f"{options.model} needs the counts it was trained on: scvae-ext report MODEL FILE.h5ad.")
    adata = read_h5ad(options.data)
    with one_line(options):
        return class_of_model(options.model, "a report can be written of").load(options.model, adata)
