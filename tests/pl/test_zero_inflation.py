import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from scvae_ext import pl
from scvae_ext.diagnostics import ZeroInflation
from scvae_ext.diagnostics._zero_inflation_profile import PI_GRID, GeneProfiles

GRID = np.array(PI_GRID)


def _result(pi, width, p_value):
    pi, width, p_value = (np.asarray(values, dtype=float) for values in (pi, width, p_value))
    n_genes = len(pi)
    zeros = np.zeros(n_genes)
    profiles = GeneProfiles(
        pi=pi,
        lower=np.maximum(pi - width, 0),
        upper=np.minimum(pi + width, 1),
        likelihood_ratio=zeros,
        # Parabolas that fall by 1.92 at the limits.
        profile=-1.9207 * np.square((GRID - pi[:, None]) / width[:, None]),
        curvature=zeros,
        slope=zeros,
        gain=zeros,
        gain_error=zeros,
        gain_of_cells=np.zeros(3),
    )
    names = pd.Index([f"gene {number}" for number in range(n_genes)])
    return ZeroInflation(names, 300, np.linspace(0.1, 0.9, n_genes), profiles, p_value, 0.05, 0.95, 0.1)


@pytest.fixture
def result():
    return _result([0.3, 0.0, 0.2, 0.35], [0.1, 0.05, 0.5, 0.2], [1e-6, 1.0, 0.4, 1e-5])


def test_genes_stand_at_their_pi_with_the_interval_of_the_supported(result):
    left, _ = pl.zero_inflation(result)
    labels = [text.get_text() for text in left.get_legend().get_texts()]
    assert labels == ["not identifiable (1)", "not needed (1)", "supported (2)"]
    points = {entry.get_label(): entry.get_offsets().data for entry in left.collections if entry.get_label() in labels}
    np.testing.assert_allclose(points["supported (2)"], [[0.1, 0.3], [0.9, 0.35]])
    intervals = [line.get_segments() for line in left.collections if hasattr(line, "get_segments")]
    np.testing.assert_allclose(intervals[0][0][:, 1], [0.2, 0.4])


def test_profiles_cross_the_line_at_the_limits(result):
    _, right = pl.zero_inflation(result)
    curves = {line.get_label(): line.get_xydata() for line in right.lines}
    curve = curves["gene 3: supported"]
    critical = right.lines[-1].get_ydata()[0]
    inside = curve[curve[:, 1] >= critical, 0]
    assert inside.min() == pytest.approx(0.15, abs=0.01)
    assert inside.max() == pytest.approx(0.55, abs=0.01)
    assert set(curves) >= {"gene 1: not needed", "gene 2: not identifiable"}


def test_the_title_counts_the_supported(result):
    assert "supported in 2 of 4 genes" in pl.zero_inflation(result)[0].figure.get_suptitle()


def test_a_verdict_that_no_gene_has_is_left_out():
    left, right = pl.zero_inflation(_result([0.0, 0.0], [0.05, 0.05], [1.0, 1.0]))
    assert [text.get_text() for text in right.get_legend().get_texts()] == ["gene 1: not needed"]
    assert "supported (0)" in [text.get_text() for text in left.get_legend().get_texts()]


def test_legends_stay_inside_their_panels(result):
    for panel in pl.zero_inflation(result):
        panel.figure.canvas.draw()
        legend, box = panel.get_legend().get_window_extent(), panel.get_window_extent()
        assert legend.x0 >= box.x0
        assert legend.x1 <= box.x1


def test_saves_to_the_named_file(result, tmp_path):
    pl.zero_inflation(result, save=tmp_path / "figure.png")
    assert plt.imread(tmp_path / "figure.png").ndim == 3
