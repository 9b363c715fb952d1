import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from scipy import stats
from sklearn.metrics import silhouette_score
from stores import stored

from scvae_ext import SCVAE
from scvae_ext.datasets import synthetic_counts

KINDS = ["nb", "zinb", "poisson", "normal", "simplex", "latent library", "size factor"]
every_kind = pytest.mark.parametrize("kind", KINDS)
QUIET = {"key_added": None}
CLOSE = {"rtol": 1e-3, "atol": 1e-5}


# Which cells, which genes, and what is written


@every_kind
@pytest.mark.parametrize("batch_size", [1, 7, None])
def test_cells_give_the_same_rows_whichever_others_are_asked_for(load, kind, batch_size):
    model = load(kind)
    order = np.random.default_rng(0).permutation(120)[:40]
    getters = {
        "get_latent_representation": {},
        "get_normalized_expression": {"return_numpy": True},
    }
    for getter, options in getters.items():
        everything = getattr(model, getter)(**options, **QUIET)
        some = getattr(model, getter)(indices=order, batch_size=batch_size, **options, **QUIET)
        np.testing.assert_allclose(some, everything[order], **CLOSE)
    everything, some = model.get_likelihood_parameters(), model.get_likelihood_parameters(indices=order)
    for name in everything:
        np.testing.assert_allclose(some[name], everything[name][order], **CLOSE)
    sizes = model.get_latent_library_size()
    np.testing.assert_allclose(
        model.get_latent_library_size(indices=order, batch_size=batch_size), sizes[order], **CLOSE
    )


@pytest.mark.parametrize("as_type", [list, np.array, lambda order: [f"cell_{i}" for i in order]])
def test_cells_by_position_or_name(model, as_type):
    expected = model.get_latent_representation(**QUIET)[[5, 3]]
    np.testing.assert_allclose(model.get_latent_representation(indices=as_type([5, 3])), expected, **CLOSE)


def test_cells_by_mask(model, adata):
    mask = adata.obs["batch"] == "batch_1"
    expected = model.get_latent_representation(**QUIET)[mask]
    np.testing.assert_allclose(model.get_latent_representation(indices=mask), expected, **CLOSE)


def test_genes_of_another_anndata_are_matched_by_name(model, adata):
    permuted = adata[:, np.random.default_rng(0).permutation(30)].copy()
    np.testing.assert_array_equal(model.get_latent_representation(permuted), model.get_latent_representation(**QUIET))
    here, there = model.get_normalized_expression(), model.get_normalized_expression(permuted)
    pd.testing.assert_frame_equal(here, there)
    written = pd.DataFrame(permuted.layers["scvae_normalized"], permuted.obs_names, permuted.var_names)
    pd.testing.assert_frame_equal(written[here.columns], here)


def test_missing_genes_are_an_error_or_zero_on_request(model, adata):
    fewer = adata[:, 3:].copy()
    with pytest.raises(ValueError, match=r"lacks 3 of the 30 genes.*'gene_0'"):
        model.get_latent_representation(fewer)
    with pytest.warns(UserWarning, match="3 of 30 genes are missing"):
        found = model.get_latent_representation(fewer, fill_missing_genes=True)
    zeros = adata.copy()
    zeros.X = sp.csr_matrix(zeros.X.toarray() * (np.arange(30) >= 3))
    np.testing.assert_allclose(found, model.get_latent_representation(zeros), **CLOSE)


def test_extra_genes_are_left_out(model, adata):
    more = synthetic_counts(120, 40, n_types=3, n_batches=2)
    more.X = sp.hstack([adata.X, more.X[:, 30:]]).tocsr()
    more.obs = adata.obs
    np.testing.assert_array_equal(model.get_latent_representation(more), model.get_latent_representation())
    expression = model.get_normalized_expression(more)
    assert list(expression.columns) == list(adata.var_names)
    assert list(more.obsm["scvae_normalized"].columns) == list(adata.var_names)
    assert "scvae_normalized" not in more.layers


def test_an_unseen_category_is_an_error_that_names_it(model, adata):
    other = adata.copy()
    other.obs["batch"] = other.obs["batch"].cat.rename_categories({"batch_1": "novel"})
    with pytest.raises(ValueError, match=r"'novel'.*'batch_0', 'batch_1'"):
        model.get_latent_representation(other)


