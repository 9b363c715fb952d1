import json

import numpy as np
import pandas as pd
import pytest
from scipy.special import logsumexp
from scipy.stats import norm
from stores import stored

from scvae_ext import SCVAE
from scvae_ext.datasets import synthetic_counts

QUIET = {"enable_progress_bar": False, "accelerator": "cpu"}
FACTOR = 3.0


@pytest.fixture(autouse=True)
def samples(request):
    if "adata" not in request.fixturenames:
        return
    adata = request.getfixturevalue("adata")
    sample = np.arange(120) % 6
    adata.obs["donor"] = pd.Categorical([f"d{i}" for i in sample])
    adata.obs["condition"] = np.where(sample < 3, "case", "control")


def test_is_the_density_of_each_sample_at_each_cell(model, adata):
    mean, variance = (each.astype(float) for each in model.get_latent_representation(return_dist=True))
    found = model.differential_abundance(sample_key="donor").log_prob
    assert found.columns.tolist() == [f"d{i}" for i in range(6)]
    for cell, donor in ((0, 0), (0, 3), (17, 5), (119, 2)):
        members = [m for m in range(120) if m % 6 == donor and m != cell]
        terms = norm.logpdf(mean[cell], mean[members], np.sqrt(variance[cell] + variance[members])).sum(1)
        assert found.iloc[cell, donor] == pytest.approx(logsumexp(terms) - np.log(len(members)), rel=1e-6)


def test_is_written_with_where_it_came_from(model, adata):
    result = model.differential_abundance(sample_key="donor", groupby="condition", group1="case")
    pd.testing.assert_frame_equal(adata.obsm["scvae_abundance"], result.log_prob)
    np.testing.assert_array_equal(adata.obs["scvae_abundance_log_ratio"], result.ratio.log_ratio)
    np.testing.assert_array_equal(adata.obs["scvae_abundance_error"], result.ratio.standard_error)
    assert (result.ratio.n_samples1, result.ratio.n_samples2, result.ratio.group2) == (3, 3, "Rest")
    entry = json.loads(adata.uns["scvae_ext"])["results"]['obs["scvae_abundance_log_ratio"]']
    assert entry["arguments"]["sample_key"] == "donor"
    assert entry["arguments"]["group1"] == "case"


def test_the_other_way_round_is_the_negative(model):
    one = model.differential_abundance(sample_key="donor", groupby="condition", group1="case", group2="control")
    two = model.differential_abundance(sample_key="donor", groupby="condition", group1="control", key_added=None)
    np.testing.assert_allclose(one.ratio.log_ratio, -two.ratio.log_ratio, atol=1e-12)
    np.testing.assert_allclose(one.ratio.standard_error, two.ratio.standard_error)


def test_cells_come_in_the_asked_order_with_the_values_that_they_have_among_all(model):
    options = {"sample_key": "donor", "groupby": "condition", "group1": "case", "key_added": None}
    whole = model.differential_abundance(**options).to_frame()
    chosen = [50, 3, 119]
    pd.testing.assert_frame_equal(
        model.differential_abundance(indices=chosen, **options).to_frame(), whole.iloc[chosen]
    )


def test_densities_of_some_cells_are_near_those_of_all(model):
    whole = model.differential_abundance(sample_key="donor", key_added=None)
    some = model.differential_abundance(sample_key="donor", num_cells_posterior=15, key_added=None)
    assert (some.n_cells == 15).all()
    assert np.corrcoef(some.log_prob.to_numpy().ravel(), whole.log_prob.to_numpy().ravel())[0, 1] > 0.9


def test_reads_counts_from_disk(model, adata, tmp_path):
    expected = model.differential_abundance(sample_key="donor", key_added=None).log_prob
    with stored(adata, "backed", tmp_path) as backed:
        found = model.differential_abundance(backed, sample_key="donor", key_added=None).log_prob
    np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.fixture(scope="module")
