import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from scvae_ext import pl


@pytest.fixture
def adata():
    rng = np.random.default_rng(0)
    n = 60
    obs = pd.DataFrame(
        {"type": pd.Categorical(["a", "b", "c"] * 20), "depth": np.arange(n, dtype=float)},
        index=[f"cell{i}" for i in range(n)],
    )
    adata = AnnData(rng.poisson(2.0, (n, 3)).astype("float32"), obs=obs, var=pd.DataFrame(index=["g1", "g2", "g3"]))
    adata.obsm["X_scvae_umap"] = rng.normal(size=(n, 2))
    adata.obsm["X_pca_umap"] = rng.normal(size=(n, 2))
    return adata


def _drawn(panel):
    """Return the colour at each coordinate of a panel of groups."""
    points = {}
    for collection in panel.collections:
        colors = collection.get_facecolor()
        for i, xy in enumerate(collection.get_offsets()):
            points[tuple(np.asarray(xy))] = mpl.colors.to_hex(colors[i % len(colors)])
    return points


def _legend(panel):
    legend = panel.get_legend()
    labels = [text.get_text() for text in legend.get_texts()]
    return dict(zip(labels, [mpl.colors.to_hex(h.get_color()) for h in legend.legend_handles], strict=True))


def test_each_cell_has_the_colour_of_its_group_in_every_panel(adata):
    panels = pl.embedding_comparison(adata, "type")
    legend = _legend(panels[1])
    for panel, basis in zip(panels, ["X_scvae_umap", "X_pca_umap"], strict=True):
        drawn = _drawn(panel)
        for xy, group in zip(adata.obsm[basis], adata.obs["type"], strict=True):
            assert drawn[tuple(xy)] == legend[group]


def test_colours_that_scanpy_left_are_used(adata):
    adata.uns["type_colors"] = ["#ff0000", "#00ff00", "#0000ff"]
    panels = pl.embedding_comparison(adata[adata.obs["type"] != "b"], "type")
    assert _legend(panels[1]) == {"a": "#ff0000", "c": "#0000ff"}


@pytest.mark.parametrize("n_groups", [2, 10, 11, 20, 21, 45])
def test_groups_have_different_colours(adata, n_groups):
    adata.obs["group"] = [f"group {i % n_groups}" for i in range(adata.n_obs)]
    legend = _legend(pl.embedding_comparison(adata, "group")[1])
    assert len(legend) == n_groups
    assert len(set(legend.values())) == n_groups


def test_cells_without_a_value_are_drawn_as_missing(adata):
    adata.obs.loc[["cell0", "cell3"], "type"] = np.nan
    panels = pl.embedding_comparison(adata, "type")
    drawn, legend = _drawn(panels[0]), _legend(panels[1])
    assert drawn[tuple(adata.obsm["X_scvae_umap"][0])] == legend["missing"]
    assert len(drawn) == adata.n_obs
    assert legend["missing"] not in {legend[group] for group in "abc"}


@pytest.mark.parametrize("key", ["depth", "g2"])
def test_numbers_get_a_colour_bar(adata, key):
    panel = pl.embedding_comparison(adata, key, bases=["X_pca_umap"])[0]
    expected = dict(zip(map(tuple, adata.obsm["X_pca_umap"]), adata.obs_vector(key), strict=True))
    points = panel.collections[-1]
    drawn = dict(zip(map(tuple, np.asarray(points.get_offsets())), points.get_array(), strict=True))
    assert drawn == expected
    assert panel.child_axes[0].get_ylabel() == key
    assert panel.get_legend() is None


def test_panels_have_the_same_size_whatever_stands_beside_them(adata):
    adata.obs["long"] = [f"a group with a rather long name {i % 18}" for i in range(adata.n_obs)]
    panels = pl.embedding_comparison(adata, ["type", "depth", "long"])
    assert len(panels) == 6
    panels[0].figure.canvas.draw()
    sizes = np.array([panel.get_window_extent().size for panel in panels])
    np.testing.assert_allclose(sizes, sizes[0, 0], atol=1.0)


def test_the_legend_covers_no_panel(adata):
    panels = pl.embedding_comparison(adata, "type")
    panels[0].figure.canvas.draw()
    legend = panels[1].get_legend().get_window_extent()
    assert not any(legend.overlaps(panel.get_window_extent()) for panel in panels)
    assert legend.x1 <= panels[0].figure.bbox.x1


def test_titles(adata):
    assert [p.get_title() for p in pl.embedding_comparison(adata, "type")] == ["scvae_umap", "pca_umap"]
    panels = pl.embedding_comparison(adata, "type", titles=["latent", "PCA"])
    assert [p.get_title() for p in panels] == ["latent", "PCA"]


def test_saves_to_the_named_file(adata, tmp_path):
    path = tmp_path / "figure.png"
    pl.embedding_comparison(adata, "type", save=path)
    height, width, _ = plt.imread(path).shape
    assert width > 1.5 * height


def test_leaves_the_data_alone(adata):
    before = adata.copy()
    pl.embedding_comparison(adata, ["type", "depth"])
    assert list(adata.uns) == list(before.uns)
    pd.testing.assert_frame_equal(adata.obs, before.obs)


@pytest.mark.parametrize(
    ("color", "options", "message"),
    [
        ("typ", {}, r"'typ' is neither a column of obs nor a gene\. Did you mean 'type'\?"),
        ("zzz", {}, r"'zzz' is neither .* obs has \['type', 'depth'\]"),
        ("type", {"bases": ["X_umap"]}, r"obsm has no 'X_umap'; it has \['X_line', 'X_pca_umap', 'X_scvae_umap'\]"),
        ("type", {"bases": ["X_line"]}, r"obsm\['X_line'\] has shape \(60, 1\)"),
        ("type", {"titles": ["one"]}, "titles has 1 entries and bases has 2"),
        ([], {}, "must each name at least one key"),
    ],
)
def test_mistakes_are_named(adata, color, options, message):
    adata.obsm["X_line"] = np.zeros((adata.n_obs, 1))
    with pytest.raises(ValueError, match=message):
        pl.embedding_comparison(adata, color, **options)