def test_categories_are_matched_by_name(model, adata):
    other = adata.copy()
    other.obs["batch"] = other.obs["batch"].cat.reorder_categories(["batch_1", "batch_0"])
    pd.testing.assert_frame_equal(model.get_normalized_expression(other), model.get_normalized_expression())


def test_other_types_of_matrix_give_the_same(model, adata, tmp_path):
    expected = model.get_latent_representation(**QUIET)
    for convert in (
        sp.csc_matrix,
        sp.csr_array,
        lambda x: x.toarray(),
        lambda x: x.astype(np.int64),
        lambda x: x.astype(float),
    ):
        other = adata.copy()
        other.X = convert(adata.X)
        np.testing.assert_array_equal(model.get_latent_representation(other), expected)
    np.testing.assert_array_equal(model.get_latent_representation(adata[::-1]), expected[::-1])


@pytest.mark.parametrize(
    "ask",
    [
        lambda model, adata: model.differential_expression(adata, groupby="cell_type", group1="type_1")["lfc_mean"],
        lambda model, adata: model.differential_expression(adata, idx1="batch == 'batch_0'")["lfc_mean"],
        lambda model, adata: (
            model.differential_abundance(adata, sample_key="donor", groupby="arm", group1="a").ratio.log_ratio
        ),
        lambda model, adata: model.generate(5, adata=adata, groupby="cell_type", group="type_1").X.toarray(),
        lambda model, adata: model.get_cell_uncertainty(adata, labels_key="cell_type", key_added=None)["label_entropy"],
        lambda model, adata: (
            model.counterfactual(
                {"batch": "batch_0"}, adata, shift_within="cell_type", n_samples=2, key_added=None
            ).median
        ),
        lambda model, adata: (
            model.counterfactual_effect(
                {"batch": "batch_0"}, {"batch": "batch_1"}, adata, groupby="cell_type", n_samples=2
            ).lfc
        ),
    ],
)
def test_groups_of_a_lazy_anndata_are_those_of_the_one_in_memory(model, adata, tmp_path, ask):
    adata.obs["donor"] = [f"donor_{i % 6}" for i in range(120)]
    adata.obs["arm"] = np.where(np.arange(120) % 2, "a", "b")
    expected = ask(model, adata)
    with stored(adata, "lazy zarr", tmp_path) as lazy:
        model.adata = lazy
        np.testing.assert_allclose(ask(model, lazy), expected, rtol=1e-4, atol=1e-5)


def test_no_key_writes_nothing(model, adata):
    before = set(adata.obsm), set(adata.layers), adata.uns["scvae_ext"]
    model.get_latent_representation(key_added=None)
    model.get_normalized_expression(key_added=None)
    assert (set(adata.obsm), set(adata.layers), adata.uns["scvae_ext"]) == before


def test_another_key(model, adata):
    latent = model.get_latent_representation(key_added="X_mine")
    np.testing.assert_array_equal(adata.obsm["X_mine"], latent)
    assert "X_scvae" not in adata.obsm


def test_a_subset_of_cells_is_written_only_on_request(model, adata):
    latent = model.get_latent_representation(indices=[4, 2])
    assert "X_scvae" not in adata.obsm
    model.get_latent_representation(indices=[4, 2], write_subset=True)
    np.testing.assert_array_equal(adata.obsm["X_scvae"][[4, 2]], latent)
    assert np.isnan(np.delete(adata.obsm["X_scvae"], [2, 4], axis=0)).all()
    model.get_normalized_expression(indices=[4, 2], write_subset=True)
    assert np.isnan(adata.layers["scvae_normalized"]).all(1).sum() == 118


def test_results_survive_a_round_trip(model, adata, round_trip):
    latent = model.get_latent_representation()
    expression = model.get_normalized_expression()
    some = model.get_normalized_expression(gene_list=["gene_5", "gene_1"], key_added="some")
    again = round_trip(adata)
    np.testing.assert_array_equal(again.obsm["X_scvae"], latent)
    np.testing.assert_array_equal(again.layers["scvae_normalized"], expression)
    np.testing.assert_array_equal(again.obsm["some"], some)
    assert list(again.obsm["some"].columns) == ["gene_5", "gene_1"]
    assert again.uns["scvae_ext"] == adata.uns["scvae_ext"]
    np.testing.assert_array_equal(model.get_latent_representation(again), latent)