def enriched():
    """Ten donors of 120 cells; in five of them the first of three types is three times as frequent."""
    rng = np.random.default_rng(0)
    pool = synthetic_counts(4000, 60, n_types=3, n_latent=3, library_size=600, likelihood="poisson", seed=3)
    kind, rows, donor = pool.obs["cell_type"].cat.codes.to_numpy(), [], []
    left = [list(rng.permutation(np.flatnonzero(kind == k))) for k in range(3)]
    for i in range(10):
        share = 0.18 * (FACTOR if i < 5 else 1)
        for k, n in enumerate(rng.multinomial(120, rng.dirichlet(150 * np.array([share, *[(1 - share) / 2] * 2])))):
            rows += [left[k].pop() for _ in range(n)]
            donor += [i] * n
    adata = pool[rows].copy()
    adata.obs["donor"] = [f"d{i}" for i in donor]
    adata.obs["condition"] = ["case" if i < 5 else "control" for i in donor]
    SCVAE.setup_anndata(adata)
    model = SCVAE(adata, n_hidden=32, n_latent=3, gene_likelihood="poisson")
    model.train(max_steps=600, **QUIET)
    return model


def by_type(model, values):
    return pd.Series(values, index=model.adata.obs_names).groupby(model.adata.obs["cell_type"], observed=True).median()


def test_recovers_by_which_factor_a_type_is_enriched(enriched):
    found = enriched.differential_abundance(sample_key="donor", groupby="condition", group1="case").ratio
    obs = enriched.adata.obs
    shares = pd.crosstab(obs["donor"], obs["cell_type"], normalize="index")
    is_case = np.array([name in {"d0", "d1", "d2", "d3", "d4"} for name in shares.index])
    truth = np.log(shares[is_case].mean() / shares[~is_case].mean())
    assert truth["type_0"] == pytest.approx(np.log(FACTOR), abs=0.25)
    ratio, error = by_type(enriched, found.log_ratio), by_type(enriched, found.standard_error)
    assert (np.abs(ratio - truth) < 2 * error).all()
    assert (np.abs(ratio - truth) < 0.3).all()
    assert ratio["type_0"] > 2 * error["type_0"]
    assert (ratio[["type_1", "type_2"]] < 0).all()


def test_finds_nothing_between_samples_that_do_not_differ(enriched):
    # Two cases and two controls in either half.
    half = {"d0": "one", "d1": "one", "d5": "one", "d6": "one", "d4": "none", "d9": "none"}
    enriched.adata.obs["half"] = enriched.adata.obs["donor"].astype(str).map(half).fillna("two")
    options = {"sample_key": "donor", "groupby": "half", "group1": "one", "group2": "two", "key_added": None}
    found = enriched.differential_abundance(**options).ratio
    assert (found.n_samples1, found.n_samples2) == (4, 4)
    assert (np.abs(by_type(enriched, found.log_ratio)) < 0.3).all()
    assert (np.abs(found.log_ratio) < 2 * found.standard_error).mean() > 0.75


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "sample_key is missing: name the column of adata.obs with the samples .*'donor'"),
        ({"sample_key": "doner"}, "Did you mean 'donor'"),
        ({"sample_key": "donor", "group1": "case"}, "group1 and group2 need groupby"),
        ({"sample_key": "donor", "groupby": "condition"}, "group1 is missing: .*'case', 'control'"),
        ({"sample_key": "donor", "groupby": "condition", "group1": "cases"}, "which holds 'case', 'control'.*'case'"),
        (
            {"sample_key": "donor", "groupby": "cell_type", "group1": "type_0"},
            "Sample 'd0' has cells of several groups",
        ),
        ({"sample_key": "donor", "bandwidth": 0}, "bandwidth=0 must be a positive number"),
        ({"sample_key": "donor", "num_cells_posterior": 0}, "num_cells_posterior=0 must be a whole number"),
    ],
)
def test_says_what_is_wrong(model, options, message):
    with pytest.raises(ValueError, match=message):
        model.differential_abundance(**options)
