import json
import warnings

import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import scipy.sparse as sp
import torch
from anndata import AnnData

from scvae_ext import SCVAE
from scvae_ext.models.posterior_draws import posterior_draws

N_CELLS, N_GENES, N_CHANGED = 360, 50, 8
COLUMNS = [
    "proba_de",
    "proba_not_de",
    "bayes_factor",
    "scale1",
    "scale2",
    "delta",
    "lfc_mean",
    "lfc_median",
    "lfc_std",
    "lfc_min",
    "lfc_max",
    "expected_fdr",
    "raw_mean1",
    "raw_mean2",
    "non_zeros_proportion1",
    "non_zeros_proportion2",
    "raw_normalized_mean1",
    "raw_normalized_mean2",
    "is_de_fdr_0.05",
    "comparison",
    "group1",
    "group2",
]


@pytest.fixture(scope="module")
def counts():
    """Three groups of one kind of cell: "a" has twice as much of four genes and half of four others; two batches."""
    rng = np.random.default_rng(0)
    group = np.arange(N_CELLS) % 3
    batch = (np.arange(N_CELLS) // 3) % 2
    rate = np.full((N_CELLS, N_GENES), 6.0)
    rate[group == 0, : N_CHANGED // 2] *= 4 / 3
    rate[group != 0, : N_CHANGED // 2] *= 1 / 3
    rate[group == 0, N_CHANGED // 2 : N_CHANGED] *= 1 / 3
    rate[group != 0, N_CHANGED // 2 : N_CHANGED] *= 4 / 3
    rate[batch == 1, 20:25] *= 3.0
    adata = AnnData(sp.csr_matrix(rng.poisson(rng.gamma(4.0, rate / 4.0)).astype(np.float32)))
    adata.obs["type"] = pd.Categorical(np.array(["a", "b", "c"])[group])
    adata.obs["batch"] = np.array(["one", "two"])[batch]
    adata.obs["donor"] = [f"d{i}" for i in (np.arange(N_CELLS) // 6) % 5]
    adata.obs["small"] = pd.Categorical(["few" if i < 2 else "many" if i < 180 else "others" for i in range(N_CELLS)])
    # Samples of which two hold the small group, and samples of which one holds all of "b".
    adata.obs["pair"] = [f"p{i % 2}" for i in range(N_CELLS)]
    adata.obs["alone"] = np.where(adata.obs["type"] == "b", "only", adata.obs["donor"])
    adata.obs["nothing"] = np.nan
    adata.var_names = [f"gene{i}" for i in range(N_GENES)]
    SCVAE.setup_anndata(adata, batch_key="batch")
    return adata


@pytest.fixture(scope="module")
def model(counts):
    model = SCVAE(counts, n_hidden=16, n_latent=3)
    # With the default decay so few genes leave the latent space unused.
    model.train(max_steps=80, learning_rate=1e-2, kl_warmup=0.8, weight_decay=0.0, enable_progress_bar=False)
    return model


@pytest.fixture(scope="module")
def result(model):
    return model.differential_expression(groupby="type")


def test_has_the_columns_of_scvi_tools(result):
    assert result.columns.tolist() == COLUMNS
    assert result["comparison"].unique().tolist() == ["a vs Rest", "b vs Rest", "c vs Rest"]
    assert len(result) == 3 * N_GENES
    assert not result.isna().any(axis=None)


def test_finds_what_differs_and_little_else(result):
    of_a = result[result["group1"] == "a"]
    flagged = set(of_a.index[of_a["is_de_fdr_0.05"]])
    changed = {f"gene{i}" for i in range(N_CHANGED)}
    assert flagged >= changed
    assert len(flagged - changed) <= 1
    up = of_a.loc[[f"gene{i}" for i in range(N_CHANGED // 2)], "lfc_mean"]
    down = of_a.loc[[f"gene{i}" for i in range(N_CHANGED // 2, N_CHANGED)], "lfc_mean"]
    np.testing.assert_allclose(up, 2.0, atol=0.5)
    np.testing.assert_allclose(down, -2.0, atol=0.5)


def test_probable_genes_come_first(result):
    for _, table in result.groupby("group1"):
        probability = table["proba_de"].round(6)
        assert probability.is_monotonic_decreasing
        # Of those that are certain the ones that go up by most standard deviations.
        assert (table["lfc_mean"] / table["lfc_std"])[probability == 1].is_monotonic_decreasing
        assert (table["is_de_fdr_0.05"] == (table["expected_fdr"] <= 0.05)).all()


def test_raw_columns_are_those_of_the_counts(result, counts):
    dense, chosen = counts.X.toarray(), (counts.obs["type"] == "b").to_numpy()
    table = result[result["group1"] == "b"].loc[counts.var_names]
    normalised = 1e4 * dense / dense.sum(1, keepdims=True)
    np.testing.assert_allclose(table["raw_mean1"], dense[chosen].mean(0), rtol=1e-5)
    np.testing.assert_allclose(table["raw_mean2"], dense[~chosen].mean(0), rtol=1e-5)
    np.testing.assert_allclose(table["non_zeros_proportion2"], (dense[~chosen] > 0).mean(0), rtol=1e-5)
    np.testing.assert_allclose(table["raw_normalized_mean1"], normalised[chosen].mean(0), rtol=1e-4)
    np.testing.assert_allclose(table["scale1"], normalised[chosen].mean(0) / 1e4, rtol=0.1)


def test_scanpy_reads_and_draws_the_ranking(model, counts, result):
    frame = sc.get.rank_genes_groups_df(counts, "a")
    table = result[result["group1"] == "a"].loc[frame["names"]]
    np.testing.assert_allclose(frame["logfoldchanges"], table["lfc_mean"], rtol=1e-5)
    np.testing.assert_allclose(frame["pvals_adj"], table["expected_fdr"])
    assert set(frame["names"].head(4)) == {f"gene{i}" for i in range(4)}
    with warnings.catch_warnings():
        # Some of scanpy's plots use what matplotlib and anndata are going to drop.
        warnings.simplefilter("ignore")
        sc.pl.rank_genes_groups(counts, n_genes=5, show=False)
        sc.pl.rank_genes_groups_dotplot(counts, n_genes=2, show=False, dendrogram=False)


def test_says_where_the_result_came_from(model, counts, result):
    entry = json.loads(counts.uns["scvae_ext"])["results"]['uns["rank_genes_groups"]']
    assert entry["model"] == "SCVAE"
    assert entry["arguments"]["groupby"] == "type"
    assert counts.uns["rank_genes_groups"]["params"]["method"] == "scvae_ext change"


def test_writes_nothing_without_a_key(model, counts):
    del counts.uns["rank_genes_groups"]
    model.differential_expression(groupby="type", group1="a", key_added=None)
    assert "rank_genes_groups" not in counts.uns


def test_decodes_each_cell_once_whatever_the_number_of_groups(model, monkeypatch):
    decoded = []
    decode = model.module.decode_hidden
    monkeypatch.setattr(
        model.module, "decode_hidden", lambda sample, *rest: decoded.append(sample.shape[-2]) or decode(sample, *rest)
    )
    model.differential_expression(groupby="type", key_added=None)
    assert sum(decoded) == N_CELLS


def test_does_not_depend_on_how_many_cells_are_read_at_once(model, result):
    again = model.differential_expression(groupby="type", batch_size=37, key_added=None)
    again, before = (table.rename_axis("gene").sort_values(["group1", "gene"]) for table in (again, result))
    pd.testing.assert_frame_equal(again, before, rtol=1e-3, atol=1e-5)


def test_two_groups_are_those_cells_alone(model, counts):
    table = model.differential_expression(groupby="type", group1="a", group2="c", key_added=None)
    picked = model.differential_expression(idx1="type == 'a'", idx2=counts.obs["type"] == "c", key_added=None)
    np.testing.assert_allclose(picked.loc[table.index, "proba_de"], table["proba_de"])
    assert picked["comparison"].iloc[0] == "one vs two"
    assert table["raw_mean2"].loc["gene0"] == pytest.approx(counts[counts.obs["type"] == "c"].X[:, 0].mean(), rel=1e-5)


def test_swapping_groups_changes_the_sign(model):
    one, two = (
        model.differential_expression(groupby="type", group1=first, group2=second, key_added=None)
        for first, second in (("a", "b"), ("b", "a"))
    )
    np.testing.assert_allclose(two.loc[one.index, "lfc_mean"], -one["lfc_mean"], atol=2e-3)
    np.testing.assert_allclose(two.loc[one.index, "proba_de"], one["proba_de"], atol=2e-3)


def test_batch_correction_removes_the_difference_between_batches(model, counts):
    # Group "a" of the first batch against the others of the second: genes 20 to 24 differ by batch alone.
    first = ((counts.obs["type"] == "a") & (counts.obs["batch"] == "one")).to_numpy()
    second = ((counts.obs["type"] != "a") & (counts.obs["batch"] == "two")).to_numpy()
    genes = [f"gene{i}" for i in range(20, 25)]

    def change(**options):
        table = model.differential_expression(idx1=first, idx2=second, key_added=None, **options)
        return table.loc[genes, "lfc_mean"].abs()

    plain = change()
    with pytest.warns(UserWarning, match="no batch has two cells of both groups"):
        corrected, named = change(batch_correction=True), change(batch_correction=True, batchid1=["two"])
    assert plain.mean() > 1.0
    assert corrected.mean() < 0.5 * plain.mean()
    assert named.mean() < 0.5 * plain.mean()


def test_batch_correction_compares_groups_within_batches():
    """Where one group is mostly in one batch, the model takes some of its difference for an effect of the batch."""
    rng, n_cells, n_genes = np.random.default_rng(7), 600, 60
    batch = np.arange(n_cells) % 2
    in_one = rng.random(n_cells) < np.where(batch == 1, 0.85, 0.15)
    changed = np.zeros(n_genes)
    changed[:5], changed[5:10] = 1.5, -1.5
    rate = 10 * 2.0 ** (rng.normal(0, 1, n_genes) * batch[:, None] + changed * in_one[:, None])
    adata = AnnData(sp.csr_matrix(rng.poisson(rate * rng.gamma(3.0, 1 / 3.0, rate.shape)).astype(np.float32)))
    adata.obs["group"], adata.obs["batch"] = np.where(in_one, "a", "b"), batch.astype(str)
    SCVAE.setup_anndata(adata, batch_key="batch")
    model = SCVAE(adata, n_hidden=32, n_latent=3)
    model.train(max_steps=150, enable_progress_bar=False)
    table = model.differential_expression(
        groupby="group", group1="a", group2="b", batch_correction=True, key_added=None
    ).loc[adata.var_names]
    assert np.polyfit(changed[:10], table["lfc_mean"].iloc[:10], 1)[0] == pytest.approx(1.0, abs=0.1)
    assert table["is_de_fdr_0.05"].iloc[:10].all()
    assert table["is_de_fdr_0.05"].iloc[10:].sum() <= 2


def test_a_gene_that_the_model_expects_nothing_of(counts):
    """The mean of log-normalised values is below zero, and expression none at all, of which there is no ratio."""
    adata = counts.copy()
    SCVAE.setup_anndata(adata)
    model = SCVAE(adata, n_hidden=16, n_latent=3, gene_likelihood="normal")
    model.train(max_steps=80, learning_rate=1e-2, weight_decay=0.0, enable_progress_bar=False)
    expected = model.differential_expression(groupby="type")
    with torch.no_grad():
        model.module.likelihood.location.linear.bias[0] -= 100.0
    assert (model.get_normalized_expression(gene_list=["gene0"], return_numpy=True, key_added=None) == 0).all()
    result = model.differential_expression(groupby="type")
    assert not result.isna().any(axis=None)
    of_a = [table[table["group1"] == "a"] for table in (result, expected)]
    assert 0 < of_a[0].loc["gene0", "lfc_mean"] < of_a[1].loc["gene0", "lfc_mean"]
    others = [table.drop("gene0")["lfc_mean"].sort_index() for table in of_a]
    np.testing.assert_allclose(*others, atol=0.1)


def test_samples_are_replicates(model):
    table = model.differential_expression(groupby="type", group1="a", sample_key="donor", key_added=None)
    assert table.loc[[f"gene{i}" for i in range(N_CHANGED)], "is_de_fdr_0.05"].all()
    assert table["is_de_fdr_0.05"].sum() <= N_CHANGED + 1


def test_samples_that_lack_a_group_are_named(model, counts):
    donor = counts.obs["donor"].where((counts.obs["type"] != "a") | (counts.obs["donor"] != "d4"), "d3")
    counts.obs["lacking"] = donor.to_numpy()
    with pytest.warns(UserWarning, match=r"4 samples are compared.*left out.*1 sample \('d4'\)"):
        model.differential_expression(groupby="type", group1="a", sample_key="lacking", key_added=None)


def test_intervals_and_both_directions_on_request(model):
    table = model.differential_expression(
        groupby="type", group1="a", cred_interval_lvls=[0.9], test_mode="two", key_added=None
    )
    low, high = table["lfc_confidence_interval_0.9_min"], table["lfc_confidence_interval_0.9_max"]
    assert (low <= table["lfc_median"]).all()
    assert (table["lfc_median"] <= high).all()
    assert (table["lfc_min"] <= low).all()


def test_a_group_without_a_name_is_not_written(model, counts, tmp_path):
    counts.obs["empty"] = counts.obs["type"].cat.rename_categories({"b": ""})
    try:
        with pytest.raises(ValueError, match=r"a group of adata.obs\['empty'\] would be empty, ''.*key_added=None"):
            model.differential_expression(groupby="empty")
        found = model.differential_expression(groupby="empty", key_added=None)
        assert set(found["group1"]) == {"a", "", "c"}
        model.differential_expression(groupby="empty", group1="a", group2="", key_added="named")
        counts.write_h5ad(tmp_path / "counts.h5ad")
    finally:
        del counts.obs["empty"]


@pytest.mark.usefixtures("unchecked")
def test_the_reference_is_recorded_by_name(model, counts):
    counts.obs["number"] = counts.obs["type"].cat.rename_categories([1.0, 2.0, 3.0])
    try:
        model.differential_expression(groupby="number", group1=1, group2=3.0, key_added="numbered")
        assert counts.uns["numbered"]["params"]["reference"] == "3"
        assert sc.get.rank_genes_groups_df(counts, "1", key="numbered").shape[0] == N_GENES
    finally:
        del counts.obs["number"]


@pytest.mark.usefixtures("unchecked")
def test_levels_of_intervals_may_be_an_array(model):
    table = model.differential_expression(groupby="type", group1="a", cred_interval_lvls=np.array([0.5, 0.9]))
    assert {"lfc_confidence_interval_0.5_min", "lfc_confidence_interval_0.9_max"} <= set(table)


def test_delta_is_chosen_from_the_data(model):
    table = model.differential_expression(groupby="type", group1="a", delta=None, key_added=None)
    assert table["delta"].nunique() == 1
    # Genes that differ do so by two; 0.6 of that, and never below 0.1.
    assert 0.1 <= table["delta"].iloc[0] < 2.0
    assert table.loc["gene0", "proba_de"] > 0.95


def test_vanilla_compares_cells(model, counts):
    table = model.differential_expression(groupby="type", mode="vanilla", n_samples_overall=200)
    of_a = table[table["group1"] == "a"]
    assert of_a["bayes_factor"].is_monotonic_decreasing
    np.testing.assert_allclose(of_a["proba_m1"] + of_a["proba_m2"], 1.0)
    assert of_a.loc["gene0", "proba_m1"] > 0.7 > 0.3 > of_a.loc["gene7", "proba_m1"]
    assert sc.get.rank_genes_groups_df(counts, "a")["scores"].is_monotonic_decreasing


def test_random_states_stay_as_they_were(model):
    torch_state, numpy_state = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    model.differential_expression(groupby="type", mode="vanilla", n_samples_overall=50, key_added=None)
    assert torch.equal(torch.random.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"groupby": "type", "group1": "z"}, "group1='z' is not in.*'a', 'b', 'c'"),
        ({"groupby": "small", "group1": "few"}, r"has 2 and 358 cells; each side needs 3.*'few' \(2\), 'many' \(178\)"),
        ({"groupby": "small", "group1": ["many", "few"]}, "few vs Rest has 2 and 358 cells"),
        ({"groupby": "small", "group1": "few", "sample_key": "pair"}, "few vs Rest has 2 and 358 cells"),
        ({"idx1": [0, 1]}, "one vs Rest has 2 and 358 cells"),
        ({"groupby": "nothing"}, "no cell has a value in this column"),
        ({"groupby": "type", "group1": ["a", "b"], "sample_key": "alone"}, "'b' has cells of 1 sample"),
        ({"groupby": "type", "mode": "other"}, 'use "change" or "vanilla"'),
        ({"groupby": "type", "delta": -1.0}, "delta=-1.0 must be a log2 fold change"),
        ({"groupby": "type", "fdr_target": 5}, "fdr_target=5 must lie between 0 and 1"),
        ({"groupby": "type", "test_mode": "four"}, 'use "two" or "three"'),
        ({"groupby": "type", "batchid1": ["one"]}, "need batch_correction=True"),
        ({"groupby": "type", "batch_correction": True, "batchid1": ["x"]}, "batchid1 holds 'x'.*'one', 'two'"),
        (
            {"groupby": "type", "batch_correction": True, "batchid1": ["one"], "batchid2": ["two"]},
            "Name the same ones",
        ),
        ({"groupby": "type", "mode": "vanilla", "sample_key": "donor"}, "sample_key has no meaning"),
        ({"groupby": "type", "group1": "a", "group2": "b", "sample_key": "type"}, "Each group needs two samples"),
        ({"groupby": "type", "sample_key": "dono"}, "sample_key='dono' is not a column.*Did you mean 'donor'"),
        ({"groupby": "type", "key_added": ""}, "key_added='' must be a name"),
    ],
)
def test_errors_say_what_exists(model, unchecked, arguments, message):
    with pytest.raises(ValueError, match=message):
        model.differential_expression(**arguments)


def test_small_groups_are_left_out_with_a_warning(model):
    with pytest.warns(UserWarning, match="has 2 and 358 cells.*No table for 'few'"):
        table = model.differential_expression(groupby="small", key_added=None)
    assert table["group1"].unique().tolist() == ["many", "others"]
    with pytest.warns(UserWarning, match="has 2 and 358 cells.*No table for 'few'"):
        table = model.differential_expression(groupby="small", sample_key="pair", key_added=None)
    assert table["group1"].unique().tolist() == ["many", "others"]


def test_groups_of_a_single_sample_are_left_out_with_a_warning(model):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        table = model.differential_expression(groupby="type", sample_key="alone", key_added=None)
    assert table["group1"].unique().tolist() == ["a", "c"]
    said = [str(warning.message) for warning in caught if "No table for 'b'" in str(warning.message)]
    assert len(said) == 1
    assert "'b' has cells of 1 sample ('only')" in said[0]


def test_an_untrained_model_is_refused(counts):
    with pytest.raises(RuntimeError, match="not been trained"):
        SCVAE(counts, n_hidden=4, n_latent=2).differential_expression(groupby="type")


def test_vanilla_columns_of_means_are_those_of_the_two_groups(model, result):
    vanilla = model.differential_expression(groupby="type", mode="vanilla", n_samples_overall=50, key_added=None)
    for group, table in vanilla.groupby("group1"):
        other = result[result["group1"] == group].loc[table.index]
        np.testing.assert_allclose(table[["scale1", "scale2"]], other[["scale1", "scale2"]])


def test_vanilla_counts_every_cell_of_the_rest_alike(model):
    """However small a group of the rest is: as when the same cells are picked by hand, and are one group."""
    adata = model.adata.copy()
    group = np.where(adata.obs["type"] == "a", np.where(np.arange(N_CELLS) % 2, "one", "large"), "small")
    kept = (group != "small") | (np.arange(N_CELLS) % 12 == 1)
    adata.obs["uneven"] = group
    some = adata[kept].copy()
    assert (some.obs["uneven"] == "small").sum() < (some.obs["uneven"] == "large").sum() / 1.9
    options = {"mode": "vanilla", "n_samples_overall": 4000, "key_added": None}
    by_name = model.differential_expression(some, groupby="uneven", group1="one", **options)["proba_m1"]
    by_hand = model.differential_expression(some, idx1=np.flatnonzero(some.obs["uneven"] == "one"), **options)[
        "proba_m1"
    ].loc[by_name.index]
    np.testing.assert_allclose(by_name, by_hand, atol=4 * np.sqrt(0.5 / 4000))


def test_groups_with_batches_in_common_are_compared_as_they_were_observed(model, monkeypatch):
    """No cell is decoded in a batch that it is not of, which would be another estimate, and take time."""
    asked = []

    def remember(module, cells, batches, *arguments, **options):
        asked.append(list(batches))
        return posterior_draws(module, cells, batches, *arguments, **options)

    monkeypatch.setattr("scvae_ext.models.mixins.comparison.posterior_draws", remember)
    model.differential_expression(groupby="type", batch_correction=True, key_added=None)
    assert asked == [[]]


def test_in_a_batch_that_is_named_groups_are_compared_by_its_cells_alone(model):
    options = {"groupby": "type", "group1": "a", "group2": "b", "key_added": None}
    named = model.differential_expression(batch_correction=True, batchid1=["two"], **options)
    of_two = model.adata[model.adata.obs["batch"] == "two"].copy()
    alone = model.differential_expression(of_two, **options).loc[named.index]
    for column in ("scale1", "scale2", "lfc_mean", "lfc_std"):
        np.testing.assert_allclose(named[column], alone[column], rtol=1e-3, atol=1e-6)


def test_vanilla_compares_draws_that_are_independent_between_cells(model, monkeypatch):
    """Three cells, each drawn some twenty times, have sixty states, not three."""
    drawn = []

    def remember(*arguments, **options):
        for chunk in posterior_draws(*arguments, **options):
            drawn.append(chunk.expression[0])
            yield chunk

    monkeypatch.setattr("scvae_ext.models.mixins.comparison.posterior_draws", remember)
    model.differential_expression(
        idx1=[0, 1, 2], idx2=[3, 4, 5], mode="vanilla", n_samples_overall=60, batch_size=1000, key_added=None
    )
    of_pairs = drawn[-1]
    assert len(of_pairs) == 120
    assert len(of_pairs.unique(dim=0)) == 120