# Options


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"gene_likelihood": "negbin"}, ValueError, "'negbin'.*'nb', 'zinb', 'poisson', 'normal'"),
        ({"dispersion": "cell"}, ValueError, "'cell'.*'gene-batch'"),
        ({"latent_distribution": "lognormal"}, ValueError, '"normal" or "ln"'),
        ({"batch_representation": "onehot"}, ValueError, '"one-hot" or "embedding"'),
        ({"use_batch_norm": "yes"}, ValueError, 'use_batch_norm=.yes.*"encoder"'),
        ({"use_layer_norm": "both"}, ValueError, "use_batch_norm='both' and use_layer_norm='both'"),
        ({"use_observed_lib_size": "no"}, ValueError, "use_observed_lib_size='no' must be True or False"),
        ({"encode_covariates": 1}, ValueError, "encode_covariates=1"),
        ({"gene_likelihood": "poisson", "dispersion": "gene-cell"}, ValueError, "no meaning"),
        ({"gene_likelihood": "normal", "use_observed_lib_size": False}, ValueError, "normal"),
        ({"n_hiden": 3}, TypeError, "'n_hiden'. Did you mean n_hidden"),
        ({"zzz": 3}, TypeError, "'zzz'.*n_hidden, n_latent"),
    ],
)
def test_impossible_options_are_refused_at_construction(adata, options, error, message):
    with pytest.raises(error, match=message):
        SCVAE(adata, **options)


def test_dispersion_by_label_needs_labels(adata):
    SCVAE.setup_anndata(adata)
    with pytest.raises(ValueError, match="labels_key"):
        SCVAE(adata, dispersion="gene-label")


def test_size_factors_leave_no_latent_library_size(adata):
    SCVAE.setup_anndata(adata, size_factor_key="depth")
    with pytest.raises(ValueError, match="size_factor_key='depth'"):
        SCVAE(adata, use_observed_lib_size=False)


def test_fractions_are_refused_for_counts_and_taken_for_values(adata):
    adata.X = adata.X * 0.5
    SCVAE.setup_anndata(adata)
    with pytest.raises(ValueError, match="gene_likelihood='nb' needs raw counts"):
        SCVAE(adata)
    SCVAE(adata, gene_likelihood="normal", n_hidden=16)


@pytest.mark.parametrize(
    ("options", "encoder", "decoder"),
    [
        ({}, "batch_norm", "batch_norm"),
        ({"use_batch_norm": "encoder", "use_layer_norm": "decoder"}, "batch_norm", "layer_norm"),
        ({"use_batch_norm": "none", "use_layer_norm": "both"}, "layer_norm", "layer_norm"),
        ({"use_batch_norm": "none"}, None, None),
    ],
)
def test_normalisation_of_each_network(adata, options, encoder, decoder):
    module = SCVAE(adata, n_hidden=16, **options).module
    for network, expected in ((module.encoder.mlp, encoder), (module.decoder, decoder)):
        present = {kind for kind in ("batch_norm", "layer_norm") if getattr(network.layers[0], kind) is not None}
        assert present == ({expected} if expected else set())


@pytest.mark.parametrize(
    "options",
    [
        {"dispersion": "gene-label", "gene_likelihood": "zinb", "n_layers": 2, "encode_covariates": True},
        {"batch_representation": "embedding", "deeply_inject_covariates": False, "dispersion": "gene-batch"},
        {"use_batch_norm": "none", "use_layer_norm": "both", "latent_distribution": "ln"},
        {"use_observed_lib_size": False, "gene_likelihood": "zinb", "dropout_rate": 0.0},
    ],
)
def test_combinations_of_options_train(adata, options):
    SCVAE.setup_anndata(
        adata,
        batch_key="batch",
        labels_key="cell_type",
        categorical_covariate_keys=None,
        continuous_covariate_keys=["age", "depth"],
    )
    model = SCVAE(adata, n_hidden=16, n_latent=3, **options)
    model.train(max_steps=30, enable_progress_bar=False)
    assert np.isfinite(model.get_elbo())
    assert np.isfinite(model.get_normalized_expression(return_numpy=True)).all()


