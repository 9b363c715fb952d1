import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from scvae_ext import pl
from scvae_ext.analysis import ExpressionInterval


def _result(n_cells=150):
    median = np.random.default_rng(0).lognormal(size=(n_cells, 3))
    names = pd.Index([f"cell_{i}" for i in range(n_cells)]), pd.Index(["p", "q", "r"])
    return ExpressionInterval(median / 2, median, median * 2, 0.8, *names)


def test_cells_of_a_group_stand_in_the_order_of_their_median():
    result = _result(20)
    groups = np.array(["x", "y"] * 10)
    panels = pl.expression_intervals(result, ["r", "p"], groups)
    assert [panel.get_ylabel() for panel in panels] == ["r", "p"]
    first, second = panels[0].lines
    np.testing.assert_allclose(first.get_ydata(), np.sort(result.median[groups == "x", 2]))
    np.testing.assert_allclose(second.get_ydata(), np.sort(result.median[groups == "y", 2]))
    assert first.get_xdata().max() < second.get_xdata().min()
    assert [label.get_text() for label in panels[-1].get_xticklabels()] == ["x", "y"]
    assert "80 %" in panels[0].get_title()


def test_lines_reach_from_end_to_end():
    result = _result(5)
    (panel,) = pl.expression_intervals(result, ["q"])
    ends = np.array([segment[:, 1] for segment in panel.collections[0].get_segments()])
    order = np.argsort(result.median[:, 1])
    np.testing.assert_allclose(ends, np.column_stack([result.lower[order, 1], result.upper[order, 1]]))


def test_many_cells_are_thinned_evenly():
    result = _result(150)
    (panel,) = pl.expression_intervals(result, ["p"])
    shown = panel.lines[0].get_ydata()
    assert len(shown) == 60
    assert shown[0] == pytest.approx(result.median[:, 0].min())
    assert shown[-1] == pytest.approx(result.median[:, 0].max())


@pytest.mark.parametrize("genes", [["p", "z"], []])
def test_genes_that_are_not_there(genes):
    with pytest.raises(ValueError, match="which holds p, q, r"):
        pl.expression_intervals(_result(), genes)


def test_groups_of_another_length():
    with pytest.raises(ValueError, match="2 entries, but there are 150 cells"):
        pl.expression_intervals(_result(), ["p"], ["a", "b"])


def test_saves_to_the_named_file(tmp_path):
    pl.expression_intervals(_result(), ["p"], save=tmp_path / "figure.png")
    assert plt.imread(tmp_path / "figure.png").ndim == 3
