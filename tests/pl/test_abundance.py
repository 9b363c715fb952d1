import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from scvae_ext import pl
from scvae_ext.analysis import AbundanceRatio, DifferentialAbundance


def result(log_ratio, standard_error):
    ratio = AbundanceRatio("case", "control", np.array(log_ratio), np.array(standard_error), 3, 4)
    return DifferentialAbundance(pd.DataFrame(np.zeros((len(log_ratio), 7))), pd.Series([5] * 7), ratio)


def test_cells_that_differ_are_coloured_and_the_others_grey():
    place = np.arange(8.0).reshape(4, 2)
    axes = pl.differential_abundance(result([0.1, -2.0, 1.0, 1.0], [0.2, 0.5, 0.2, np.nan]), place)
    grey, coloured = axes.collections
    np.testing.assert_array_equal(grey.get_offsets(), place[[0, 3]])
    np.testing.assert_array_equal(coloured.get_offsets(), place[[2, 1]])
    np.testing.assert_array_equal(coloured.get_array(), [1.0, -2.0])
    reach = np.quantile([0.1, 2.0, 1.0, 1.0], 0.98)
    assert (coloured.norm.vmin, coloured.norm.vcenter, coloured.norm.vmax) == (-reach, 0, reach)
    assert axes.get_title() == "case (3 samples) over control (4 samples)"


def test_asks_for_what_it_needs():
    with pytest.raises(ValueError, match=r"shape \(3, 2\), but must be \(4, 2\)"):
        pl.differential_abundance(result([0.0] * 4, [1.0] * 4), np.zeros((3, 2)))
    with pytest.raises(ValueError, match=r"no ratio: pass groupby"):
        pl.differential_abundance(DifferentialAbundance(pd.DataFrame(), pd.Series(), None), np.zeros((0, 2)))


def test_saves_to_the_named_file(tmp_path):
    pl.differential_abundance(result([0.0, 1.0], [1.0, 0.1]), np.eye(2), save=tmp_path / "figure.png")
    assert plt.imread(tmp_path / "figure.png").ndim == 3
