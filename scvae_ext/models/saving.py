"""A model on disk: a folder with its weights (safetensors) and everything else (JSON); nothing is pickled."""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from anndata import AnnData
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

__all__ = ["read_model", "write_model"]

FORMAT = 1
MODEL_FILE = "model.json"
WEIGHTS_FILE = "weights.safetensors"
ADATA_FILE = "adata.h5ad"
DESCRIBED = ("registry", "options", "seed", "is_trained", "history", "split", "cells", "weights")


def write_model(
    path: str | Path,
    description: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    adata: AnnData | None = None,
    *,
    overwrite: bool = False,
) -> None:
    """Write a model under a temporary name beside its own, then rename it.

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
    if path.exists():
        if not overwrite:
            raise FileExistsError(f"{path} exists already: pass overwrite=True to replace it, or another path.")
        if not (path / MODEL_FILE).is_file():
            raise FileExistsError(f"{path} exists and is not a saved model, so it is not replaced: pass another path.")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent) as temporary:
        new = Path(temporary) / "new"
        new.mkdir()
        save_file({name: value.detach().cpu().contiguous() for name, value in weights.items()}, new / WEIGHTS_FILE)
        text = json.dumps({"format": FORMAT, **description}, indent=1, allow_nan=True)
        (new / MODEL_FILE).write_text(text, encoding="utf-8")
        if adata is not None:
            adata.write_h5ad(new / ADATA_FILE)
        old = Path(temporary) / "old"
        if path.exists():
            path.rename(old)
        try:
            new.rename(path)
        except OSError:
            if old.exists():
                old.rename(path)
            raise


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
