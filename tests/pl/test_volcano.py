import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from scvae_ext import pl


@pytest.fixture
def result():
    rng = np.random.default_rng(0)
    change = np.concatenate([[4.0, -3.0, 2.0], 0.05 * rng.standard_normal(50)])
    probability = np.concatenate([[1.0, 0.999, 0.98], np.full(50, 0.02)])
    table = pd.DataFrame(
        {
            "proba_de": probability,
            "proba_not_de": 1 - probability,
            "delta": 0.25,
            "lfc_mean": change,
            "lfc_std": 0.2,
            "is_de_fdr_0.05": probability > 0.9,
            "comparison": "B vs Rest",
            "group1": "B",
            "group2": "Rest",
        },
        index=[f"gene{i}" for i in range(53)],
    )
    return pd.concat([table, table.assign(group1="NK", comparison="NK vs Rest")])


def test_genes_stand_at_their_change_and_improbability(result):
    axes = pl.volcano(result, "B")
    neither, up, down = (collection.get_offsets() for collection in axes.collections[:3])
    assert len(neither) == 50
    np.testing.assert_allclose(sorted(up.tolist()), [[2.0, -np.log10(0.02)], [4.0, 15.0]], rtol=1e-6)
    np.testing.assert_allclose(down, [[-3.0, 3.0]], rtol=1e-6)


def test_says_how_many_genes_differ(result):
    axes = pl.volcano(result, "B")
    assert axes.get_title() == "B vs Rest: 3 of 53 differ (FDR 0.05)"
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["not flagged (50)", "higher in B (2)", "higher in Rest (1)"]


def test_flagged_genes_of_largest_score_are_named(result):
    names = [text.get_text() for text in pl.volcano(result, "B").texts]
    assert names == ["gene0", "gene2", "gene1"]
    assert [text.get_text() for text in pl.volcano(result, "B", n_labels=2).texts] == ["gene0", "gene1"]


def test_names_do_not_overlap(result):
    many = result[result["group1"] == "B"].copy()
    many["is_de_fdr_0.05"] = True
    axes = pl.volcano(many)
    axes.figure.canvas.draw()
    boxes = [mpl.text.Text.get_window_extent(text) for text in axes.texts]
    assert len(boxes) == 12
    assert not any(one.overlaps(two) for i, one in enumerate(boxes) for two in boxes[:i])


@pytest.mark.parametrize(
    ("group", "message"), [(None, "group is missing: it holds 'B', 'NK'"), ("T", "holds 'B', 'NK'")]
)
def test_asks_for_a_group_that_exists(result, group, message):
    with pytest.raises(ValueError, match=message):
        pl.volcano(result, group)


def test_draws_no_other_kind_of_table(result):
    with pytest.raises(ValueError, match='mode="change"'):
        pl.volcano(result.drop(columns=["lfc_mean", "is_de_fdr_0.05"]), "B")


def test_saves_to_the_named_file(result, tmp_path):
    pl.volcano(result, "B", save=tmp_path / "figure.png")
    assert plt.imread(tmp_path / "figure.png").ndim == 3
