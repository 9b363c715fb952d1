"""Differential accessibility against simulated truth."""

import json
import warnings

import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import scipy.sparse as sp

from scvae_ext import MultiomeVAE, pl
from scvae_ext.datasets import synthetic_counts

N_CELLS, N_PEAKS, N_CHANGED = 1200, 150, 15
COLUMNS = [
    "prob_da",
    "bayes_factor",
    "effect_size",
    "emp_effect",
    "est_prob1",
    "est_prob2",
    "emp_prob1",
    "emp_prob2",
    "delta",
    "lfc_mean",
    "lfc_median",
    "lfc_std",
    "lfc_min",
    "lfc_max",
    "expected_fdr",
    "is_da_fdr",
    "comparison",
    "group1",
    "group2",
]


def with_halves(seed=0, depth_of_a=1.0):
    """Two random halves of the cells, each with a third of the rate of other peaks, and "a" with another depth."""
    adata = synthetic_counts(N_CELLS, 60, n_types=3, n_batches=2, n_peaks=N_PEAKS, seed=seed)
    rng = np.random.default_rng(seed)
    of_a = rng.permutation(N_CELLS) % 2 == 0
    adata.obs["half"] = pd.Categorical(np.where(of_a, "a", "b"))
    adata.obs["donor"] = [f"donor_{i}" for i in rng.permutation(N_CELLS) % 6]
    rate = np.minimum(2 * adata.obsm["accessibility_rate"].astype(float), 3.0)
    common = np.argsort(-rate.mean(0))[: 2 * N_CHANGED]
    # As many in both, as depth is the number of all accessible peaks.
    changed = rng.permutation(common)[:N_CHANGED]
    rate[np.ix_(of_a, changed[::2])] /= 3
    rate[np.ix_(~of_a, changed[1::2])] /= 3
    adata.obsm["truth"] = rate
    adata.uns["changed"] = [f"peak_{i}" for i in changed]
    depth = adata.obs["accessibility_depth"].to_numpy() * np.where(of_a, depth_of_a, 1.0)
    adata.obsm["accessibility"] = sp.csr_matrix(rng.random(rate.shape) < -np.expm1(-depth[:, None] * rate), dtype=float)
    return adata


def set_up(adata):
    MultiomeVAE.setup_anndata(
        adata, batch_key="batch", accessibility_obsm_key="accessibility", peak_names_uns_key="peaks"
    )
    return adata


def trained(adata, **options):
    model = MultiomeVAE(adata, n_hidden=32, n_latent=5)
    model.train(**({"max_steps": 500} | options), enable_progress_bar=False)
    return model


def flagged(table):
    return set(table.index[table["is_da_fdr"]])


@pytest.fixture(scope="module")
def model():
    return trained(set_up(with_halves()))


@pytest.fixture(scope="module")
def table(model):
    return model.differential_accessibility(groupby="half", group1="a", group2="b")


@pytest.mark.slow
class TestAgainstTruth:
    def test_finds_what_differs_and_little_else(self):
        n_false, n_flagged = 0, 0
        for seed in range(2, 8):
            adata = set_up(with_halves(seed))
            found = trained(adata).differential_accessibility(groupby="half", group1="a", group2="b")
            changed = adata.uns["changed"]
            assert len(flagged(found) & set(changed)) >= N_CHANGED - 1
            assert (found.loc[changed[::2], "lfc_mean"] < 0).all()
            assert (found.loc[changed[1::2], "lfc_mean"] > 0).all()
            n_false += len(flagged(found) - set(changed))
            n_flagged += len(flagged(found))
        # Asked for is 0.05.
        assert n_false / n_flagged < 0.1

    @pytest.mark.parametrize("depth_of_a", [1.0, 0.4])
    def test_fold_changes_are_those_of_the_truth_whatever_the_depth(self, depth_of_a):
        other = trained(set_up(with_halves(1, depth_of_a)))
        table = other.differential_accessibility(groupby="half", group1="a", group2="b")
        adata = other.adata
        of_a = (adata.obs["half"] == "a").to_numpy()
        # Probabilities at the mean depth of the model, which is that of the mean cell of both halves.
        depth = adata.obs["accessibility_depth"].to_numpy() * np.where(of_a, depth_of_a, 1.0)
        rate = adata.obsm["truth"] * depth.mean()
        truth = np.log2(-np.expm1(-rate[of_a]).mean(0)) - np.log2(-np.expm1(-rate[~of_a]).mean(0))
        changed = list(adata.uns["changed"])
        truth = pd.Series(truth, index=[f"peak_{i}" for i in range(N_PEAKS)])
        np.testing.assert_allclose(table.loc[changed, "lfc_mean"], truth[changed], atol=0.5)
        assert (table.loc[changed, "lfc_mean"] - truth[changed]).mean() == pytest.approx(0.0, abs=0.15)
        # By the number of peaks in place of the depth it would be thirteen.
        assert len(flagged(table) - set(changed)) <= 4
        # What was seen alone differs for every peak where one half was sequenced less.
        seen = np.log2(table["emp_prob1"] / table["emp_prob2"])
        assert (seen.drop(changed).mean() < -0.5) == (depth_of_a < 1)
        assert abs(table["lfc_mean"].drop(changed).mean()) < 0.05

    def test_donors_as_replicates(self, model):
        table = model.differential_accessibility(groupby="half", group1="a", group2="b", sample_key="donor")
        changed = set(model.adata.uns["changed"])
        assert len(flagged(table) & changed) >= N_CHANGED - 3
        assert len(flagged(table) - changed) <= 2


