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


def test_groups_have_lines_of_their_own(result):
    panels = pl.novelty(result, np.where(np.arange(400) < 100, "new", "known"))
    assert [text.get_text() for text in panels[1].get_legend().get_texts()] == [
        "known (300)",
        "new (100)",
        "uniform, for comparison",
    ]
    np.testing.assert_allclose([patch.get_data().values.sum() for patch in panels[0].patches], 1)


def test_groups_fit_the_cells(result):
    with pytest.raises(ValueError, match="groups has 3 entries, but there are 400 cells"):
        pl.novelty(result, ["a", "b", "c"])
    with pytest.raises(ValueError, match="400 groups, of which at most 10"):
        pl.novelty(result, np.arange(400))


def test_saves_to_the_named_file(result, tmp_path):
    pl.novelty(result, save=tmp_path / "figure.png")
    assert plt.imread(tmp_path / "figure.png").ndim == 3
