import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from scvae_ext.cli.quality import add_clusters, add_pca, agreement, draw


@pytest.fixture(scope="module")
def three_groups():
    """Counts of three groups of cells, each with ten genes of its own."""
    rng = np.random.default_rng(1)
    group = np.repeat([0, 1, 2], 40)
    rate = np.where(np.arange(30) // 10 == group[:, None], 20.0, 1.0)
    obs = pd.DataFrame({"group": pd.Categorical(group.astype(str))}, index=[f"cell{i}" for i in range(120)])
    adata = ad.AnnData(rng.poisson(rate).astype("float32"), obs=obs)
    add_pca(adata, seed=0)
    add_clusters(adata, "X_pca", seed=0)
    return adata


def test_clear_groups_are_found(three_groups):
    ari, _ = agreement(three_groups, "group", "X_pca_leiden")
    assert ari > 0.9
    assert three_groups.obsm["X_pca_umap"].shape == (120, 2)


def test_the_resolution_follows_the_known_groups(three_groups):
    adata = three_groups.copy()
    # At resolution one, groups of forty cells without structure of their own may be split; never at the best one.
    add_clusters(adata, "X_pca", seed=0, known="group")
    assert agreement(adata, "group", "X_pca_leiden") == pytest.approx((1.0, 1.0))


def test_counts_stay_counts(three_groups):
    np.testing.assert_array_equal(three_groups.X, np.round(three_groups.X))
    assert three_groups.X.max() > 10


def test_same_seed_same_result(three_groups):
    again = three_groups.copy()
    add_pca(again, seed=0)
    add_clusters(again, "X_pca", seed=0)
    np.testing.assert_array_equal(again.obsm["X_pca_umap"], three_groups.obsm["X_pca_umap"])


def test_agreement_by_hand():
    obs = pd.DataFrame({"known": ["a", "a", "b", "b", None], "found": ["1", "1", "1", "2", "2"]}, index=list("vwxyz"))
    ari, nmi = agreement(ad.AnnData(obs=obs), "known", "found")
    # Four cells: 1 pair agrees in both, 2 pairs are together in `known`, 3 in `found`, of 6.
    assert ari == pytest.approx((1 - 2 * 3 / 6) / ((2 + 3) / 2 - 2 * 3 / 6))
    h_known, h_found = np.log(2), np.log(4) - 0.75 * np.log(3)
    h_joint = 0.5 * np.log(2) + 0.5 * np.log(4)
    assert nmi == pytest.approx((h_known + h_found - h_joint) / ((h_known + h_found) / 2))


def test_agreement_of_equal_groupings_is_one():
    obs = pd.DataFrame({"known": list("aabbc"), "found": list("22001")}, index=list("vwxyz"))
    assert agreement(ad.AnnData(obs=obs), "known", "found") == pytest.approx((1.0, 1.0))


def test_draws_a_file_and_closes_the_figure(three_groups, tmp_path):
    draw(three_groups, ["group"], {"X_pca_umap": "PCA"}, tmp_path / "picture.png")
    assert [path.name for path in tmp_path.iterdir()] == ["picture.png"]
    assert plt.imread(tmp_path / "picture.png").ndim == 3
    assert plt.get_fignums() == []
