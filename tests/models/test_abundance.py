import json

import numpy as np
import pandas as pd
import pytest
from scipy.special import logsumexp
from scipy.stats import norm
from scipy.stats import t as student
from stores import stored

from scvae_ext import SCVAE
from scvae_ext.datasets import synthetic_counts

QUIET = {"enable_progress_bar": False, "accelerator": "cpu"}
FACTOR = 3.0
# Shares of a donor are Dirichlet variates with this sum of parameters.
CONCENTRATION = 150


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


def test_densities_of_some_cells_are_those_of_all_in_the_mean(model):
    """Fifteen of twenty cells of each sample, drawn without replacement: the variance of such a mean is known."""
    mean, variance = (each.astype(float) for each in model.get_latent_representation(return_dist=True))
    cell, other = 0, np.flatnonzero(np.arange(120) % 6 != 0)
    kernel = np.exp(norm.logpdf(mean[cell], mean[other], np.sqrt(variance[cell] + variance[other])).sum(1))
    kernel = kernel.reshape(-1, 5)  # donors d1 to d5 take turns
    found = []
    for seed in range(20):
        some = model.differential_abundance(sample_key="donor", num_cells_posterior=15, seed=seed, key_added=None)
        assert (some.n_cells == 15).all()
        found.append(np.exp(some.log_prob.iloc[cell, 1:]))
    of_draw = kernel.std(0, ddof=1) * np.sqrt((1 - 15 / 20) / 15)
    # Four standard errors of the mean of as many draws, for each of five samples; and they do vary.
    assert (np.abs(np.mean(found, axis=0) - kernel.mean(0)) < 4 * of_draw / np.sqrt(len(found))).all()
    assert (np.std(found, axis=0) > 0).all()


def test_reads_counts_from_disk(model, adata, tmp_path):
    expected = model.differential_abundance(sample_key="donor", key_added=None).log_prob
    with stored(adata, "backed", tmp_path) as backed:
        found = model.differential_abundance(backed, sample_key="donor", key_added=None).log_prob
    np.testing.assert_allclose(found, expected, rtol=1e-4)


N_DONORS, N_OF_DONOR = 10, 120


def test_a_sample_without_a_name_is_not_written(model, adata, tmp_path):
    adata.obs["donor"] = adata.obs["donor"].cat.rename_categories({"d1": ""})
    with pytest.raises(ValueError, match=r"a sample of adata.obs\['donor'\] would be empty, ''.*key_added=None"):
        model.differential_abundance(sample_key="donor")
    assert "" in model.differential_abundance(sample_key="donor", key_added=None).log_prob
    adata.write_h5ad(tmp_path / "adata.h5ad")


@pytest.fixture(scope="module")
def enriched():
    """Ten donors; in five of them the first of three types is three times as frequent.

    Which cells of a type a donor has is drawn at random, and the model does not know of donors.
    """
    rng = np.random.default_rng(0)
    pool = synthetic_counts(4000, 60, n_types=3, n_latent=3, library_size=600, likelihood="poisson", seed=3)
    kind, rows, donor = pool.obs["cell_type"].cat.codes.to_numpy(), [], []
    left = [list(rng.permutation(np.flatnonzero(kind == k))) for k in range(3)]
    for i in range(N_DONORS):
        share = 0.18 * (FACTOR if i < 5 else 1)
        shares = rng.dirichlet(CONCENTRATION * np.array([share, *[(1 - share) / 2] * 2]))
        for k, n in enumerate(rng.multinomial(N_OF_DONOR, shares)):
            rows += [left[k].pop() for _ in range(n)]
            donor += [i] * n
    adata = pool[rows].copy()
    adata.obs["donor"] = [f"d{i}" for i in donor]
    adata.obs["condition"] = ["case" if i < 5 else "control" for i in donor]
    SCVAE.setup_anndata(adata)
    model = SCVAE(adata, n_hidden=32, n_latent=3, gene_likelihood="poisson")
    model.train(max_steps=300, **QUIET)
    return model


@pytest.fixture(scope="module")
def kernel(enriched):
    """Density of each cell's posterior (column) at that of each other cell (row), one by one."""
    mean, variance = (each.astype(float) for each in enriched.get_latent_representation(return_dist=True))
    log_density = np.zeros((len(mean), len(mean)))
    for m, v in zip(mean.T, variance.T, strict=True):
        log_density += norm.logpdf(m[:, None], m, np.sqrt(v[:, None] + v))
    np.fill_diagonal(log_density, -np.inf)
    return np.exp(log_density)


