"""What happened in training, as one tidy table."""

from collections.abc import Iterable

import pandas as pd

__all__ = ["History"]


class History:
    """Rows of figures, one a validation; steps and epochs go on over repeated training.

    Parameters
    ----------
    rows
        Rows of earlier training.
    """

    def __init__(self, rows: Iterable[dict[str, float]] = ()) -> None:
        self.rows = [dict(row) for row in rows]

    def append(self, row: dict[str, float]) -> None:
        """Add one row.

        Parameters
        ----------
        row
            Figures by column.
        """
        self.rows.append(row)

    def last(self, column: str) -> float:
        """Return the newest value of a column, or zero where there is none.

        Parameters
        ----------
        column
            Name of the column.
        """
        return self.rows[-1][column] if self.rows else 0

    def to_frame(self) -> pd.DataFrame:
        """Return the table."""
        frame = pd.DataFrame(self.rows)
        return frame.astype({"step": int}) if len(frame) else frame
