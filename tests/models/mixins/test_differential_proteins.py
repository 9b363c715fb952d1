"""Differential expression of proteins against simulated truth, and where panels differ."""

import json
import warnings

import numpy as np
import pandas as pd
import pytest
import scanpy as sc

from scvae_ext import CiteVAE, pl
from scvae_ext.datasets import synthetic_counts

N_CELLS, N_PROTEINS = 900, 12
UP, DOWN = ["protein_1"], ["protein_6"]


def with_halves(seed=0, staining_of_a=1.0):
    """Cells in two random halves; "a" has half as much of one protein, "b" of another.

    Where ``staining_of_a`` is below one, cells bind more or less of every antibody, and those of "a" less on average.
    """
    adata = synthetic_counts(N_CELLS, 60, n_types=3, n_batches=2, n_proteins=N_PROTEINS, seed=seed)
    rng = np.random.default_rng(seed)
    of_a = rng.permutation(N_CELLS) % 2 == 0
    adata.obs["half"] = pd.Categorical(np.where(of_a, "a", "b"))
    adata.obs["donor"] = [f"donor_{i}" for i in rng.permutation(N_CELLS) % 6]
    counts = adata.obsm["protein"].astype(int)
    for cells, proteins in ((of_a, DOWN), (~of_a, UP)):
        counts.loc[cells, proteins] = rng.binomial(counts.loc[cells, proteins], 0.5)
    if staining_of_a < 1:
        binding = rng.uniform(0.3, 1.0, N_CELLS) * np.where(of_a, staining_of_a, 1.0)
        counts[:] = rng.binomial(counts, binding[:, None])
    adata.obsm["protein"] = counts
    return adata


def set_up(adata):
    CiteVAE.setup_anndata(adata, batch_key="batch", protein_expression_obsm_key="protein")
    return adata


def trained(adata, **options):
    model = CiteVAE(adata, n_hidden=32, n_latent=5)
    model.train(**({"max_steps": 500} | options), enable_progress_bar=False)
    return model


def flagged(table):
    return set(table.index[table["is_de_fdr_0.05"]])


@pytest.fixture(scope="module")
def model():
    return trained(set_up(with_halves()))


@pytest.fixture(scope="module")
def table(model):
    return model.differential_protein_expression(groupby="half", group1="a", group2="b")


@pytest.mark.slow
class TestAgainstTruth:
    def test_finds_what_differs_and_nothing_else(self, table):
        assert flagged(table) == {*UP, *DOWN}
        np.testing.assert_allclose(table.loc[[*UP, *DOWN], "lfc_mean"], [1.0, -1.0], atol=0.3)

    def test_groups_in_which_every_antibody_binds_less_do_not_differ(self):
        less = trained(set_up(with_halves(staining_of_a=0.6)))
        asked = {"groupby": "half", "group1": "a", "group2": "b"}
        assert flagged(less.differential_protein_expression(**asked)) == {*UP, *DOWN}
        as_they_are = less.differential_protein_expression(**asked, per_background=False)
        assert len(flagged(as_they_are)) >= N_PROTEINS - 1
        others = as_they_are.index.difference([*UP, *DOWN])
        mean = less.adata.obsm["protein"].groupby(less.adata.obs["half"], observed=True).mean()
        seen = np.log2(mean.loc["a"] / mean.loc["b"])
        np.testing.assert_allclose(as_they_are.loc[others, "lfc_mean"], seen[others], atol=0.12)

    def test_types_differ_by_the_proteins_that_they_have(self, model):
        table = model.differential_protein_expression(groupby="cell_type", group1="type_0", group2="type_1")
        adata = model.adata
        there = adata.obsm["protein_foreground"].groupby(adata.obs["cell_type"], observed=True).mean()
        share = there.loc["type_0"] - there.loc["type_1"]
        for protein, change in share[share.abs() > 0.5].items():
            assert table.loc[protein, "is_de_fdr_0.05"]
            assert np.sign(table.loc[protein, "lfc_mean"]) == np.sign(change)

    def test_donors_as_replicates(self, model):
        table = model.differential_protein_expression(groupby="half", group1="a", group2="b", sample_key="donor")
        assert flagged(table) == {*UP, *DOWN}


def test_a_fold_change_is_that_of_counts_where_background_is_not_divided_out(model, table):
    as_they_are = model.differential_protein_expression(groupby="half", group1="a", per_background=False)
    of_a = (model.adata.obs["half"] == "a").to_numpy()
    counts = model.adata.obsm["protein"]
    ratio = np.log2(counts[of_a].mean() / counts[~of_a].mean())
    np.testing.assert_allclose(as_they_are.loc[UP, "lfc_mean"], ratio[UP], atol=0.15)
    np.testing.assert_allclose(as_they_are.loc[counts.columns, "scale1"], counts[of_a].mean(), rtol=0.1)
    np.testing.assert_allclose(as_they_are.loc[counts.columns, "raw_mean1"], counts[of_a].mean(), rtol=1e-5)
    np.testing.assert_allclose(table.loc[counts.columns, "raw_mean2"], counts[~of_a].mean(), rtol=1e-5)