def test_columns_are_those_of_multivi_and_agree_with_what_was_seen(model, table):
    assert table.columns.tolist() == COLUMNS
    assert table["prob_da"].round(6).is_monotonic_decreasing
    adata = model.adata
    of_a = (adata.obs["half"] == "a").to_numpy()
    seen = pd.Series(np.asarray(adata.obsm["accessibility"][of_a].mean(0)).ravel(), index=adata.uns["peaks"])
    np.testing.assert_allclose(table["emp_prob1"], seen[table.index], rtol=1e-5)
    np.testing.assert_allclose(table["effect_size"], table["est_prob2"] - table["est_prob1"])
    np.testing.assert_allclose(table["emp_effect"], table["emp_prob2"] - table["emp_prob1"])
    assert table[["est_prob1", "est_prob2"]].max(axis=None) <= 1.0


def test_what_is_written_is_read_by_scanpy_and_drawn(model):
    table = model.differential_accessibility(groupby="half")
    frame = sc.get.rank_genes_groups_df(model.adata, "a", key="scvae_rank_peaks")
    of_a = table[table["group1"] == "a"].loc[frame["names"]]
    np.testing.assert_allclose(frame["logfoldchanges"], of_a["lfc_mean"], rtol=1e-5)
    entry = json.loads(model.adata.uns["scvae_ext"])["results"]['uns["scvae_rank_peaks"]']
    assert entry["arguments"]["groupby"] == "half"
    assert "a vs Rest" in pl.volcano(table, "a").get_title()


def test_cells_without_a_measurement_are_left_out():
    adata = with_halves(seed=3)
    of_first = (adata.obs["batch"] == "batch_0").to_numpy()
    adata.obsm["accessibility"] = sp.csr_matrix(adata.obsm["accessibility"].multiply(of_first[:, None]))
    with pytest.warns(UserWarning, match="genes alone"):
        set_up(adata)
    model = trained(adata, max_steps=50)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        table = model.differential_accessibility(groupby="half", group1="a")
    seen = adata.obsm["accessibility"][of_first & (adata.obs["half"] == "a").to_numpy()].mean(0)
    seen = pd.Series(np.asarray(seen).ravel(), index=adata.uns["peaks"])
    np.testing.assert_allclose(table["emp_prob1"], seen[table.index], rtol=1e-5)
    with pytest.raises(ValueError, match=r"batch_0 vs Rest has 600 and 0 cells.*600 cells in whose batch no peak was"):
        model.differential_accessibility(groupby="batch", group1="batch_0")


def test_other_cells_are_compared_by_what_was_seen_in_them(model, table):
    other = with_halves(seed=0)
    of_a = (other.obs["half"] == "a").to_numpy()
    peaks = other.obsm["accessibility"].toarray()
    peaks[:, 0] = of_a
    other.obsm["accessibility"] = peaks
    of_other = model.differential_accessibility(other, groupby="half", group1="a", group2="b", key_added=None)
    assert of_other.loc["peak_0", "lfc_mean"] > 3
    assert abs(table.loc["peak_0", "lfc_mean"]) < 2
