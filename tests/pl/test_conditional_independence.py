import dataclasses

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from scvae_ext import pl
from scvae_ext.diagnostics import ConditionalIndependence
from scvae_ext.diagnostics._dependence import correlated_pairs, modules_of


def result_of(n_cells, n_genes, n_in_module):
    rng = np.random.default_rng(0)
    values = rng.normal(size=(n_cells, n_genes))
    values[:, :n_in_module] += 1.5 * rng.normal(size=(n_cells, 1))
    correlation = np.corrcoef(values, rowvar=False)
    eigenvalues, loadings = modules_of(correlation, n_cells, 0.05)
    pairs, p_values = correlated_pairs(correlation, n_cells, 0.05)
    names = pd.Index([f"gene_{i}" for i in range(n_genes)])
    return ConditionalIndependence(
        names, correlation, eigenvalues, loadings, pairs, p_values, n_cells, np.full(n_cells, 99.0), 0.05
    )


@pytest.fixture(scope="module")
def dependent():
    return result_of(100, 60, 6)


def test_pairs_are_drawn_beside_their_null_distribution(dependent):
    left, _, _ = pl.conditional_independence(dependent)
    drawn = left.patches[0].get_data()
    upper = dependent.correlation[np.triu_indices(60, k=1)]
    assert (drawn.values * np.diff(drawn.edges)).sum() == pytest.approx(1)
    assert drawn.edges[0] < upper.min() < upper.max() < drawn.edges[-1]
    x, density = left.lines[0].get_data()
    assert (density * (x[1] - x[0])).sum() == pytest.approx(1, abs=0.01)
    assert np.sqrt((density * x**2).sum() * (x[1] - x[0])) == pytest.approx(1 / np.sqrt(99), rel=0.01)
    labels = [text.get_text() for text in left.get_legend().get_texts()]
    assert f"{len(dependent.pairs)} found" in labels


@pytest.mark.parametrize("n_genes", [60, 200])
def test_eigenvalues_are_drawn_beside_the_curve_of_independence(n_genes):
    result = result_of(100, n_genes, 6)
    _, middle, _ = pl.conditional_independence(result)
    within, above = (patch.get_data().values.sum() for patch in middle.patches)
    assert (within, above) == (min(n_genes, 99) - result.n_modules, result.n_modules)
    # The curve holds as many eigenvalues as there are genes, or as there are cells but one.
    x, expected = middle.lines[0].get_data()
    edges = middle.patches[0].get_data().edges
    per_bin = np.log(edges[1] / edges[0])
    total = np.trapezoid(expected / per_bin, np.log(x))
    assert total == pytest.approx(min(n_genes, 99), rel=0.02)
    assert middle.lines[1].get_xdata()[0] == result.threshold


def test_the_genes_of_modules_are_drawn_in_their_order(dependent):
    *_, right = pl.conditional_independence(dependent)
    shown = right.images[0].get_array()
    assert shown.shape == (6, 6)
    names = [tick.get_text() for tick in right.get_yticklabels()]
    positions = dependent.var_names.get_indexer(names)
    assert set(positions) == set(range(6))
    assert shown[0, 1] == pytest.approx(dependent.correlation[positions[0], positions[1]])


def test_no_module_is_said_so(tmp_path):
    path = tmp_path / "figure.png"
    *_, right = pl.conditional_independence(result_of(100, 20, 1), save=path)
    assert right.texts[0].get_text() == "no two genes load on modules\nbeyond chance"
    assert path.stat().st_size > 0
    assert plt.get_fignums()


def test_a_module_of_one_gene_has_no_correlations_to_draw(dependent):
    loadings = np.zeros((60, 1))
    loadings[7] = 1.0
    *_, right = pl.conditional_independence(dataclasses.replace(dependent, loadings=loadings))
    assert right.texts[0].get_text().endswith("only gene_7 does")
    assert not right.images
