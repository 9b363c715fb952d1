"""Compilation of kernels."""

import inspect
from collections.abc import Callable
from typing import TypeVar, cast

import numba

__all__ = ["compiled"]

Function = TypeVar("Function", bound=Callable[..., object])

# Values may be fused and divisions become products of reciprocals; nothing may be assumed finite, or be reordered.
EXACT = {"contract", "arcp", "nsz"}


def compiled(*, sums: bool = False, part: bool = False) -> Callable[[Function], Function]:
    """Compile a function of arrays and numbers for this processor, and keep the result on disk where that can be.

    Parameters
    ----------
    sums
        Whether sums may be reordered, without which they cannot be vectorised.
    part
        Whether it is a small part of other compiled functions, and becomes part of their loops.
    """

    def compile_(function: Function) -> Function:
        # The test suite wraps functions in checks of their types, which the compiler cannot read.
        plain = inspect.unwrap(function)
        fastmath = EXACT | ({"reassoc"} if sums else set())

        def jit(cache: bool) -> Function:
            decorator = numba.njit(cache=cache, nogil=True, error_model="numpy", fastmath=fastmath, forceinline=part)
            return cast(Function, decorator(plain))

        try:
            return jit(cache=not part)
        except RuntimeError:  # no folder to keep it in
            return jit(cache=False)

    return compile_
