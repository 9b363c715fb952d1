"""What the package says of its arguments, in the words of a command."""

import re
import sys
import warnings
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

__all__ = ["in_options", "warnings_in_one_line"]

# Arguments whose options have other names.
_ALSO = {
    "protein_key": "protein_expression_obsm_key",
    "accessibility_key": "accessibility_obsm_key",
    "peak_names_key": "peak_names_uns_key",
}
_WITHOUT_OPTION = ("command", "file", "model", "data")
# Names within quotes, brackets and paths are not those of arguments.
_BEFORE = r"(?<![\w'\"./\[-])"
_BEHIND = r"(?!\w|['\"/=\]]|\.\w)"


def in_options(message: str, options: Namespace) -> str:
    """Return a message in which arguments that the command has an option for are called by it.

    Parameters
    ----------
    message
        What the package says, such as ``"pass layer=None"`` or ``"n_latent=0 must be"``.
    options
        Options of the command line.
    """
    names = {
        _ALSO.get(name, name): f"--{name.replace('_', '-')}" for name in vars(options) if name not in _WITHOUT_OPTION
    }
    any_of = "|".join(map(re.escape, names)) or "(?!)"
    # What could as well be a word of the sentence has to begin it, or to have a value.
    unmistakable = "|".join(re.escape(name) for name in names if "_" in name) or "(?!)"
    value = r"'[^']*'|\.\.\.|[^\s,;:.()]+(?:\.\d+)?"
    message = re.sub(rf"^({any_of})(?=: )", lambda found: names[found[1]], message)
    message = re.sub(rf"{_BEFORE}({any_of})=({value})", lambda found: _with_value(names[found[1]], found[2]), message)
    return re.sub(rf"{_BEFORE}({unmistakable}){_BEHIND}", lambda found: names[found[1]], message)


def _with_value(option: str, value: str) -> str:
    return {"None": f"no {option}", "True": option, "False": f"no {option}"}.get(value, f"{option} {value}")


@contextmanager
def warnings_in_one_line(options: Namespace) -> Iterator[None]:
    """Show each warning as one line on stderr, without the place in the code that it comes from.

    Parameters
    ----------
    options
        Options of the command line.
    """

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        print(f"warning: {in_options(' '.join(str(message).split()), options)}", file=file or sys.stderr)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield
