"""Results that are written to a file of their own, some cells at a time."""

import errno
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
from anndata import AnnData
from anndata.io import write_elem
from jaxtyping import Float

from scvae_ext.data.fields import in_pandas
from scvae_ext.data.sources import files_of_anndata
from scvae_ext.models.pieces import Pieces
from scvae_ext.models.results import record

__all__ = ["check_out", "write_pieces"]

_SUFFIXES = (".h5ad", ".zarr")
# Files in the folder of a zarr store, of either format.
_OF_A_STORE = ("zarr.json", ".zgroup", ".zarray")
_ROWS_OF_A_CHUNK = 1 << 10
_ARRAY: dict[str, Any] = {"encoding-type": "array", "encoding-version": "0.2.0"}


def check_out(out: str | Path, adata: AnnData, layer: str | None, *, overwrite: bool) -> Path:
    """Return the path of a file to write, if it may be written.

    Parameters
    ----------
    out
        The path, ending in ``.h5ad`` or ``.zarr``.
    adata
        The AnnData that is read meanwhile.
    layer
        Where its counts are; ``X`` where ``None``.
    overwrite
        Whether a file that is there may be replaced.

    Raises
    ------
    ValueError
        If the path has another ending, or is that of the file that is read.
    FileExistsError
        If there is a file that may not be replaced, or that may be what is read, of which the file is not known; or a
        folder that is no zarr store.
    """
    path = Path(out)
    if path.suffix not in _SUFFIXES:
        raise ValueError(f"out={str(out)!r} must end in .h5ad or .zarr, which says the format to write.")
    files, is_known = files_of_anndata(adata, layer)
    if any(path.resolve() in (file.resolve(), *file.resolve().parents) for file in files):
        raise ValueError(f"out={str(out)!r} is the file that the counts are read from: pass another path.")
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists already: pass overwrite=True to replace it, or another path.")
    if path.is_dir() and any(path.iterdir()) and not any((path / name).is_file() for name in _OF_A_STORE):
        raise FileExistsError(f"{path} is a folder and no zarr store, so it is not replaced: pass another path.")
    if path.exists() and not is_known:
        raise FileExistsError(
            f"{path} exists already, and it cannot be told whether the counts, which are not in memory, are read from "
            "it: pass another path, or remove it first if they are not."
        )
    return path


def write_pieces(
    path: Path,
    adata: AnnData,
    pieces: Pieces,
    columns: Sequence[str],
    slot: tuple[str, str] | None,
    provenance: Mapping[str, Any],
) -> Path:
    """Write an AnnData whose values are computed and written piece by piece, then give it its name.

    Parameters
    ----------
    path
        As :func:`check_out` returned it. A file that is there is replaced at the end.
    adata
        Where the annotation of the cells comes from.
    pieces
        The values.
    columns
        Names of the genes, for values in ``X``.
    slot
        ``("obsm", key)`` to write the values there instead.
    provenance
        What to record beside the time.

    Returns
    -------
    pathlib.Path
        The path.

    Raises
    ------
    ValueError
        If a cell was asked for twice, or a value is not finite.
    OSError
        If the file cannot be written, because the disk is full for example. Nothing is left of it then, and a file
        that was there before is as it was.
    """
    positions = pieces.cells.positions
    if len(np.unique(positions)) < len(positions):
        raise ValueError("Some cells were asked for more than once: out=... writes each cell once.")
    obs = in_pandas(adata.obs)
    skeleton = AnnData(obs=obs.iloc[positions], var=pd.DataFrame(index=list(columns)))
    where = "X" if slot is None else f'{slot[0]}["{slot[1]}"]'
    record(skeleton, where, provenance)
    with _reported(path):
        # A link stays one: what it leads to is written.
        place = path.resolve()
        place.parent.mkdir(parents=True, exist_ok=True)
        # Beside its final place, so that it can be renamed.
        temporary = tempfile.TemporaryDirectory(prefix=f".{place.name}-", dir=place.parent, ignore_cleanup_errors=True)
    with temporary:
        new, old = Path(temporary.name) / f"new{path.suffix}", Path(temporary.name) / "old"
        with _reported(path):
            create = _create_h5ad if path.suffix == ".h5ad" else _create_zarr
            target, close = create(new, skeleton, slot, (len(positions), pieces.n_columns), pieces.places()[0][1])
        try:
            for rows, values in pieces:
                _require_finite(values, obs.index[positions[rows]], where)
                with _reported(path):
                    target[rows] = values
        except BaseException:
            with suppress(OSError, RuntimeError):
                close()
            raise
        with _reported(path):
            close()
            try:
                if place.exists():
                    place.rename(old)
                new.rename(place)
            except BaseException:
                if old.exists() and not place.exists():
                    old.rename(place)
                raise
    return path


def _require_finite(values: Float[np.ndarray, "piece columns"], names: pd.Index, where: str) -> None:
    wrong = ~np.isfinite(values).all(axis=1)
    if wrong.any():
        raise ValueError(
            f"{where} of {wrong.sum()} cells is not finite, cell {names[wrong][0]!r} for example: nothing is written. "
            "Look for extreme counts in these cells, or train again with a smaller learning_rate."
        )


def _create_h5ad(
    path: Path, skeleton: AnnData, slot: tuple[str, str] | None, shape: tuple[int, int], rows_of_a_piece: int
) -> tuple[Any, Callable[[], None]]:
    file = h5py.File(path, "w")
    try:
        write_elem(file, "/", skeleton)
        target = file.create_dataset("X" if slot is None else "/".join(slot), shape, dtype=np.float32)
        target.attrs.update(_ARRAY)
    except BaseException:
        file.close()
        raise
    return target, file.close


def _create_zarr(
    path: Path, skeleton: AnnData, slot: tuple[str, str] | None, shape: tuple[int, int], rows_of_a_piece: int
) -> tuple[Any, Callable[[], None]]:
    import zarr

    group = zarr.open_group(path, mode="w", zarr_format=3)
    with _calm():
        write_elem(group, "/", skeleton)
    # Pieces that fill whole chunks are written without reading back.
    n_parts = -(-rows_of_a_piece // _ROWS_OF_A_CHUNK)
    target = group.create_array(
        "X" if slot is None else "/".join(slot),
        shape=shape,
        chunks=(-(-rows_of_a_piece // n_parts), shape[1]),
        dtype=np.float32,
        attributes=_ARRAY,
    )

    def close() -> None:
        with _calm():
            zarr.consolidate_metadata(group.store)

    return target, close


@contextmanager
def _calm() -> Iterator[None]:
    """Leave out what anndata says of its next release, and zarr of readers other than anndata."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="zarr v3 autosharding", category=UserWarning)
        warnings.filterwarnings("ignore", message="Consolidated metadata", category=UserWarning)
        yield


@contextmanager
def _reported(path: Path) -> Iterator[None]:
    """Say which file could not be written."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        # What anndata does not write has nothing to do with the disk, and it says what to do.
        if "anndata.settings" in str(error):
            raise
        left = "what was there before is as it was" if path.exists() else "nothing is left of it"
        text = f"{path} could not be written, and {left}: {error}. Is there space on the disk, and may you write there?"
        raise OSError(getattr(error, "errno", None) or errno.EIO, text) from error
