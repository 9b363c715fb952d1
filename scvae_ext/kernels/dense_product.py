"""Products of dense matrices, by the faster of the two libraries that torch is built with."""

import re
from functools import cache
from typing import Any

import llvmlite.binding as llvm  # type: ignore[import-untyped]
import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from scvae_ext.kernels.compiled import compiled
from scvae_ext.kernels.team import in_team, matrix, next_range, task

__all__ = ["dense_product", "transposed_dense_product"]

# What oneDNN needs beside the multiplications themselves pays from here on (128 cells, 128 units, 128 genes).
_FEWEST_MULTIPLICATIONS = 2**21
_SHORTEST_SIDE = 32
# Rows and columns that are turned at a time: a line of the cache holds sixteen numbers of four bytes.
_TILE = 16


def dense_product(
    x: Float[Tensor, "rows inner"],
    weight: Float[Tensor, "columns inner"],
    bias: Float[Tensor, "columns"] | None = None,
) -> Float[Tensor, "rows columns"]:
    r"""Return :math:`x W^\top + b`, without a graph.

    Torch leaves products in single precision to MKL, which uses half the width of the vector units of AMD's processors
    from Zen 5 on. There larger ones go to oneDNN, which torch has as well, and take half the time. The libraries may
    differ in the last digits.

    Parameters
    ----------
    x
        Inputs.
    weight
        Weights; a transposed view is as good.
    bias
        Added to every row.
    """
    if _is_for_onednn(x, weight):
        return _onednn_linear()(x, weight, bias, "none", [], "")  # type: ignore[no-any-return]
    return x @ weight.T if bias is None else torch.addmm(bias, x, weight.T)


def transposed_dense_product(
    left: Float[Tensor, "rows columns"], right: Float[Tensor, "rows others"]
) -> Float[Tensor, "columns others"]:
    r"""Return :math:`A^\top B`, without a graph: what the rows of two matrices have in common, summed over them.

    Parameters
    ----------
    left
        Matrix with more columns, for speed.
    right
        Matrix with fewer.
    """
    if not _is_for_onednn(right.T, left.T):
        return left.T @ right
    # oneDNN would copy a left matrix to turn it: the shorter one is, and then the result, in all threads.
    turned = dense_product(right.T.contiguous(), left.T)
    result = torch.empty(left.shape[1], right.shape[1])
    n_tiles = -(-len(result) // _TILE)
    in_team(_turn_task, (turned.numpy(), result.numpy()), n_tiles, max(1, n_tiles // (2 * torch.get_num_threads())))
    return result


def _is_for_onednn(x: Tensor, weight: Tensor) -> bool:
    rows, inner, columns = x.shape[0], x.shape[1], weight.shape[0]
    return (
        rows * inner * columns >= _FEWEST_MULTIPLICATIONS
        and min(rows, inner, columns) >= _SHORTEST_SIDE
        and x.dtype == weight.dtype == torch.float32
        and x.device.type == "cpu"
        and _onednn_linear() is not None
        and bool(torch.backends.mkldnn.enabled)
    )


@cache
def _onednn_linear() -> Any:
    """Return oneDNN's linear map where it is the faster one: on AMD's processors from Zen 5 on."""
    generation = re.fullmatch(r"znver(\d+)", llvm.get_host_cpu_name())
    is_faster = (
        generation is not None and int(generation[1]) >= 5 and torch.backends.cpu.get_cpu_capability() == "AVX512"
    )
    if not is_faster or not torch.backends.mkldnn.is_available():
        return None
    # That which compiled graphs use; torch promises nothing about it.
    return getattr(torch.ops.mkldnn, "_linear_pointwise", None)


@task
def _turn_task(words: Any) -> None:
    turned, result = matrix(words, 0), matrix(words, 1)
    first, last = next_range(words)
    while first < last:
        _turn(first * _TILE, min(last * _TILE, len(result)), turned, result)
        first, last = next_range(words)


@compiled()
def _turn(first: int, last: int, turned: NDArray[np.float32], result: NDArray[np.float32]) -> None:
    """Write the columns of one matrix as rows of another, tile by tile."""
    n_columns = result.shape[1]
    for row in range(first, last, _TILE):
        for column in range(0, n_columns, _TILE):
            if row + _TILE <= last and column + _TILE <= n_columns:
                # Loops of a length that the compiler knows.
                for i in range(_TILE):
                    for j in range(_TILE):
                        result[row + i, column + j] = turned[column + j, row + i]
            else:
                for i in range(row, min(row + _TILE, last)):
                    for j in range(column, min(column + _TILE, n_columns)):
                        result[i, j] = turned[j, i]
