import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from scvae_ext import pl
from scvae_ext.diagnostics import Evidence


def _result(effective, n_samples=100):
    n_cells = len(effective)
    bound = -500.0 - np.arange(n_cells)
    return Evidence(
        obs_names=pd.Index([f"cell{i}" for i in range(n_cells)]),
        log_evidence=bound + 2.0 + np.arange(n_cells),
        standard_error=np.full(n_cells, 0.3),
        effective_sample_size=np.asarray(effective, dtype=float),
        elbo=bound,
        optimised_elbo=bound + 0.5 * (1 + np.arange(n_cells)),
        n_samples=n_samples,
    )


@pytest.fixture
def result():
    return _result([1.0, 3.0, 9.9, 10.0, 40.0, 100.0])


def test_cells_stand_in_the_order_of_their_gap(result):
    amortization, approximation = pl.evidence(result)[0].patches
    top, edges, floor = amortization.get_data()
    np.testing.assert_allclose(top, np.sort(result.gap)[::-1])
    np.testing.assert_allclose(floor, result.approximation_gap[::-1])
    np.testing.assert_allclose(approximation.get_data().values, floor)
    assert edges[-1] - edges[0] == 6


def test_every_cell_is_counted_once_and_those_too_low_apart(result):
    trusted, low = pl.evidence(result)[1].patches
    assert low.get_data().values.sum() == 3
    assert trusted.get_data().values.sum() == 3
    assert low.get_data().edges[-1] == pytest.approx(10)
    assert pl.evidence(result)[1].texts[0].get_text() == "below 10:\n3 of 6"


@pytest.mark.parametrize("n_samples", [10, 11, 20, 100_000])
def test_any_number_of_samples(n_samples):
    panel = pl.evidence(_result([1.0, 5.0, float(n_samples)], n_samples))[1]
    assert sum(patch.get_data().values.sum() for patch in panel.patches) == 3


def test_the_means_are_written(result):
    left, _ = pl.evidence(result)
    title = left.figure.get_suptitle()
    assert f"{result.mean:.2f}" in title
    assert "(6 cells)" in title
    labels = [text.get_text() for text in left.get_legend().get_texts()]
    assert labels == ["amortization, mean 1.75", "approximation, mean 2.75", "gap, mean 4.50"]


def test_saves_to_the_named_file(result, tmp_path):
    pl.evidence(result, save=tmp_path / "figure.png")
    height, width, _ = plt.imread(tmp_path / "figure.png").shape
    assert width > 2 * height
