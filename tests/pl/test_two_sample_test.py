import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from scvae_ext import pl
from scvae_ext.diagnostics import TwoSampleTest
from scvae_ext.diagnostics._two_sample import ClassifierAuc


@pytest.fixture
def result():
    features = pd.DataFrame(
        {"auc": [0.8, 0.3, 0.49], "q_value": [1e-4, 0.01, 0.7], "p_value": [1e-5, 0.01, 0.7]},
        index=["library size", "gene_1", "gene_2"],
    )
    return TwoSampleTest(
        (ClassifierAuc("linear", 0.7, 0.02, 0.005, 100, 100), ClassifierAuc("trees", 0.75, 0.02, None, 100, 100)),
        (ClassifierAuc("linear", 0.51, 0.03, 0.4, 50, 50), ClassifierAuc("trees", 0.48, 0.03, None, 50, 50)),
        features,
    )


def test_areas_and_their_errors_stand_by_classifier(result):
    left, _ = pl.two_sample_test(result)
    assert [label.get_text() for label in left.get_yticklabels()] == ["trees", "linear"]
    generated, real = left.containers
    np.testing.assert_allclose(generated.lines[0].get_xdata(), [0.7, 0.75])
    np.testing.assert_allclose(real.lines[0].get_xdata(), [0.51, 0.48])
    lower, upper = generated.lines[1][0].get_xdata(), generated.lines[1][1].get_xdata()
    np.testing.assert_allclose(upper - lower, 4 * 0.02)


def test_features_point_where_generated_cells_lie(result):
    _, right = pl.two_sample_test(result)
    assert [label.get_text() for label in right.get_yticklabels()] == ["library size", "gene_1", "gene_2"]
    assert [bar.get_width() for bar in right.patches] == pytest.approx([0.3, -0.2, -0.01])
    assert [bar.get_alpha() for bar in right.patches] == [1.0, 1.0, 0.3]
    assert len(pl.two_sample_test(result, n_features=1)[1].patches) == 1


def test_the_title_is_the_verdict_and_the_figure_is_saved(result, tmp_path):
    left, _ = pl.two_sample_test(result, save=tmp_path / "figure.png")
    assert left.figure.get_suptitle() == "Generated cells can be told from real ones"
    assert plt.imread(tmp_path / "figure.png").ndim == 3
