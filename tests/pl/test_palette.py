import matplotlib.colors as mcolors
import numpy as np
import pytest

from scvae_ext.pl.palette import GROUPS

# Machado, Oliveira and Fernandes, IEEE TVCG 2009: what is seen in linear RGB without red or without green cones.
DICHROMATS = {
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
}


def _lab(rgb):
    """CIE 1976 L*a*b* of linear RGB, with white at (1, 1, 1)."""
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    share = rgb @ to_xyz.T / to_xyz.sum(1)
    root = np.where(share > (6 / 29) ** 3, np.cbrt(share), share / (3 * (6 / 29) ** 2) + 4 / 29)
    x, y, z = root.T
    return np.column_stack([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def _least_difference(colors, matrix):
    rgb = np.array([mcolors.to_rgb(color) for color in colors])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    lab = _lab(np.clip(linear @ np.array(matrix).T, 0, 1))
    distance = np.linalg.norm(lab[:, None] - lab[None], axis=2)
    return distance[np.triu_indices(len(lab), 1)].min()


@pytest.mark.parametrize("kind", DICHROMATS)
def test_colours_stay_apart_without_red_or_green_cones(kind):
    assert len(set(GROUPS)) == 10
    # Of matplotlib's own ten, the nearest are 5 and 7 apart.
    assert _least_difference(GROUPS, DICHROMATS[kind]) > 12
