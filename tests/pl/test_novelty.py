import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from scvae_ext import pl
from scvae_ext.analysis import Novelty


@pytest.fixture
def result():
    rng = np.random.default_rng(0)
    uniform, low = rng.random(400), 0.05 * rng.random(400)
    return Novelty(uniform, uniform, uniform, uniform, uniform, low, pd.Index(range(400)))


def test_shares_of_bins_are_those_of_numpy(result):
    panels = pl.novelty(result)
    expected = np.histogram(result.elbo_p, 20, (0, 1))[0] / 400
    np.testing.assert_allclose(panels[0].patches[0].get_data().values, expected)
    np.testing.assert_allclose(panels[1].patches[0].get_data().values, [1.0, *[0.0] * 19])
    # The uniform share, for comparison.
    assert panels[0].get_lines()[-1].get_ydata()[0] == pytest.approx(0.05)


def test_groups_have_cumulative_curves_and_small_ones_are_named(result):
    groups = np.where(np.arange(400) < 100, "new", "known").astype(object)
    groups[:3] = "rare"
    panels = pl.novelty(result, groups)
    assert [text.get_text() for text in panels[1].get_legend().get_texts()] == [
        "known (300)",
        "new (97)",
        "uniform, for comparison",
        "fewer than 20 cells,\nleft out: rare (3)",
    ]
    known, new, uniform = panels[0].get_lines()
    # At each of the values, the share of values that are not larger.
    np.testing.assert_allclose(known.get_xdata()[1:], np.sort(result.elbo_p[100:]))
    np.testing.assert_allclose(known.get_ydata(), np.linspace(0, 1, 301))
    assert len(new.get_xdata()) == 98
    np.testing.assert_allclose(uniform.get_xdata(), uniform.get_ydata())


def test_the_legend_stands_beside_the_panels(result):
    panels = pl.novelty(result, np.repeat(["a", "b"], 200))
    panels[1].figure.canvas.draw()
    assert panels[1].get_legend().get_window_extent().x0 >= panels[1].get_window_extent().x1
    assert panels[1].get_legend().get_window_extent().x1 <= panels[1].figure.bbox.x1


def test_groups_fit_the_cells(result):
    with pytest.raises(ValueError, match="groups has 3 entries, but there are 400 cells"):
        pl.novelty(result, ["a", "b", "c"])
    with pytest.raises(ValueError, match="16 groups, of which at most 10"):
        pl.novelty(result, np.arange(400) % 16)
    with pytest.raises(ValueError, match="no group of at least 20 cells"):
        pl.novelty(result, np.arange(400))


def test_saves_to_the_named_file(result, tmp_path):
    pl.novelty(result, save=tmp_path / "figure.png")
    assert plt.imread(tmp_path / "figure.png").ndim == 3