# Against the truth of a simulation


@pytest.fixture(scope="module")
def fitted():
    adata = synthetic_counts(500, 80, n_types=4, library_size=400, seed=2)
    SCVAE.setup_anndata(adata)
    model = SCVAE(adata, n_hidden=32, n_latent=5)
    model.train(max_steps=500, enable_progress_bar=False)
    return model


@pytest.mark.slow
def test_denoised_expression_is_closer_to_the_truth_than_the_counts(fitted):
    adata = fitted.adata
    truth = adata.layers["expression"]
    denoised = fitted.get_normalized_expression(return_numpy=True, key_added=None)
    counts = adata.X.toarray()
    shares = counts / counts.sum(1, keepdims=True)

    def mean_correlation(found):
        varying = truth.std(0) > 0
        return np.mean([np.corrcoef(found[:, gene], truth[:, gene])[0, 1] for gene in np.flatnonzero(varying)])

    raw = mean_correlation(shares + 1e-12 * np.random.default_rng(0).random(shares.shape))
    assert mean_correlation(denoised) > raw + 0.2
    assert ((denoised - truth) ** 2).sum() < 0.5 * ((shares - truth) ** 2).sum()


def test_the_latent_space_separates_the_types(fitted):
    adata = fitted.adata
    latent = fitted.get_latent_representation(key_added=None)
    assert silhouette_score(latent, adata.obs["cell_type"]) > 0.2
    raw = silhouette_score(np.log1p(adata.X.toarray()), adata.obs["cell_type"])
    assert silhouette_score(latent, adata.obs["cell_type"]) > raw


def test_dispersions_follow_the_truth(fitted):
    adata = fitted.adata
    found = np.log(fitted.get_likelihood_parameters()["dispersions"][0])
    frequent = np.asarray(adata.X.mean(0)).ravel() > 1
    assert stats.spearmanr(found[frequent], adata.var["inverse_dispersion"][frequent]).statistic > 0.5


# Zero inflation


@pytest.mark.parametrize("zero_inflation", ["gene", "logistic", "gene-cell"])
def test_constraints_of_zero_inflation_survive_saving(adata, tmp_path, zero_inflation):
    options = {"zero_inflation": zero_inflation, "zero_inflation_prior": (1.0, 9.0)}
    model = SCVAE(adata, n_hidden=16, n_latent=3, gene_likelihood="zinb", **options)
    model.train(max_steps=30, enable_progress_bar=False)
    model.save(tmp_path / "model")
    again = SCVAE.load(tmp_path / "model", adata)
    assert repr(again) == repr(model)
    one, two = (each.get_likelihood_parameters() for each in (model, again))
    np.testing.assert_array_equal(one["dropout"], two["dropout"])
    pi = one["dropout"]
    assert ((pi > 0) & (pi < 1)).all()
    assert (np.ptp(pi, axis=0) == 0).all() == (zero_inflation == "gene")
    if zero_inflation == "logistic":
        logit, log_mean = np.log(pi / (1 - pi)).ravel(), np.log(one["mean"]).ravel()
        assert np.corrcoef(logit, log_mean)[0, 1] == pytest.approx(-1, abs=1e-3)


@pytest.mark.slow
def test_a_prior_draws_pi_towards_its_mode(adata):
    means = []
    for prior in (None, (500.0, 500.0)):
        model = SCVAE(
            adata, n_hidden=16, n_latent=3, gene_likelihood="zinb", zero_inflation="gene", zero_inflation_prior=prior
        )
        model.train(max_steps=200, enable_progress_bar=False)
        means.append(model.get_likelihood_parameters()["dropout"].mean())
    assert 2 * means[0] < means[1] < 0.5


def test_impossible_zero_inflation_is_refused(adata):
    with pytest.raises(ValueError, match=r"zero_inflation='gene' has no meaning for gene_likelihood='nb'"):
        SCVAE(adata, zero_inflation="gene")
    with pytest.raises(ValueError, match=r"zero_inflation_prior=\[0\.5, 1\.0\] must be two numbers of at least 1"):
        SCVAE(adata, gene_likelihood="zinb", zero_inflation_prior=(0.5, 1.0))
