import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from scvae_ext import pl
from scvae_ext.analysis import Counterfactual, CounterfactualEffect, Overlap


def _overlap(n_cells=8, n_out=2):
    ratio = np.linspace(0.5, 1.5, n_cells)
    ratio[:n_out] = 0.0
    return Overlap(ratio, np.full(n_cells, 0.5), None)


def _effect(groups=("a", "b"), n_genes=30):
    lfc = np.linspace(-1, 2, len(groups) * n_genes).reshape(len(groups), n_genes)
    return CounterfactualEffect(
        control={"condition": "ctrl"},
        treated={"condition": "stim"},
        mean_control=np.ones_like(lfc),
        mean_treated=np.exp2(lfc),
        lfc=lfc,
        half_width=np.full_like(lfc, 0.4),
        level=0.9,
        groups=pd.Index(groups),
        n_cells=np.full(len(groups), 4),
        overlap_control=_overlap(4 * len(groups), 0),
        overlap_treated=_overlap(4 * len(groups), 3),
        group_of_cell=np.repeat(groups, 4),
        var_names=pd.Index([f"gene_{i}" for i in range(n_genes)]),
    )


def test_genes_stand_in_the_order_of_their_largest_effect():
    (panel,) = pl.counterfactual_effect(_effect(), n_genes=4)
    # The effects rise along genes and groups, from -1 in the first gene of "a" to 2 in the last of "b".
    labels = [label.get_text() for label in panel.get_yticklabels()]
    assert labels == ["gene_29", "gene_28", "gene_27", "gene_26"]
    dots = [each for each in panel.collections if isinstance(each, mpl.collections.PathCollection)]
    expected = np.linspace(-1, 2, 60).reshape(2, 30)[:, [29, 28, 27, 26]]
    np.testing.assert_allclose([group.get_offsets()[:, 0] for group in dots], expected)
    assert "90 %" in panel.get_xlabel()


def test_intervals_that_hold_zero_have_hollow_dots():
    (panel,) = pl.counterfactual_effect(_effect(("only",)), n_genes=30)
    (dots,) = (each for each in panel.collections if isinstance(each, mpl.collections.PathCollection))
    hollow = (dots.get_facecolors()[:, :3] == 1).all(1)
    np.testing.assert_array_equal(hollow, np.abs(dots.get_offsets()[:, 0]) <= 0.4)
    assert panel.get_legend() is None


def test_groups_without_overlap_are_marked():
    (panel,) = pl.counterfactual_effect(_effect())
    assert [text.get_text() for text in panel.get_legend().get_texts()] == ["a (overlap 25 %)", "b"]


def test_genes_can_be_named():
    (panel,) = pl.counterfactual_effect(_effect(), ["gene_3", "gene_20", "gene_7"], n_genes=1)
    assert [label.get_text() for label in panel.get_yticklabels()] == ["gene_3", "gene_20", "gene_7"]
    (dots, _) = (each for each in panel.collections if isinstance(each, mpl.collections.PathCollection))
    np.testing.assert_allclose(dots.get_offsets()[:, 0], np.linspace(-1, 2, 60)[[3, 20, 7]])
    for genes in (["gene_3", "CD3E"], []):
        with pytest.raises(ValueError, match="not all in the result, which holds gene_"):
            pl.counterfactual_effect(_effect(), genes)


def test_overlap_of_a_whole_counterfactual():
    values = np.ones((8, 1))
    names = pd.Index(map(str, range(8))), pd.Index(["gene"])
    result = Counterfactual({"condition": "stim"}, values, values, values, 0.9, (), _overlap(), *names)
    (panel,) = pl.overlap(result)
    assert [text.get_text() for text in panel.get_legend().get_texts()] == ["seen (6)", "not seen (2)"]


@pytest.mark.usefixtures("unchecked")
def test_an_effect_has_two_overlaps():
    with pytest.raises(TypeError, match="a CounterfactualEffect has one for each setting: pass its overlap_control or"):
        pl.overlap(_effect())
    with pytest.raises(TypeError, match=r"a dict is none: pass the result of counterfactual\(\)"):
        pl.overlap({})


def test_too_many_groups_and_no_genes():
    with pytest.raises(ValueError, match="The result has 11 groups"):
        pl.counterfactual_effect(_effect([f"g{i}" for i in range(11)]))
    with pytest.raises(ValueError, match="n_genes=0"):
        pl.counterfactual_effect(_effect(), n_genes=0)


def test_cells_are_drawn_by_support_and_group():
    (panel,) = pl.overlap(_overlap(), ["x"] * 4 + ["y"] * 4)
    assert [label.get_text() for label in panel.get_yticklabels()] == ["x\n50 % seen", "y\n100 % seen"]
    assert [text.get_text() for text in panel.get_legend().get_texts()] == ["seen (6)", "not seen (2)"]
    seen, not_seen = panel.collections
    assert len(seen.get_offsets()) == 6
    assert not_seen.get_offsets()[:, 0].tolist() == [0, 0]


def test_groups_of_another_length():
    with pytest.raises(ValueError, match="3 entries, but there are 8 cells"):
        pl.overlap(_overlap(), ["x"] * 3)


def test_saves_to_the_named_file(tmp_path):
    pl.overlap(_overlap(), save=tmp_path / "overlap.png")
    pl.counterfactual_effect(_effect(), save=tmp_path / "effect.png")
    assert plt.imread(tmp_path / "overlap.png").ndim == plt.imread(tmp_path / "effect.png").ndim == 3
