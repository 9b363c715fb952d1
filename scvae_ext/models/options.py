"""Checking the options that users pass."""

import inspect
import math
from collections.abc import Mapping
from difflib import get_close_matches
from numbers import Real
from typing import Any

import numpy as np

__all__ = ["plan_options", "positive_number", "reject_unknown", "true_or_false", "whole_number"]

# What users of scvi-tools pass in plan_kwargs, and our names for it.
PLAN_KWARGS = {"lr": "learning_rate", "weight_decay": "weight_decay", "max_kl_weight": "max_kl_weight"}


def whole_number(name: str, value: object, least: int = 1) -> int:
    """Return a whole number as a Python integer.

    Parameters
    ----------
    name, value
        Of the argument.
    least
        Smallest value allowed.

    Raises
    ------
    ValueError
        If it is not a whole number, or too small.
    """
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | np.integer) or value < least:
        raise ValueError(f"{name}={value!r} must be a whole number of at least {least}.")
    return int(value)


def positive_number(name: str, value: object) -> float:
    """Return a positive, finite number as a Python one.

    Parameters
    ----------
    name, value
        Of the argument.

    Raises
    ------
    ValueError
        If it is anything else.
    """
    number = math.nan if isinstance(value, bool) or not isinstance(value, Real) else float(value)
    if not (math.isfinite(number) and number > 0):
        raise ValueError(f"{name}={value!r} must be a positive number.")
    return number


def true_or_false(name: str, value: object) -> bool:
    """Return a truth value as a Python one.

    Parameters
    ----------
    name, value
        Of the argument.

    Raises
    ------
    ValueError
        If it is neither true nor false.
    """
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"{name}={value!r} must be True or False.")
    return bool(value)


def reject_unknown(model: type, unknown: Mapping[str, Any]) -> None:
    """Raise where a model was given an option that it does not have.

    Parameters
    ----------
    model
        The class.
    unknown
        Options that its signature does not name.

    Raises
    ------
    TypeError
        Naming the first, the nearest that exist, and all that exist.
    """
    if not unknown:
        return
    valid = [
        name
        for name, parameter in inspect.signature(model).parameters.items()
        if name not in ("self", "adata") and parameter.kind is not parameter.VAR_KEYWORD
    ]
    name = next(iter(unknown))
    near = get_close_matches(name, valid, n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    raise TypeError(f"{model.__name__} got an unknown option {name!r}.{hint} Options are {', '.join(valid)}.")


def plan_options(plan_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Translate ``plan_kwargs`` as scvi-tools has them into options of the training plan.

    Parameters
    ----------
    plan_kwargs
        Options by the names that scvi-tools gives them.

    Raises
    ------
    TypeError
        If one has no counterpart.
    """
    unknown = [name for name in plan_kwargs if name not in PLAN_KWARGS]
    if unknown:
        raise TypeError(
            f"plan_kwargs holds {unknown[0]!r}, which has no counterpart here. Known are {', '.join(PLAN_KWARGS)}; "
            "the warm-up of the KL divergence is train(kl_warmup=...), a fraction of the training."
        )
    return {PLAN_KWARGS[name]: value for name, value in plan_kwargs.items()}
