"""A model on disk: a folder with its weights (safetensors) and everything else (JSON); nothing is pickled."""

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from anndata import AnnData
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from scvae_ext.data.fields import in_pandas

__all__ = ["check_folder", "read_model", "write_model"]

FORMAT = 1
MODEL_FILE = "model.json"
WEIGHTS_FILE = "weights.safetensors"
ADATA_FILE = "adata.h5ad"
DESCRIBED = ("registry", "options", "seed", "is_trained", "history", "split", "cells", "weights")


def check_folder(path: Path, *, overwrite: bool) -> None:
    """Raise where a model may not be written.

    Parameters
    ----------
    path
        The folder.
    overwrite
        Whether a model that is there may be replaced.

    Raises
    ------
    FileExistsError
        If something is there already that may not be replaced, or that is not a model.
    """
    if not path.exists():
        return
    if not overwrite:
        raise FileExistsError(f"{path} exists already: pass overwrite=True to replace it, or another path.")
    if not (path / MODEL_FILE).is_file():
        raise FileExistsError(f"{path} exists and is not a saved model, so it is not replaced: pass another path.")


def write_model(
    path: str | Path,
    description: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    adata: AnnData | None = None,
    *,
    overwrite: bool = False,
) -> None:
    """Write a model under a temporary name beside its own, then rename it.

    What else lies in the folder of a model that is replaced stays there. So does the AnnData that was saved with it,
    where none takes its place and the new model is of the same cells and genes.

    Parameters
    ----------
    path
        The folder.
    description
        Everything but the weights, as JSON can hold it.
    weights
        State of the module.
    adata
        AnnData to write beside the model, or ``None``.
    overwrite
        Whether an existing model may be replaced.

    Raises
    ------
    FileExistsError
        If something is there already that may not be replaced, or that is not a model.
    """
    path = Path(path)
    check_folder(path, overwrite=overwrite)
    # A link stays one, and leads to the new model.
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent) as temporary:
        new = Path(temporary) / "new"
        new.mkdir()
        save_file({name: value.detach().cpu().contiguous() for name, value in weights.items()}, new / WEIGHTS_FILE)
        text = json.dumps({"format": FORMAT, **description}, indent=1, allow_nan=True)
        (new / MODEL_FILE).write_text(text, encoding="utf-8")
        if adata is not None:
            _detached(adata).write_h5ad(new / ADATA_FILE)
        old = Path(temporary) / "old"
        if path.exists():
            _keep_others(path, new, with_anndata=adata is None and _same_data(path, description))
        try:
            if path.exists():
                path.rename(old)
            new.rename(path)
        except BaseException:
            if old.exists() and not path.exists():
                old.rename(path)
            raise


def _detached(adata: AnnData) -> AnnData:
    """Return what anndata can write as it is, without opening a backed AnnData anew or reading a lazy one whole."""
    if not adata.isbacked and isinstance(adata.obs, pd.DataFrame):
        return adata
    raw = adata.raw
    return AnnData(
        adata.X,
        obs=in_pandas(adata.obs),
        var=in_pandas(adata.var),
        uns=dict(adata.uns),
        raw=None if raw is None else {"X": raw.X, "var": in_pandas(raw.var), "varm": _in_pandas(raw.varm)},
        **{slot: _in_pandas(getattr(adata, slot)) for slot in ("layers", "obsm", "varm", "obsp", "varp")},
    )


def _in_pandas(slot: Mapping[Any, Any]) -> dict[str, Any]:
    """Return the matrices of a slot, data frames of a lazy AnnData in memory."""
    return {
        name: in_pandas(value) if hasattr(value, "to_memory") and hasattr(value, "columns") else value
        for name, value in slot.items()
        # From anndata 0.13 on, None among the layers stands for X.
        if name is not None
    }


def _keep_others(path: Path, new: Path, *, with_anndata: bool) -> None:
    """Put what is not part of a model into the folder that will replace it, so that the two change places at once."""
    ours = {MODEL_FILE, WEIGHTS_FILE} | (set() if with_anndata else {ADATA_FILE})

    def left_out(folder: str, names: list[str]) -> set[str]:
        return ours.intersection(names) if Path(folder) == path else set()

    shutil.copytree(path, new, symlinks=True, ignore=left_out, copy_function=_link, dirs_exist_ok=True)


def _link(source: str, target: str) -> None:
    """Give a file a second name, or copy it where the file system has no such names."""
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        shutil.copy2(source, target, follow_symlinks=False)


def _same_data(path: Path, description: Mapping[str, Any]) -> bool:
    """Return whether the model in a folder is of the cells and genes of another one."""
    try:
        old = json.loads((path / MODEL_FILE).read_text(encoding="utf-8"))
        known = old["cells"], old["registry"]["var_names"]
    except (ValueError, KeyError, TypeError):
        # What cannot be told is not thrown away.
        return True
    return known == (description["cells"], list(description["registry"]["var_names"]))


def read_model(path: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read what :func:`write_model` wrote.

    Parameters
    ----------
    path
        The folder.

    Returns
    -------
    tuple
        Description and weights.

    Raises
    ------
    FileNotFoundError
        If there is no model.
    ValueError
        If a file is truncated, or was not written by this package or by a later release.
    """
    path = Path(path)
    for name in (MODEL_FILE, WEIGHTS_FILE):
        if not (path / name).is_file():
            raise FileNotFoundError(
                f"{path} is not a saved model: it holds no {name}. Pass the folder given to save()."
            )
    try:
        description = json.loads((path / MODEL_FILE).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path / MODEL_FILE} is truncated or not a model's description: {error}.") from error
    if not isinstance(description, dict) or not {"model_class", *DESCRIBED} <= description.keys():
        raise ValueError(f"{path / MODEL_FILE} was not written by scvae_ext, or is damaged.")
    if description.get("format") != FORMAT:
        raise ValueError(
            f"{path} has format {description.get('format')!r}, but this release reads format {FORMAT}: "
            f"load it with scvae-ext {description.get('version', 'of a later release')}."
        )
    try:
        weights = load_file(path / WEIGHTS_FILE)
    except SafetensorError as error:
        raise ValueError(f"{path / WEIGHTS_FILE} is truncated or not a file of weights: {error}.") from error
    return description, weights
