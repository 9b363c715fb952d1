"""Colours of groups of cells."""

import matplotlib as mpl

__all__ = ["GROUPS"]

GROUPS = tuple(mpl.colors.to_hex(color) for color in mpl.color_sequences["petroff10"])
"""Petroff's ten colours (2021), which stay apart under colour-vision deficiencies."""
