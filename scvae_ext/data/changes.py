"""Whether the matrix of counts is still what it was when it was read."""

import hashlib
from typing import Any, Literal

import numpy as np
import scipy.sparse as sp
from anndata import AnnData
from anndata.compat import DaskArray
from jaxtyping import Shaped

from scvae_ext.data.fields import Layer

__all__ = ["SeenCounts", "checksum"]

# Sums fit into the processor's nearest cache, so that adding up takes as long as reading from memory. Their number is
# prime: rows of a dense matrix, of 4,096 genes say, do not fall on each other's places, so that their order counts.
_LANES = 4093
# Of a dense matrix of more bytes, mostly zeros, and of places in a sparse one so many words are looked at, and the next
# ones so much later, by bytes of an entry. Distances are prime, so that no gene is left out, however many there are.
_ALL_BELOW = 1 << 24
_SAMPLED_LANES = 64
_PERIODS = {1: 131, 2: 257, 4: 521, 8: 1031}


class SeenCounts:
    """The matrix of counts of an AnnData, remembered to tell later whether it is the same.

    A matrix in memory is recognised by the object, and by sums over the bits of its values. Of a large dense one they
    are taken over a sample: a change of most entries, as normalising makes it, is always seen, one of a few cells may
    not be. A matrix on disk is taken to be the same as long as the object is.

    Parameters
    ----------
    adata
        Where it is.
    layer
        Which matrix.
    """

    def __init__(self, adata: AnnData, layer: Layer) -> None:
        self._layer = layer
        # Held, because another object could get the place in memory, and with it the identity, of one that is gone.
        self._matrix = self._find(adata)
        self._checksum = checksum(self._read(adata))

    def state(self, adata: AnnData) -> Literal["same", "replaced", "changed"]:
        """Return whether the matrix is the same, another one, or the same object with other content.

        The matrix of a view is that of another AnnData, which it changes with: it is never another one.

        Parameters
        ----------
        adata
            Where it is now.
        """
        if self._find(adata) is not self._matrix:
            return "replaced"
        try:
            is_same = checksum(self._read(adata)) == self._checksum
        except IndexError:
            # Cells of a view are not there any more in what it is a view of.
            is_same = False
        return "same" if is_same else "changed"

    def _find(self, adata: AnnData) -> object:
        """Return the object, or ``None`` where every access makes a new one."""
        return None if adata.is_view or self._is_file(adata) else self._layer.read(adata)

    def _read(self, adata: AnnData) -> object:
        return None if self._is_file(adata) else self._layer.read(adata)

    def _is_file(self, adata: AnnData) -> bool:
        return adata.isbacked and self._layer.key is None


def checksum(matrix: Any) -> object:
    """Return what nearly any change of a matrix in memory changes: sums over the bits of its values and places.

    Parameters
    ----------
    matrix
        Sparse, dense or a Dask array, whose name stands for it; ``None`` comes of anything else.
    """
    if isinstance(matrix, DaskArray):
        return matrix.name
    if sp.issparse(matrix):
        compressed = matrix if matrix.format in ("csr", "csc") else matrix.tocsr()
        parts = (compressed.indices, compressed.indptr)
        return matrix.shape, _sums(compressed.data), *(_sums(part, sampled=True) for part in parts)
    if isinstance(matrix, np.ndarray):
        dense = np.asarray(matrix)
        return dense.shape, _sums(dense, sampled=True)
    return None


def _sums(values: Shaped[np.ndarray, "..."], *, sampled: bool = False) -> bytes:
    """Return a hash of sums of words of 64 bits, place by place of each period; of some places alone if sampled."""
    sampled &= values.nbytes > _ALL_BELOW
    n_lanes, period = (_SAMPLED_LANES, _PERIODS[values.itemsize]) if sampled else (_LANES, _LANES)
    if values.ndim > 1 and values.flags.f_contiguous:
        values = values.T
    elif sampled and not values.flags.c_contiguous:
        # Every eighth cell alone is copied.
        values = values[::8]
    content = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
    n_words = len(content) // 8
    words = content[: 8 * n_words].view(np.uint64)
    n_whole = n_words // period * period
    places = words[:n_whole].reshape(-1, period)[:, :n_lanes]
    # Integers wrap around, so that no change is lost to rounding. Of narrow rows einsum is several times faster.
    sums = np.einsum("ij->j", places) if sampled else np.add.reduce(places, axis=0)
    parts = (sums, words[n_whole:], content[8 * n_words :])
    return hashlib.sha256(b"".join(part.tobytes() for part in parts)).digest()
