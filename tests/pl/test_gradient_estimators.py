import matplotlib.pyplot as plt
import pytest

from scvae_ext import pl
from scvae_ext.diagnostics import GradientEstimate, GradientEstimators

GROUPS = ["encoder mean", "decoder"]
NOISE = {"pathwise": 0.2, "score_function": 50.0, "doubly_reparameterised": 0.3}


@pytest.fixture
def result():
    estimates = tuple(
        GradientEstimate(name, "elbo", group, 10, 2.0, bias, 0.1, (2.0 * noise) ** 2)
        for (name, noise), bias in zip(NOISE.items(), (0.1, 0.08, 0.35), strict=True)
        for group in GROUPS
    )
    return GradientEstimators(estimates, dict.fromkeys(NOISE, 0.01), 5, 100, 500, 128)


def _dots(panel):
    return {line.get_label(): line.get_xdata() for line in panel.lines if not line.get_label().startswith("_")}


def test_dots_are_noise_and_distance(result):
    left, right = pl.gradient_estimators(result)
    assert _dots(left)["pathwise"] == pytest.approx([0.2, 0.2])
    assert _dots(left)["score function"] == pytest.approx([50.0, 50.0])
    assert _dots(right)["doubly reparameterised"] == pytest.approx([3.5, 3.5])
    assert left.get_xscale() == "log"
    assert [label.get_text() for label in left.get_yticklabels()] == GROUPS


def test_each_estimator_has_a_height_of_its_own_within_its_group(result):
    left, _ = pl.gradient_estimators(result)
    heights = [line.get_ydata() for line in left.lines if not line.get_label().startswith("_")]
    assert len({float(height[0]) for height in heights}) == len(NOISE)
    assert all(abs(height[0]) < 0.5 and abs(height[1] - 1) < 0.5 for height in heights)


def test_the_limit_of_bias_is_in_sight(result):
    _, right = pl.gradient_estimators(result)
    assert right.get_xlim()[1] > 3.5
    assert GradientEstimators.bias_limit in [line.get_xdata()[0] for line in right.lines if line.get_linestyle() == ":"]


def test_the_legend_stays_inside_the_figure(result):
    figure = pl.gradient_estimators(result)[0].figure
    figure.canvas.draw()
    legend, box = figure.legends[0].get_window_extent(), figure.bbox
    assert legend.x0 >= box.x0
    assert legend.x1 <= box.x1
    assert legend.y0 >= box.y0


def test_saves_to_the_named_file(result, tmp_path):
    pl.gradient_estimators(result, save=tmp_path / "figure.png")
    assert plt.imread(tmp_path / "figure.png").ndim == 3
