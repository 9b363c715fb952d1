"""One line that shows how far a training is, where somebody looks at it."""

import sys
from importlib import import_module
from multiprocessing import parent_process
from typing import Any

from tqdm import tqdm

__all__ = ["open_bar"]

SECONDS_BETWEEN_LINES = 1.0
"""In a notebook, where each line is a message to the browser."""


class NotebookLine:
    """What tqdm writes to in a notebook: each line takes the place of the one before.

    The output of the cell is one line of text that is updated, which every frontend can show and a saved notebook holds
    as it was last.
    """

    encoding = "utf-8"

    def __init__(self) -> None:
        self._handle: Any = None

    def write(self, text: str) -> None:
        """Show a line.

        Parameters
        ----------
        text
            The line; what only moves the cursor of a terminal is left out.
        """
        line = text.strip()
        if not line:
            return
        content = {"text/plain": line}
        if self._handle is None:
            self._handle = import_module("IPython.display").display(content, raw=True, display_id=True)
        else:
            self._handle.update(content, raw=True)

    def flush(self) -> None:
        """Do nothing: a line is shown when it is written."""


def open_bar(total: int) -> tqdm:
    """Return a progress bar: in a terminal or a notebook one line that is updated, in a log or a pipe nothing.

    Parameters
    ----------
    total
        Number of steps.
    """
    words: dict[str, Any] = {"total": total, "desc": "Training", "unit": "step", "leave": True}
    if is_notebook():
        # A process that the kernel has forked can print, but not display.
        line = NotebookLine() if parent_process() is None else sys.stderr
        return tqdm(file=line, mininterval=SECONDS_BETWEEN_LINES, **words)
    return tqdm(file=sys.stderr, disable=None, **words)


def is_notebook() -> bool:
    """Return whether this process is the kernel of a notebook, without importing IPython where it is none."""
    if "ipykernel" not in sys.modules:
        return False
    get_shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)
    # The shell of a terminal has no kernel, even where somebody imported ipykernel.
    return getattr(get_shell(), "kernel", None) is not None
