"""AnnData files in and out, and what goes wrong with them, as users of a command see it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anndata as ad

from scvae_ext.cli.files import UserError, check_distinct, check_writable
from scvae_ext.models.saving import check_folder
from scvae_ext.train import TrainingDivergedError

__all__ = ["check_tables", "one_line", "read_h5ad"]


@contextmanager
def one_line() -> Iterator[None]:
    """Show what validation or training say about the data and the options as one line."""
    try:
        yield
    except (TypeError, ValueError, FileExistsError, FileNotFoundError, TrainingDivergedError) as error:
        raise UserError(str(error)) from error


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


def check_tables(out: Path, model: Path | None, *, overwrite: bool) -> None:
    """Raise where the AnnData with the results, or the folder of the model, could not be written.

    Parameters
    ----------
    out, model
        File and folder to be written.
    overwrite
        Whether they may exist.

    Raises
    ------
    UserError
        If they exist and may not, are something else, or are the same.
    """
    check_distinct({"--out": out, "--save-model": model})
    if out.suffix != ".h5ad":
        raise UserError(f"--out {out} does not end in .h5ad.")
    check_writable(out, overwrite=overwrite)
    if model is not None and model.exists():
        if not overwrite:
            raise UserError(f"{model} exists; add --overwrite to replace it.")
        with one_line():
            check_folder(model, overwrite=True)
