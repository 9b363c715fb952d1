"""Compilation, and more threads where there are more cores."""

import inspect
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from typing import TypeVar, cast

import numba
import torch

__all__ = ["compiled", "in_threads"]

Function = TypeVar("Function", bound=Callable[..., object])

# Values may be fused and divisions become products of reciprocals; nothing may be assumed finite, or be reordered.
EXACT = {"contract", "arcp", "nsz"}


def compiled(*, sums: bool = False, finite: bool = False, part: bool = False) -> Callable[[Function], Function]:
    """Compile a function of arrays and numbers for this processor, and keep the result on disk where that can be.

    Parameters
    ----------
    sums
        Whether sums may be reordered, without which they cannot be vectorised.
    finite
        Whether values may be taken to be finite, without which a maximum cannot be vectorised.
    part
        Whether it is a small part of other compiled functions, and becomes part of their loops.
    """

    def compile_(function: Function) -> Function:
        # The test suite wraps functions in checks of their types, which the compiler cannot read.
        plain = inspect.unwrap(function)
        fastmath = EXACT | ({"reassoc"} if sums else set()) | ({"nnan", "ninf"} if finite else set())

        def jit(cache: bool) -> Function:
            decorator = numba.njit(cache=cache, nogil=True, error_model="numpy", fastmath=fastmath, forceinline=part)
            return cast(Function, decorator(plain))

        try:
            return jit(cache=not part)
        except RuntimeError:  # no folder to keep it in
            return jit(cache=False)

    return compile_


def in_threads(kernel: Callable[[int, int], None], n_items: int, least: int) -> None:
    """Call a kernel for consecutive ranges of items, half as many at a time as torch has threads.

    The threads of OpenMP, which torch uses, keep their cores busy for some milliseconds after they have done their
    part: on two cores, a second thread beside them was measured to make kernels slower.

    Parameters
    ----------
    kernel
        Does items from a first one to before a last one, and releases the interpreter's lock meanwhile.
    n_items
        Number of items.
    least
        Number of items below which a range is not worth a thread.
    """
    n_threads = max(1, min(torch.get_num_threads() // 2, n_items // least))
    if n_threads == 1:
        kernel(0, n_items)
        return
    edges = [n_items * thread // n_threads for thread in range(n_threads + 1)]
    pool = _pool(n_threads - 1, os.getpid())
    others = [pool.submit(kernel, first, last) for first, last in pairwise(edges[1:])]
    kernel(edges[0], edges[1])
    for other in others:
        other.result()


@cache
def _pool(n_threads: int, process: int) -> ThreadPoolExecutor:
    """Threads that wait for work; a process that was forked gets its own."""
    return ThreadPoolExecutor(n_threads, thread_name_prefix="scvae_ext")
