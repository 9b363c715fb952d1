import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from scvae_ext import SCVAE, Autoencoder, pl
from scvae_ext.diagnostics import AutoencoderComparison, Measured

VALUES = {
    "training_error": (0.5, 0.3, np.nan),
    "held_out_error": (0.55, 0.5, np.nan),
    "half_deviance": (400.0, 450.0, 600.0),
    "half_correlation": (0.3, 0.31, 0.0),
    "detour": (1.02, 1.3, 1.0),
    "largest_step": (1.1, 1.4, 1.0),
    "gap": (0.3, 0.2, np.nan),
    "generated_auc": (0.6, 0.9, 0.51),
    "generated_auc_normal": (0.6, 0.99, 0.51),
}


def make(names=tuple(VALUES)):
    rng = np.random.default_rng(0)
    measures = {
        name: Measured(vae, 0.02, autoencoder, 0.02, vae - autoencoder, 0.03, reference)
        for name, (vae, autoencoder, reference) in VALUES.items()
        if name in names
    }
    levels = pd.Index(np.linspace(0.05, 0.95, 19).round(2), name="level")
    coverage = pd.DataFrame({"vae": levels.to_numpy(), "autoencoder": levels.to_numpy() ** 1.5}, index=levels)
    made = {name: rng.normal(size=(50, 2)) for name in ("real", "vae", "autoencoder", "autoencoder_normal")}
    return AutoencoderComparison(
        measures,
        coverage,
        {"vae": 0.01, "autoencoder": 0.01},
        made,
        SCVAE.__new__(SCVAE),
        Autoencoder.__new__(Autoencoder),
        50,
        25,
    )


@pytest.fixture
def result():
    return make()


def test_values_stand_where_they_are(result):
    panels = pl.compare_autoencoder(result)
    assert len(panels) == 6
    drawn = [container.lines[0].get_ydata()[0] for panel in panels[:3] for container in panel.containers]
    names = ["training_error", "held_out_error", "half_deviance", "detour", "largest_step", "gap"]
    assert drawn == [value for name in names for value in VALUES[name][:2]]
    aucs = [container.lines[0].get_ydata()[0] for container in panels[4].containers]
    assert aucs == [0.6, 0.9, 0.99]
    for panel in panels[:3]:
        low, high = panel.get_ylim()
        values = [y for c in panel.containers for y in c.lines[0].get_ydata()]
        assert low < min(values)
        assert max(values) < high


def test_a_star_stands_at_the_better_one(result):
    panels = pl.compare_autoencoder(result)
    stars = [text.xy for text in panels[0].texts if text.get_text() == "★"]
    assert [round(x, 2) for x, _ in stars] == [0.14]
    assert "★" not in panels[1].get_xticklabels()[0].get_text()
    stars = [text.xy for text in panels[4].texts if text.get_text() == "★"]
    assert [x for x, _ in stars] == [0]


def test_all_made_cells_are_drawn(result):
    panel = pl.compare_autoencoder(result)[3]
    assert [len(points.get_offsets()) for points in panel.collections] == [50] * 4


def test_the_verdict_is_the_title(result):
    panels = pl.compare_autoencoder(result)
    assert panels[0].figure.get_suptitle().replace("\n", " ") == result.verdict


def test_without_lines_the_panel_says_so():
    result = make([name for name in VALUES if name not in ("detour", "largest_step", "gap")])
    panel = pl.compare_autoencoder(result)[2]
    assert "no lines" in panel.texts[0].get_text()


def test_saves_to_the_named_file(result, tmp_path):
    pl.compare_autoencoder(result, save=tmp_path / "figure.png")
    assert plt.imread(tmp_path / "figure.png").ndim == 3
