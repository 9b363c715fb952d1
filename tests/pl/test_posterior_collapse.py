from itertools import pairwise

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest

from scvae_ext import pl
from scvae_ext.diagnostics import PosteriorCollapse


def _result(kl):
    kl = np.asarray(kl, dtype=float)
    return PosteriorCollapse(
        kl=kl,
        variance_of_mean=kl / 2,
        mean_variance=np.full(len(kl), 0.5),
        threshold=0.01,
        rate=kl.sum(),
        rate_error=0.0,
        mutual_information=0.75 * kl.sum(),
        mutual_information_error=0.01,
        n_cells=300,
    )


@pytest.fixture
def result():
    return _result([0.0, 1.5, 0.5])


def test_dimensions_stand_in_the_order_of_their_divergence(result):
    left, _ = pl.posterior_collapse(result)
    assert [label.get_text() for label in left.get_xticklabels()] == ["1", "2", "0"]
    assert [bar.get_height() for bar in left.patches] == [1.5, 0.5, 0.0]
    colors = [mpl.colors.to_hex(bar.get_facecolor()) for bar in left.patches]
    assert colors[0] == colors[1] != colors[2]
    labels = [text.get_text() for text in left.get_legend().get_texts()]
    assert labels == ["active (2)", "inactive (1): variance of mean at most 0.01"]


def test_the_rate_is_the_height_of_the_parts(result):
    _, right = pl.posterior_collapse(result)
    information, marginal = right.patches
    assert information.get_height() == pytest.approx(1.5)
    assert marginal.get_y() == pytest.approx(1.5)
    assert marginal.get_height() == pytest.approx(0.5)
    assert right.lines[0].get_ydata()[0] == pytest.approx(np.log(300))
    assert right.get_title() == "Rate = 2.00"


@pytest.mark.parametrize(
    ("kl", "title"),
    [
        ([0.0, 0.0], "Posterior collapse: none of the 2 latent dimensions is active"),
        ([1.0, 0.0], "Unused dimensions: 1 of 2 latent dimensions are active"),
        ([1.0, 1.0], "No posterior collapse: all 2 latent dimensions are active"),
    ],
)
def test_the_title_is_the_verdict(kl, title):
    assert pl.posterior_collapse(_result(kl))[0].figure.get_suptitle() == title


def test_many_dimensions_have_labels_that_do_not_overlap():
    left, _ = pl.posterior_collapse(_result(np.linspace(2, 0, 128)))
    left.figure.canvas.draw()
    boxes = [label.get_window_extent() for label in left.get_xticklabels()]
    assert len(boxes) > 10
    assert all(first.x1 < second.x0 for first, second in pairwise(boxes))


@pytest.mark.parametrize("n_latent", [2, 10, 40])
def test_legends_stay_inside_their_panels(n_latent):
    for panel in pl.posterior_collapse(_result(np.linspace(2, 0, n_latent))):
        panel.figure.canvas.draw()
        legend, box = panel.get_legend().get_window_extent(), panel.get_window_extent()
        assert legend.x0 >= box.x0
        assert legend.x1 <= box.x1


def test_saves_to_the_named_file(result, tmp_path):
    pl.posterior_collapse(result, save=tmp_path / "figure.png")
    assert plt.imread(tmp_path / "figure.png").ndim == 3
