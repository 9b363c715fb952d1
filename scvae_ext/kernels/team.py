"""Tasks that threads share out among themselves: those of torch where they can be had, otherwise a pool."""

import ctypes
import inspect
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numba
import numpy as np
import torch
from llvmlite import ir  # type: ignore[import-untyped]
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from scvae_ext.kernels.compiled import compiled

__all__ = ["in_team", "integers", "matrix", "next_range", "small_integers", "task", "vector"]

# What a task is handed: a counter of tickets, the number of items, and of items to a ticket; then, for each array, its
# address and shape.
_HEADER, _WORDS_OF_ARRAY = 3, 3
_WORDS = numba.types.CPointer(numba.types.int64)  # type: ignore[no-untyped-call]
_carray: Any = numba.carray  # type: ignore[attr-defined]


def _fetch_and_add(typingctx: Any, words: Any) -> Any:
    """Return the counter that stands first, and add one to it, as one step that no other thread can come between."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.atomic_rmw("add", arguments[0], ir.Constant(ir.IntType(64), 1), "monotonic")

    return numba.types.int64(_WORDS), codegen


def _integer_to_pointer(typingctx: Any, address: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return numba.types.voidptr(numba.types.int64), codegen


_take_ticket: Any = intrinsic(_fetch_and_add)
_pointer: Any = intrinsic(_integer_to_pointer)


@compiled(part=True)
def next_range(words: Any) -> tuple[int, int]:
    """Return the first item of the next range and the one after its last; both are the same where none is left."""
    n_items, per_ticket = words[1], words[2]
    first = min(_take_ticket(words) * per_ticket, n_items)
    return first, min(first + per_ticket, n_items)


@compiled(part=True)
def matrix(words: Any, position: int) -> NDArray[np.float32]:
    """Return the array at a position among the arrays of a task, which has two dimensions."""
    at = _HEADER + _WORDS_OF_ARRAY * position
    return _carray(_pointer(words[at]), (words[at + 1], words[at + 2]), np.float32)  # type: ignore[no-any-return]


@compiled(part=True)
def vector(words: Any, position: int) -> NDArray[np.float32]:
    """Return the array at a position among the arrays of a task, which has one dimension."""
    at = _HEADER + _WORDS_OF_ARRAY * position
    return _carray(_pointer(words[at]), (words[at + 1],), np.float32)  # type: ignore[no-any-return]


@compiled(part=True)
def integers(words: Any, position: int) -> NDArray[np.int64]:
    """Return the array at a position among the arrays of a task, which has one dimension and holds integers."""
    at = _HEADER + _WORDS_OF_ARRAY * position
    return _carray(_pointer(words[at]), (words[at + 1],), np.int64)  # type: ignore[no-any-return]


@compiled(part=True)
def small_integers(words: Any, position: int) -> NDArray[np.int32]:
    """Return the array at a position among the arrays of a task, which has one dimension and holds int32."""
    at = _HEADER + _WORDS_OF_ARRAY * position
    return _carray(_pointer(words[at]), (words[at + 1],), np.int32)  # type: ignore[no-any-return]


def task(function: Callable[[Any], None]) -> Callable[[], Any]:
    """Make a task of a function that takes ranges by :func:`next_range` until one is empty, and does their items.

    It is compiled when it is first asked for, and kept on disk where that can be.

    Parameters
    ----------
    function
        Takes the words from which :func:`matrix`, :func:`vector`, :func:`integers` and :func:`small_integers` read
        arrays.
    """

    @cache
    def compiled_task() -> Any:
        plain, signature = inspect.unwrap(function), numba.types.void(_WORDS)
        try:
            return numba.cfunc(signature, cache=True)(plain)
        except RuntimeError:  # no folder to keep it in
            return numba.cfunc(signature)(plain)

    return compiled_task


def in_team(
    task: Callable[[], Any],
    arrays: Sequence[NDArray[Any]],
    n_items: int,
    per_ticket: int,
    *,
    n_threads: int | None = None,
) -> None:
    """Run a task in as many threads as torch has, each of which takes the next range of items when it is done with one.

    Torch's own team of threads is at hand the moment that one of its products has ended, and keeps its cores busy for
    some milliseconds after it: threads of our own beside it were measured to make kernels slower on two cores. Where
    the OpenMP library that torch uses cannot be had, a pool of half as many threads does the work.

    Parameters
    ----------
    task
        From :func:`task`.
    arrays
        Contiguous arrays of float32, int64 or int32, with at most two dimensions, in the order in which the task reads
        them.
    n_items
        Number of items.
    per_ticket
        Items that a thread does at a time.
    n_threads
        Number of threads; those of torch if ``None``.
    """
    if not all(array.flags.c_contiguous for array in arrays):
        raise ValueError("An array of a task is not contiguous: pass np.ascontiguousarray of it.")
    function = task()
    n_threads = min(torch.get_num_threads() if n_threads is None else n_threads, -(-n_items // per_ticket))
    described = [0, n_items, per_ticket]
    for array in arrays:
        described += (_address(array), len(array), array.shape[1] if array.ndim > 1 else 0)
    words = (ctypes.c_int64 * len(described))(*described)
    fork = _parallel_region()
    if n_threads <= 1:
        function.ctypes(ctypes.cast(words, _LONGS))
    elif fork is not None:
        fork(function.address, words, n_threads, 0)
    else:
        pool = _pool(max(1, n_threads // 2 - 1), os.getpid())
        others = [pool.submit(function.ctypes, ctypes.cast(words, _LONGS)) for _ in range(n_threads // 2 - 1)]
        function.ctypes(ctypes.cast(words, _LONGS))
        for other in others:
            other.result()


_LONGS = ctypes.POINTER(ctypes.c_int64)


@compiled()
def _address(array: NDArray[Any]) -> int:
    """Return where the values of an array lie, in a tenth of the time that numpy takes for it."""
    return array.ctypes.data


@cache
def _parallel_region() -> Any:
    """Return the function by which a compiler starts a parallel region of the OpenMP library that torch has loaded."""
    if not hasattr(os, "RTLD_NOLOAD"):
        return None
    folder = Path(torch.__file__).parent
    bundled = [*folder.glob("lib/libgomp*.so*"), *folder.parent.glob("torch.libs/libgomp*.so*")]
    for name in (*map(str, sorted(bundled)), "libgomp.so.1"):
        try:
            # Never a second library beside the one that is loaded.
            region = ctypes.CDLL(name, mode=os.RTLD_NOW | os.RTLD_NOLOAD).GOMP_parallel
        except (OSError, AttributeError):
            continue
        region.argtypes, region.restype = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint], None
        return region
    return None


@cache
def _pool(n_threads: int, process: int) -> ThreadPoolExecutor:
    """Threads that wait for work; a process that was forked gets its own."""
    return ThreadPoolExecutor(n_threads, thread_name_prefix="scvae_ext")
