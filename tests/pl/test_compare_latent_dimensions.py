import numpy as np
import pandas as pd
import pytest

from scvae_ext import pl


class Comparison:
    verdict = "Residual correlations shrink."

    def to_frame(self):
        index = pd.MultiIndex.from_product([[10, 2], [0, 3]], names=["n_latent", "residual_rank"])
        return pd.DataFrame(
            {
                "rms_correlation": [0.02, 0.01, 0.06, 0.03],
                "excess_error": 1e-5,
                "n_modules": [4, 2, 9, 5],
                "difference": [-1.0, 0.0, -5.0, -2.0],
                "standard_error": 0.25,
            },
            index=index,
        )


def test_each_residual_rank_is_a_line_over_latent_dimensions():
    left, middle, right = pl.compare_latent_dimensions(Comparison())
    assert [line.get_xdata().tolist() for line in left.lines] == [[2, 10], [2, 10]]
    assert [line.get_ydata().tolist() for line in left.lines] == [[0.06, 0.02], [0.03, 0.01]]
    assert [line.get_ydata().tolist() for line in middle.lines] == [[9, 4], [5, 2]]
    segments = right.containers[0].lines[2][0].get_segments()
    np.testing.assert_allclose([segment[:, 1] for segment in segments], [[-5.5, -4.5], [-1.5, -0.5]])
    labels = [text.get_text() for text in left.get_legend().get_texts()]
    assert labels == ["chance", "0 residual factors", "3 residual factors"]


def test_the_band_of_chance_ends_at_the_root_of_the_excess(tmp_path):
    path = tmp_path / "figure.png"
    left, *_ = pl.compare_latent_dimensions(Comparison(), save=path)
    assert left.patches[0].get_height() == pytest.approx(np.sqrt(1.645e-5))
    assert path.stat().st_size > 0
