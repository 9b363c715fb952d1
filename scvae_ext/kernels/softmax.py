"""Softmax of rows, and compositions on the scale that a result is wanted on."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from scvae_ext.kernels.compiled import compiled
from scvae_ext.kernels.elementary import exp
from scvae_ext.kernels.team import in_team, integers, matrix, next_range, task, vector

__all__ = ["softmax", "sum_of", "write_compositions"]

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

f32, i32 = np.float32, np.int32
_ZERO = f32(0)
_LEAST_INTEGER, _SIGN_BIT, _ALL_BUT_SIGN = i32(-(2**31)), i32(31), i32(2**31 - 1)
_CHUNK = 128
_ROWS_AT_A_TIME = 4
_ALL_COLUMNS = np.empty(0, dtype=np.int64)


def write_compositions(logits: Floats, scale: Floats, columns: Ints | None, result: Floats, *, add: bool) -> None:
    r"""Write :math:`s_r \operatorname{softmax}(a_r)_g` for each row and column, or add it to what is there.

    Parameters
    ----------
    logits
        a, of shape (rows, genes).
    scale
        s, of shape (rows,).
    columns
        Genes of the columns of the result, or ``None`` for all.
    result
        Of shape (rows, columns), contiguous.
    add
        Whether to add.
    """
    logits, scale = np.ascontiguousarray(logits), np.ascontiguousarray(scale)
    columns = _ALL_COLUMNS if columns is None else np.ascontiguousarray(columns)
    options = np.array([add], dtype=np.int64)
    in_team(_composition_task, (logits, scale, columns, options, result), len(logits), _ROWS_AT_A_TIME)


@task
def _composition_task(words: Any) -> None:
    logits, scale, columns = matrix(words, 0), vector(words, 1), integers(words, 2)
    options, result = integers(words, 3), matrix(words, 4)
    first, last = next_range(words)
    while first < last:
        _compositions(first, last, logits, scale, columns, options[0] != 0, result)
        first, last = next_range(words)


@compiled()
def _compositions(
    first: int, last: int, logits: Floats, scale: Floats, columns: Ints, add: bool, result: Floats
) -> None:
    share = np.empty(logits.shape[1], dtype=f32)
    chosen = np.empty(result.shape[1], dtype=f32)
    some = result.shape[1] != share.size or columns.size > 0
    for row in range(first, last):
        _exp_from(logits[row], _largest(logits[row]), share)
        factor = scale[row] / sum_of(share)
        if some:
            for column in range(chosen.size):
                chosen[column] = share[columns[column]]
        _scaled(chosen if some else share, factor, add, result[row])


@compiled()
def _scaled(values: Floats, factor: np.float32, add: bool, result: Floats) -> None:
    if add:
        for column in range(result.size):
            result[column] += values[column] * factor
    else:
        for column in range(result.size):
            result[column] = values[column] * factor


@compiled(sums=True)
def softmax(logits: Floats, share: Floats) -> None:
    """Write the softmax of a row to another.

    Parameters
    ----------
    logits, share
        From where, and where to; they may not overlap.
    """
    _exp_from(logits, _largest(logits), share)
    total = sum_of(share)
    for gene in range(share.size):
        share[gene] /= total


@compiled()
def _largest(values: Floats) -> np.float32:
    # By integers that are in the same order: the compiler vectorises a maximum of those, but not one of floats. That of
    # a NaN lies beyond those of all numbers, or before them, and then the exponential of its difference is NaN.
    bits, largest = values.view(np.int32), _LEAST_INTEGER
    for place in range(bits.size):
        largest = max(largest, _in_order(bits[place]))
    return i32(_in_order(i32(largest))).view(f32)


@compiled(part=True)
def _in_order(bits: np.int32) -> np.int32:
    """Turn the bits of a float into an integer that is the larger the larger the float is, and back."""
    return i32(bits ^ i32(i32(bits >> _SIGN_BIT) & _ALL_BUT_SIGN))


@compiled()
def _exp_from(logits: Floats, largest: np.float32, share: Floats) -> None:
    for gene in range(logits.size):
        share[gene] = exp(logits[gene] - largest)


@compiled(sums=True)
def sum_of(values: Floats) -> np.float32:
    """Return the sum of the values, chunk by chunk, so that rounding does not grow with the number of genes.

    Parameters
    ----------
    values
        Of one dimension.
    """
    # Chunks of a length that the compiler knows: with one that it does not, sums were measured to take eight times as
    # long.
    n_chunks = values.size // _CHUNK
    total = _ZERO
    for chunk in range(n_chunks):
        part = _ZERO
        for place in range(_CHUNK):
            part += values[chunk * _CHUNK + place]
        total += part
    rest = _ZERO
    for place in range(n_chunks * _CHUNK, values.size):
        rest += values[place]
    return f32(total + rest)
