"""The one JSON string in ``adata.uns["scvae_ext"]``: the set-up, and where each result came from."""

import json
from typing import Any

import numpy as np
from anndata import AnnData

from scvae_ext.data.registry import FORMAT, Registry

__all__ = ["UNS_KEY", "make_actual", "read_registry", "read_uns", "record_result", "write_registry"]

UNS_KEY = "scvae_ext"
"""Key in ``adata.uns``."""


def make_actual(adata: AnnData) -> None:
    """Turn a view into an AnnData of its own, in place, so that it can be written to.

    Parameters
    ----------
    adata
        Anything that is not a view stays as it is.

    Raises
    ------
    ValueError
        If it is a view of a backed AnnData, which only a new file can hold.
    """
    if not adata.is_view:
        return
    if adata.isbacked:
        raise ValueError(
            "adata is a view of a backed AnnData, which cannot be written to. "
            "Load it, adata = adata.to_memory(), or write it to a file of its own, adata = adata.copy('FILE.h5ad')."
        )
    adata._init_as_actual(adata.copy())


def read_uns(adata: AnnData) -> dict[str, Any]:
    """Return what stands in ``adata.uns["scvae_ext"]``.

    Parameters
    ----------
    adata
        Where to read.

    Returns
    -------
    dict
        ``"format"``, ``"setup"`` (the registry as plain values, or ``None``) and ``"results"`` (an entry for each
        slot that a model wrote). An AnnData without any gets an empty one.

    Raises
    ------
    ValueError
        If it was not written by this package, or in another format.
    """
    text = adata.uns.get(UNS_KEY)
    if text is None:
        return {"format": FORMAT, "setup": None, "results": {}}
    try:
        content = json.loads(text)
    except (TypeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"adata.uns[{UNS_KEY!r}] is not what scvae_ext writes ({error}). Remove it, del adata.uns[{UNS_KEY!r}], "
            "and run setup_anndata again."
        ) from error
    version = content.get("format") if isinstance(content, dict) else None
    if version != FORMAT:
        raise ValueError(
            f"adata.uns[{UNS_KEY!r}] was written in format {version!r}, but this release of scvae_ext reads "
            f"format {FORMAT}. Remove it, del adata.uns[{UNS_KEY!r}], and run setup_anndata again."
        )
    return {"format": FORMAT, "setup": content.get("setup"), "results": content.get("results", {})}


def read_registry(adata: AnnData) -> Registry:
    """Return the registry that ``setup_anndata`` wrote.

    Parameters
    ----------
    adata
        Where to read.

    Raises
    ------
    ValueError
        If there is none.
    """
    setup = read_uns(adata)["setup"]
    if setup is None:
        raise ValueError(
            "adata has not been set up. Call setup_anndata(adata, ...) of the model's class first; "
            "anndata.concat and a new AnnData do not keep what an earlier call wrote."
        )
    return Registry.from_dict(setup)


def write_registry(adata: AnnData, registry: Registry) -> None:
    """Write a registry in place of the one before; recorded results stay.

    Parameters
    ----------
    adata
        Where to write.
    registry
        What to write.
    """
    _write(adata, read_uns(adata) | {"setup": registry.to_dict()})


def record_result(adata: AnnData, slot: str, entry: dict[str, Any]) -> None:
    """Record where the content of a slot came from.

    Parameters
    ----------
    adata
        Where to write.
    slot
        The slot, ``'obsm["X_scvae"]'`` for example. An earlier entry for it is replaced.
    entry
        What JSON can hold, and NumPy numbers and arrays.

    Raises
    ------
    ValueError
        If a number is not finite.
    """
    content = read_uns(adata)
    content["results"] = content["results"] | {slot: entry}
    _write(adata, content)


def _write(adata: AnnData, content: dict[str, Any]) -> None:
    text = json.dumps(content, default=_plain, allow_nan=False)
    make_actual(adata)
    adata.uns[UNS_KEY] = text


def _plain(value: object) -> Any:
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise TypeError(f"JSON cannot hold {value!r} of type {type(value).__qualname__} in a result's provenance.")
