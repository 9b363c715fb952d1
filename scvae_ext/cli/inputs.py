"""AnnData files in and out, and what goes wrong with them, as users of a command see it."""

from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import get_args

import anndata as ad

from scvae_ext.cli.files import UserError, check_distinct, check_writable
from scvae_ext.cli.quality import CountModel
from scvae_ext.cli.words import in_options
from scvae_ext.models.saving import check_folder, read_model
from scvae_ext.train import TrainingDivergedError

__all__ = ["check_tables", "class_of_model", "one_line", "read_h5ad"]


@contextmanager
def one_line(options: Namespace) -> Iterator[None]:
    """Show what validation or training say about the data and the options as one line, in the words of the command.

    Parameters
    ----------
    options
        Options of the command line.
    """
    try:
        yield
    except (TypeError, ValueError, FileExistsError, FileNotFoundError, TrainingDivergedError) as error:
        raise UserError(in_options(str(error), options)) from error


def read_h5ad(path: Path) -> ad.AnnData:
    """Read an AnnData.

    Parameters
    ----------
    path
        The file.

    Raises
    ------
    UserError
        If there is none, or it cannot be read.
    """
    if not path.is_file():
        raise UserError(f"{path} is not a file.")
    try:
        return ad.read_h5ad(path)
    except Exception as error:  # h5py and anndata raise many kinds of errors for a file that is not theirs
        raise UserError(f"{path} cannot be read as .h5ad: {error}") from error


def class_of_model(folder: Path, purpose: str) -> type[CountModel]:
    """Return the class of a saved model.

    Parameters
    ----------
    folder
        Where it was saved.
    purpose
        What only models of counts can be used for, to end the message: ``"cells can be mapped onto"``.

    Raises
    ------
    UserError
        If it is a model of another kind.
    """
    name = read_model(folder)[0]["model_class"]
    known: dict[str, type[CountModel]] = {kind.__name__: kind for kind in get_args(CountModel)}
    if name not in known:
        raise UserError(f"{folder} holds a model of the class {name}, and {purpose} {', '.join(known)} alone.")
    return known[name]


def check_tables(options: Namespace) -> None:
    """Raise where the AnnData with the results, or the folder of the model, could not be written.

    Parameters
    ----------
    options
        Options of the command line: ``out`` and ``save_model`` are to be written, ``overwrite`` whether they may exist.

    Raises
    ------
    UserError
        If they exist and may not, are something else, or are the same.
    """
    out, model = options.out, options.save_model
    check_distinct({"--out": out, "--save-model": model})
    if out.suffix != ".h5ad":
        raise UserError(f"--out {out} does not end in .h5ad.")
    check_writable(out, overwrite=options.overwrite)
    if model is not None and model.exists():
        if not options.overwrite:
            raise UserError(f"{model} exists; add --overwrite to replace it.")
        with one_line(options):
            check_folder(model, overwrite=True)
