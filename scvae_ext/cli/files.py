"""Files in and out: checked before the work starts, complete or not there at all."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

__all__ = ["UserError", "check_distinct", "check_writable", "replacing"]


class UserError(Exception):
    """Something the user can put right; shown as one line, without a traceback."""


def check_writable(path: Path, *, overwrite: bool) -> None:
    """Raise where a file could not be written.

    Parameters
    ----------
    path
        The file.
    overwrite
        Whether it may exist.

    Raises
    ------
    UserError
        If it exists and may not, is a folder, or its folder is missing or cannot be written to.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder; give the name of a file.")
    if path.exists() and not overwrite:
        raise UserError(f"{path} exists; add --overwrite to replace it.")
    if not path.parent.is_dir():
        raise UserError(f"the folder {path.parent} does not exist; make it first.")
    if not os.access(path.parent, os.W_OK):
        raise UserError(f"the folder {path.parent} cannot be written to.")


def check_distinct(paths: Mapping[str, Path | None]) -> None:
    """Raise where two things would be written to the same place.

    Parameters
    ----------
    paths
        Path of each option, ``None`` where nothing is written.

    Raises
    ------
    UserError
        If two are the same.
    """
    taken: dict[Path, str] = {}
    for option, path in paths.items():
        if path is None:
            continue
        other = taken.setdefault(path.resolve(), option)
        if other != option:
            raise UserError(f"{other} and {option} are both {path}; give each a name of its own.")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary name that becomes ``path`` on success and disappears otherwise.

    Parameters
    ----------
    path
        The file to write.
    """
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