def test_what_is_written_is_read_by_scanpy_and_drawn(model):
    adata = model.adata
    table = model.differential_protein_expression(groupby="half")
    frame = sc.get.rank_genes_groups_df(adata, "a", key="scvae_rank_proteins")
    of_a = table[table["group1"] == "a"].loc[frame["names"]]
    np.testing.assert_allclose(frame["logfoldchanges"], of_a["lfc_mean"], rtol=1e-5)
    entry = json.loads(adata.uns["scvae_ext"])["results"]['uns["scvae_rank_proteins"]']
    assert entry["arguments"]["per_background"] is True
    assert "a vs Rest" in pl.volcano(table, "a").get_title()
    del adata.uns["scvae_rank_proteins"]
    model.differential_protein_expression(groupby="half", key_added=None)
    assert "scvae_rank_proteins" not in adata.uns


@pytest.fixture(scope="module")
def partial_panel():
    """Protein 0 was measured in the second batch alone, protein 2 in the first alone."""
    adata = with_halves(seed=2)
    of_first = (adata.obs["batch"] == "batch_0").to_numpy()
    adata.obsm["protein"] = adata.obsm["protein"].astype(float)
    adata.obsm["protein"].loc[of_first, "protein_0"] = np.nan
    adata.obsm["protein"].loc[~of_first, "protein_2"] = np.nan
    with pytest.warns(UserWarning, match="not measured there"):
        set_up(adata)
    return trained(adata, max_steps=200)


def test_cells_without_a_measurement_say_nothing(partial_panel):
    """The result for a protein is that of the cells in which it was measured."""
    adata = partial_panel.adata
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        table = partial_panel.differential_protein_expression(groupby="half", group1="a")
    of_a = (adata.obs["half"] == "a").to_numpy()
    measured = adata.obsm["protein"]["protein_0"].notna().to_numpy()
    np.testing.assert_allclose(
        table.loc["protein_0", "raw_mean1"], adata.obsm["protein"]["protein_0"][of_a & measured].mean(), rtol=1e-5
    )
    assert not table.isna().any(axis=None)
    # A tenfold change where it was not measured would change nothing; one where it was does.
    changed = adata.copy()
    changed.obsm["protein"].loc[of_a & measured, "protein_0"] *= 10
    of_changed = partial_panel.differential_protein_expression(changed, groupby="half", group1="a", key_added=None)
    assert of_changed.loc["protein_0", "lfc_mean"] > table.loc["protein_0", "lfc_mean"] + 1


def test_proteins_that_one_group_lacks_have_no_result(partial_panel):
    with pytest.warns(UserWarning, match="no result for 2 proteins .'protein_0', 'protein_2'."):
        table = partial_panel.differential_protein_expression(groupby="batch", group1="batch_0")
    lacking = table.loc[["protein_0", "protein_2"]]
    assert lacking["proba_de"].isna().all()
    assert not lacking["is_de_fdr_0.05"].any()
    assert table["is_de_fdr_0.05"].dtype == bool
    assert table.index[-2:].sort_values().tolist() == ["protein_0", "protein_2"]
    assert table.drop(index=["protein_0", "protein_2"]).notna().all(axis=None)
    frame = sc.get.rank_genes_groups_df(partial_panel.adata, "batch_0", key="scvae_rank_proteins")
    assert frame.set_index("names").loc["protein_0", "pvals"] == 1.0
    pl.volcano(table)


def test_with_samples_a_protein_has_to_be_measured_in_all(partial_panel):
    asked = {"groupby": "half", "group1": "a", "group2": "b", "sample_key": "batch"}
    with pytest.warns(UserWarning, match="no result for 2 proteins"):
        table = partial_panel.differential_protein_expression(**asked)
    assert table["proba_de"].isna().sum() == 2


def test_without_a_common_protein_there_is_an_error():
    adata = synthetic_counts(60, 20, n_batches=2, n_proteins=2)
    adata.obsm["protein"].loc[adata.obs["batch"] == "batch_0", "protein_0"] = np.nan
    adata.obsm["protein"].loc[adata.obs["batch"] == "batch_1", "protein_1"] = np.nan
    with pytest.warns(UserWarning, match="not measured there"):
        set_up(adata)
    model = trained(adata, max_steps=5)
    with pytest.raises(ValueError, match="No protein can be compared"):
        model.differential_protein_expression(groupby="batch")


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"per_background": "yes"}, "per_background"),
        ({"groupby": "halves"}, "half"),
        ({"batchid1": ["batch_0"]}, "batch_correction=True"),
        ({"delta": -1.0}, "delta"),
        ({"delta": "any"}, "delta='any' must be a log2 fold change"),
        ({"fdr_target": 2.0}, "fdr_target"),
    ],
)
def test_wrong_arguments_are_named(model, wrong, message):
    with pytest.raises(ValueError, match=message):
        model.differential_protein_expression(**({"groupby": "half"} | wrong))


def test_batches_can_be_set_alike(model):
    asked = {"groupby": "half", "group1": "a", "key_added": None}
    table = model.differential_protein_expression(**asked, batch_correction=True)
    one = model.differential_protein_expression(**asked, batch_correction=True, batchid1=["batch_1"])
    assert (table["scale1"] != one.loc[table.index, "scale1"]).any()