def log_ratio_by_hand(kernel, donor, one, two):
    """The log ratio of mean densities, and its standard error, from a donor's number for each cell."""
    of_donor = np.eye(N_DONORS)[donor]
    weight = kernel @ of_donor
    n_cells = of_donor.sum(0) - of_donor
    population = weight.sum(1, keepdims=True) / n_cells.sum(1, keepdims=True)
    relative = (weight + population) / ((n_cells + 1) * population)
    groups = relative[:, one], relative[:, two]
    means, variances = np.stack([each.mean(1) for each in groups]), np.stack([each.var(1, ddof=1) for each in groups])
    of_each = (variances / means**2).sum(0) / len(one)
    of_both = (variances / means).mean(0) * (1 / means).sum(0) / len(one)
    return np.log(means[0] / means[1]), np.sqrt(np.maximum(of_each, of_both))


def by_type(values, kind):
    return np.array([np.median(values[kind == k]) for k in range(3)])


def shuffled(donor, kind, rng):
    """Give the cells of each type to the same numbers of cells of the donors, at random."""
    donor = donor.copy()
    for k in range(3):
        donor[kind == k] = rng.permutation(donor[kind == k])
    return donor


CASES, CONTROLS = list(range(5)), list(range(5, 10))


def test_recovers_by_which_factor_a_type_is_enriched(enriched, kernel):
    found = enriched.differential_abundance(sample_key="donor", groupby="condition", group1="case").ratio
    obs = enriched.adata.obs
    donor, kind = obs["donor"].str[1:].astype(int).to_numpy(), obs["cell_type"].cat.codes.to_numpy()
    ratio, error = log_ratio_by_hand(kernel, donor, CASES, CONTROLS)
    np.testing.assert_allclose(found.log_ratio, ratio, atol=1e-5)
    np.testing.assert_allclose(found.standard_error, error, rtol=1e-4)
    # What is expected: shares of types as the kernel sees them, which takes part of its weight from other types.
    numbers = pd.crosstab(donor, kind).to_numpy()
    shares = (numbers + numbers.sum(0) / numbers.sum()) / (N_OF_DONOR + 1)
    shares = np.stack([shares[CASES].mean(0), shares[CONTROLS].mean(0)])
    of_type = np.stack([kernel[:, kind == k].mean(1) for k in range(3)])
    expected = by_type(np.log(shares[0] @ of_type) - np.log(shares[1] @ of_type), kind)
    # Given how many cells of a type each donor has, which ones are the donor's is chance, whatever the latent space
    # is. The standard deviation of the median ratio by that chance comes from shuffles.
    rng = np.random.default_rng(1)
    drawn = [
        by_type(log_ratio_by_hand(kernel, shuffled(donor, kind, rng), CASES, CONTROLS)[0], kind) for _ in range(100)
    ]
    chance = np.std(drawn, axis=0, ddof=1)
    found, truth = by_type(found.log_ratio, kind), np.log(shares[0] / shares[1])
    assert (np.abs(found - expected) < 4 * chance).all()
    # States between types make ratios smaller, not larger; without any they are those of the shares.
    assert (np.abs(found) < np.abs(truth) + 4 * chance).all()
    assert (np.sign(expected) == np.sign(truth)).all()


def test_finds_nothing_between_samples_that_do_not_differ(enriched, kernel):
    """Cells are dealt to donors at random, whatever their type."""
    kind = enriched.adata.obs["cell_type"].cat.codes.to_numpy()
    rng = np.random.default_rng(2)
    dealt = [rng.permutation(np.arange(len(kind)) % N_DONORS) for _ in range(100)]
    by_hand = [log_ratio_by_hand(kernel, donor, CASES, CONTROLS) for donor in dealt]
    chance = np.std([by_type(ratio, kind) for ratio, _ in by_hand], axis=0, ddof=1)
    obs = enriched.adata.obs
    obs["dealt"], obs["half"] = [f"d{i}" for i in dealt[0]], np.where(dealt[0] < 5, "one", "two")
    options = {"sample_key": "dealt", "groupby": "half", "group1": "one", "key_added": None}
    found = enriched.differential_abundance(**options).ratio
    np.testing.assert_allclose(found.log_ratio, by_hand[0][0], atol=1e-5)
    np.testing.assert_allclose(found.standard_error, by_hand[0][1], rtol=1e-4)
    assert (np.abs(by_type(found.log_ratio, kind)) < 4 * chance).all()
    # The error is no smaller than it ought to be: as many cells as Student's distribution says are beyond its bound.
    beyond = [(np.abs(ratio) > student(8).isf(0.025) * error).mean() for ratio, error in by_hand]
    assert np.mean(beyond) < 0.05 + 4 * np.std(beyond, ddof=1) / np.sqrt(len(beyond))


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
