"""Names: of categories, and in messages."""

import difflib
import re
from collections.abc import Iterable, Sequence

import numpy as np

__all__ = ["category_names", "distinct_names", "find_category", "require_one_column", "shorten", "unknown_key"]


def shorten(names: Iterable[object], limit: int = 10) -> str:
    """List names for a message, at most ``limit`` of them.

    Parameters
    ----------
    names
        The names.
    limit
        How many to write out.
    """
    listed = [repr(str(name)) for name in names]
    more = f" and {len(listed) - limit} more" if len(listed) > limit else ""
    return ", ".join(listed[:limit]) + more


def unknown_key(what: str, key: str, known: Iterable[object]) -> ValueError:
    """Return the error for a key that is not there, with the nearest ones that are.

    Parameters
    ----------
    what
        Beginning of the message, up to "not found".
    key
        What was asked for.
    known
        What is there.
    """
    names = [str(name) for name in known]
    by_lower_case = {name.lower(): name for name in reversed(names)}
    close = [by_lower_case[name] for name in difflib.get_close_matches(str(key).lower(), by_lower_case, cutoff=0.5)]
    if close:
        hint = f"Did you mean {' or '.join(repr(name) for name in close)}?"
    elif names:
        hint = f"There are: {shorten(names)}."
    else:
        hint = "There are none."
    return ValueError(f"{what} not found. {hint}")


def require_one_column(columns: Iterable[object], key: str, argument: str) -> None:
    """Raise if several columns of ``adata.obs`` have the same name.

    Parameters
    ----------
    columns
        All columns.
    key, argument
        The name, and the argument that it was passed as.

    Raises
    ------
    ValueError
        If there are several.
    """
    n_columns = list(columns).count(key)
    if n_columns > 1:
        raise ValueError(
            f"{argument}: adata.obs has {n_columns} columns called {key!r}. Rename or drop all but one of them."
        )


def category_names(values: Iterable[object]) -> list[str]:
    """Return the names that categories are known by: ``1`` and ``1.0`` are both ``"1"``.

    Parameters
    ----------
    values
        The categories as a column holds them. Numbers lose their decimals where all of them are whole.
    """
    values = list(values)
    if all(isinstance(value, float | np.floating) and float(value).is_integer() for value in values):
        return [f"{value:.0f}" for value in values]
    return [str(value) for value in values]


def distinct_names(values: Iterable[object], key: str, argument: str) -> tuple[str, ...]:
    """Return the names of the categories of a column of ``adata.obs``.

    Parameters
    ----------
    values
        The categories.
    key, argument
        The column, and the argument that it was passed as.

    Raises
    ------
    ValueError
        If two of them have the same name.
    """
    names = tuple(category_names(values))
    if len(set(names)) < len(names):
        repeated = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(
            f"{argument}: adata.obs[{key!r}] holds different values that read the same: {shorten(repeated)}. "
            f"Make the column text: adata.obs[{key!r}] = adata.obs[{key!r}].astype(str)."
        )
    return names


def find_category(value: object, names: Sequence[str]) -> int | None:
    """Return the position of the category that a value stands for, or ``None`` if there is none.

    Parameters
    ----------
    value
        What was asked for: a name, or a number as the column holds it.
    names
        The categories, named by :func:`category_names`.
    """
    # A whole number has decimals in its name if it stands beside numbers that need them; other text has no decimals.
    number = re.fullmatch(r"(-?\d+)(\.0)?", str(value))
    same = (number[1], f"{number[1]}.0") if number else ()
    return next((names.index(name) for name in (str(value), *same) if name in names), None)
