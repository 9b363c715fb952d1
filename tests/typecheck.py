"""The type checker that every function of the package runs under in tests."""

import functools
import inspect
from dataclasses import is_dataclass
from types import FunctionType
from typing import Any, Self

import jaxtyping
import numpy as np
import torch
from beartype import BeartypeConf, FrozenDict, beartype
from jaxtyping import config

check = beartype(
    conf=BeartypeConf(
        # jaxtyping decorates methods one by one, where beartype cannot know what ``Self`` stands for.
        hint_overrides=FrozenDict({Self: Any}),
        # An int is a float to mypy, too.
        is_pep484_tower=True,
    )
)

# What a function remembers at most, and the longest tuple that it looks into.
_MOST_CALLS, _MOST_ITEMS = 512, 16


# Types of which an annotation asks no more than the type.
_PLAIN: set[type] = {int, float, type(None)}


class _NotKnownByKindError(Exception):
    """Raised for a value of which more than the type, shape and element type can matter to an annotation."""


def _kind(value: object) -> object:
    """Return all that an annotation can ask of a value."""
    cls = type(value)
    if cls in _PLAIN:
        return cls
    if isinstance(value, (torch.Tensor, np.ndarray)):
        return cls, value.dtype, value.shape
    if cls is str or cls is bool or isinstance(value, type):
        return cls, value
    if isinstance(value, (tuple, list, dict)):
        if len(value) > _MOST_ITEMS:
            raise _NotKnownByKindError
        return cls, tuple([_kind(each) for each in (value.items() if isinstance(value, dict) else value)])
    if isinstance(value, (set, frozenset)) or hasattr(cls, "keys") or hasattr(cls, "dtype"):
        raise _NotKnownByKindError
    _PLAIN.add(cls)
    return cls


def remembering(jaxtyped):
    """Make jaxtyping's decorator check every kind of call, by types, shapes and element types, and each kind once.

    A check costs a tenth of a millisecond and a training step has a hundred of them; nothing is let through that an
    earlier call of the same function has not shown to be right.
    """

    def decorator(fn, *, typechecker):
        if inspect.isclass(fn):
            if is_dataclass(fn) and not hasattr(fn.__init__, "remembers"):
                fn.__init__ = decorator(fn.__init__, typechecker=typechecker)
            return fn
        if not inspect.isfunction(fn) or hasattr(fn, "__no_type_check__"):
            return jaxtyped(fn, typechecker=typechecker)
        results = []
        known_arguments, known_calls = set(), set()

        def last_result(*args, **kwargs):
            return results[-1]

        # Writing a check costs a millisecond, and most functions are called in few of the processes that import them.
        @functools.cache
        def checked():
            return jaxtyped(fn, typechecker=typechecker)

        @functools.cache
        def checked_result():
            # Names in annotations are those of the function's module.
            stand_in = FunctionType(last_result.__code__, fn.__globals__, closure=last_result.__closure__)
            return jaxtyped(functools.wraps(fn)(stand_in), typechecker=typechecker)

        @functools.wraps(fn)
        def wrapped(*args, **kwargs):
            __tracebackhide__ = True
            if config.jaxtyping_disable:
                return fn(*args, **kwargs)
            try:
                # Of ``self`` and other objects the type, of keywords the names as well.
                arguments = (*map(_kind, args), *((name, _kind(value)) for name, value in kwargs.items()))
            except _NotKnownByKindError:
                return checked()(*args, **kwargs)
            is_known = arguments in known_arguments
            out = (fn if is_known else checked())(*args, **kwargs)
            try:
                call = (arguments, _kind(out))
            except _NotKnownByKindError:
                call = None
            if is_known and call not in known_calls:
                results.append(out)
                try:
                    checked_result()(*args, **kwargs)
                finally:
                    results.clear()
            if len(known_calls) < _MOST_CALLS and call is not None:
                known_arguments.add(arguments)
                known_calls.add(call)
            return out

        wrapped.remembers = True
        return wrapped

    return lambda *fn, typechecker: (
        decorator(*fn, typechecker=typechecker) if fn else functools.partial(decorator, typechecker=typechecker)
    )


def install() -> None:
    """Take the place of jaxtyping's decorator; to be called before the package is imported."""
    jaxtyping.jaxtyped = remembering(jaxtyping.jaxtyped)
