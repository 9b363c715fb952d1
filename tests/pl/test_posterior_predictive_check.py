import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
from known_model import KnownModel

from scvae_ext import pl
from scvae_ext.diagnostics import posterior_predictive_check


def _result(bias, truth="nb", likelihood="nb", n_cells=60, **options):
    known = KnownModel(bias, theta=0.7)
    model = known.model(known.simulate(truth, n_cells), likelihood)
    return posterior_predictive_check(model, indices=slice(None), n_samples=40, **options)


@pytest.fixture(scope="module")
def result():
    return _result(np.linspace(-1, 4, 30), likelihood="poisson")


def test_every_gene_and_cell_is_drawn_on_its_side(result):
    variance, zeros, detected = pl.posterior_predictive_check(result)[:3]
    for panel, table, tail in (
        (variance, "genes", "variance_tail"),
        (zeros, "genes", "zeros_tail"),
        (detected, "cells", "detection_rate_tail"),
    ):
        tails = result.to_frame(table)[tail]
        expected = [((tails >= 0.025) & (tails <= 0.975)).sum(), (tails < 0.025).sum(), (tails > 0.975).sum()]
        assert [len(line.get_xdata()) for line in panel.lines[:3]] == expected
    # A Poisson has too little variance: the colour of that side is in the panel.
    assert len(variance.lines[1].get_xdata()) > 15
    colors = [mpl.colors.to_hex(line.get_color()) for line in variance.lines[:3]]
    assert len(set(colors)) == 3
    observed = np.concatenate([line.get_ydata() for line in variance.lines[:3]])
    np.testing.assert_allclose(np.sort(observed), np.sort(result.genes["variance"].observed))


def test_calibration_is_that_of_the_result(result):
    pit, coverage = pl.posterior_predictive_check(result)[4:]
    for patch, mask in zip(pit.patches, result.strata().values(), strict=True):
        assert patch.get_data().values.mean() == pytest.approx(1.0)
        np.testing.assert_allclose(patch.get_data().values, result.pit(mask).reshape(-1, 2).mean(1))
    for line, mask in zip(coverage.lines[:-1], result.strata().values(), strict=True):
        np.testing.assert_allclose(line.get_ydata(), result.coverage(mask))
    assert coverage.get_legend().get_texts()[0].get_text() == f"mean {next(iter(result.strata()))}"


def test_the_verdict_is_the_title_and_the_latent_is_named(result):
    panels = pl.posterior_predictive_check(result)
    assert panels[0].figure.get_suptitle().replace("\n", " ") == result.verdict
    assert "z from the posterior" in panels[4].get_title()
    drawn = pl.posterior_predictive_check(_result([1.0, 2.0, 3.0], latent="prior"))
    assert "z from the prior" in drawn[4].get_title()


def test_one_gene_has_no_pairs():
    panels = pl.posterior_predictive_check(_result([2.0]))
    assert panels[3].texts[0].get_text() == "no two genes\nwith varying counts"
    panels[0].figure.canvas.draw()


def test_saves_to_the_named_file(result, tmp_path):
    pl.posterior_predictive_check(result, save=tmp_path / "figure.png")
    assert plt.imread(tmp_path / "figure.png").ndim == 3
