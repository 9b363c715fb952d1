"""Writing results into an AnnData, each with a record of where it came from."""

import hashlib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal

import numpy as np
import pandas as pd
from anndata import AnnData
from anndata.compat import DaskArray
from jaxtyping import Float, Int
from torch import Tensor, nn

from scvae_ext.data import CellSource, Registry, make_actual, record_result
from scvae_ext.data.changes import checksum
from scvae_ext.data.fields import in_pandas
from scvae_ext.data.proteins import read_proteins
from scvae_ext.data.provenance import UNS_KEY

__all__ = [
    "cells_hash",
    "expression_slot",
    "fingerprint",
    "names_hash",
    "record",
    "require_free",
    "require_key",
    "require_names",
    "weights_hash",
    "write_gene_pairs",
    "write_gene_result",
    "write_result",
]


def require_free(registry: Registry, slot: str, key: str | None, suffixes: Sequence[str] = ("",)) -> None:
    """Raise where a result would take the place of what a model reads.

    Parameters
    ----------
    registry
        What the model reads.
    slot, key
        Where the result goes; nowhere if the key is ``None``.
    suffixes
        What is appended to the key, where several results are written.

    Raises
    ------
    ValueError
        If the key is no name that can be written, or is that of what the model reads.
    """
    if key is None:
        return
    require_key(key)
    taken = (*registry.keys_read(slot), *([UNS_KEY] if slot == "uns" else []))
    for of_result in (f"{key}{suffix}" for suffix in suffixes):
        if of_result in taken:
            raise ValueError(
                f"key_added={key!r} would replace adata.{slot}[{of_result!r}], which the model reads: name another "
                "key, or pass key_added=None to write nothing."
            )


def require_key(key: object) -> None:
    """Raise where a result could not be written under a key, or not be read from a file.

    Parameters
    ----------
    key
        The key.

    Raises
    ------
    ValueError
        If it is not a name, or has a slash in it, which stands for a folder in files.
    """
    if not isinstance(key, str) or not key:
        raise ValueError(f"key_added={key!r} must be a name, or None to write nothing.")
    if "/" in key:
        raise ValueError(
            f"key_added={key!r} has a slash in it, with which anndata cannot read a file again: "
            f"pass {key.replace('/', '_')!r} for example."
        )


def expression_slot(adata: AnnData, genes: Sequence[str]) -> Literal["layers", "obsm"]:
    """Return where expression is written: into a layer if it is of the genes of the AnnData, in any order.

    Parameters
    ----------
    adata
        The AnnData.
    genes
        Names of the genes whose expression it is.
    """
    order = pd.Index(genes).get_indexer(adata.var_names)
    return "layers" if len(order) == len(genes) and (order >= 0).all() else "obsm"


def write_result(
    adata: AnnData,
    slot: Literal["obsm", "layers", "obs"],
    key: str,
    values: Float[np.ndarray, "chosen ..."] | Int[np.ndarray, "chosen"] | DaskArray,
    positions: Int[np.ndarray, "chosen"],
    provenance: Mapping[str, Any],
    columns: Sequence[str] | None = None,
    categories: Sequence[str] | None = None,
) -> None:
    """Write one value, row or matrix for each cell; cells that were not asked for get NaN.

    Parameters
    ----------
    adata
        Where to write.
    slot, key
        Where in it.
    values
        Rows in the order of ``positions``; a Dask array of all cells is written as it is.
    positions
        Cells that the rows belong to.
    provenance
        What to record beside the time.
    columns
        Names of the columns, to write a data frame.
    categories
        Names of the categories that the values are positions of, to write a categorical.

    Raises
    ------
    ValueError
        If a cell was asked for twice, so that its row is ambiguous, or a column has no name.
    """
    require_names(columns or (), f"a column of adata.{slot}[{key!r}]")
    if not np.array_equal(positions, np.arange(adata.n_obs)):
        if len(np.unique(positions)) < len(positions):
            raise ValueError("Some cells were asked for more than once: pass key_added=None to write nothing.")
        nothing = np.nan if categories is None else -1
        full = np.full((adata.n_obs, *values.shape[1:]), nothing, dtype=values.dtype)
        full[positions] = values
        values = full
    make_actual(adata)
    content: Any = values
    if columns is not None:
        content = pd.DataFrame(np.asarray(values), index=adata.obs_names, columns=list(columns))
    elif categories is not None:
        content = pd.Categorical.from_codes(values, categories=pd.Index(categories))
    getattr(adata, slot)[key] = content
    record(adata, f'{slot}["{key}"]', provenance)


def write_gene_result(adata: AnnData, key: str, values: pd.DataFrame, provenance: Mapping[str, Any]) -> None:
    """Write some values for each gene into ``varm``; genes that the model does not have get NaN.

    Parameters
    ----------
    adata
        Where to write.
    key
        Where in it.
    values
        A row for each of the model's genes, under its name.
    provenance
        What to record beside the time.

    Raises
    ------
    ValueError
        If the key is not a name.
    """
    require_key(key)
    make_actual(adata)
    adata.varm[key] = values.reindex(adata.var_names).to_numpy(dtype=np.float32)
    record(adata, f'varm["{key}"]', provenance)


def write_gene_pairs(adata: AnnData, key: str, values: pd.DataFrame, provenance: Mapping[str, Any]) -> None:
    """Write a value for each pair of genes into ``varp``; genes that the model does not have get NaN.

    Parameters
    ----------
    adata
        Where to write.
    key
        Where in it.
    values
        Genes by genes, under their names.
    provenance
        What to record beside the time.

    Raises
    ------
    ValueError
        If the key is not a name.
    """
    require_key(key)
    make_actual(adata)
    adata.varp[key] = values.reindex(index=adata.var_names, columns=adata.var_names).to_numpy()
    record(adata, f'varp["{key}"]', provenance)


def record(adata: AnnData, where: str, provenance: Mapping[str, Any]) -> None:
    """Record where a result came from, and when it was written.

    Parameters
    ----------
    adata
        Where it was written.
    where
        The slot, as a user writes it.
    provenance
        What to record beside the time.
    """
    record_result(adata, where, {**provenance, "written": datetime.now(UTC).isoformat(timespec="seconds")})


def require_names(names: Sequence[str], what: str) -> None:
    """Raise if a name of what is to be written is empty: the AnnData could not be written to a file any more.

    Parameters
    ----------
    names
        The names.
    what
        What one of them names, for the message.

    Raises
    ------
    ValueError
        If one is empty.
    """
    if "" in names:
        raise ValueError(
            f"The name of {what} would be empty, '', with which no file can be written: rename it, to 'unknown' for "
            "example, or pass key_added=None to write nothing."
        )


def names_hash(names: pd.Index) -> str:
    """Return a fingerprint of names and their order.

    Parameters
    ----------
    names
        Names of cells or genes.
    """
    digest = hashlib.sha256(pd.util.hash_array(names.astype(str).to_numpy(dtype=object)).tobytes())
    return digest.hexdigest()[:16]


def cells_hash(source: CellSource) -> str:
    """Return a fingerprint of cells and their order: names, totals of counts, batches, labels and covariates.

    Parameters
    ----------
    source
        The cells.
    """
    digest = hashlib.sha256(names_hash(source.obs_names).encode())
    digest.update(source.facts.total_per_cell.tobytes())
    digest.update(source.facts.total_per_gene.tobytes())
    for name, values in source.covariates(np.arange(source.n_cells)).items():
        if isinstance(values, Tensor):
            digest.update(name.encode() + values.numpy().tobytes())
    return digest.hexdigest()[:16]


def fingerprint(adata: AnnData, registry: Registry) -> tuple[object, ...]:
    """Return what changes when someone filters, sorts or relabels an AnnData in place; counts are looked at elsewhere.

    Parameters
    ----------
    adata
        The AnnData.
    registry
        Which of its columns matter.
    """
    columns = in_pandas(adata.obs, [key for key in registry.keys_read("obs") if key in adata.obs.columns])
    content = hashlib.sha256(
        b"".join(pd.util.hash_array(columns[key].astype(str).to_numpy()).tobytes() for key in columns)
    )
    peaks = registry.peaks
    if peaks is not None and peaks.key in adata.obsm:
        matrix = adata.obsm[peaks.key]
        content.update(repr(checksum(matrix.to_numpy() if isinstance(matrix, pd.DataFrame) else matrix)).encode())
        if peaks.names_key is not None and peaks.names_key in adata.uns:
            # zarr gives names in NumPy's own type of strings, which do not turn into others.
            listed = pd.Index(list(map(str, np.asarray(adata.uns[peaks.names_key]))))
            content.update(names_hash(listed).encode())
    panel = registry.proteins
    if panel is not None and panel.key in adata.obsm:
        # An array that is changed in place has the same identity: there are few enough values to look at.
        values, names = read_proteins(adata, panel.key, panel.names_key)
        content.update(values.astype(np.float32).tobytes())
        content.update(repr(names).encode())
    return (
        adata.shape,
        names_hash(adata.obs_names),
        names_hash(adata.var_names),
        content.hexdigest(),
    )


def weights_hash(module: nn.Module) -> str:
    """Return a fingerprint of the weights, 16 hexadecimal digits of SHA-256.

    Parameters
    ----------
    module
        Whose weights.
    """
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
