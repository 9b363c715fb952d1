import math
import warnings

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from known_model import KnownModel
from scipy import stats

from scvae_ext import SCVAE, Autoencoder
from scvae_ext.diagnostics import ConditionalIndependence, conditional_independence

N_GENES = 40
QUICK = {"n_samples": 100, "n_optimisation_steps": 60}


def loadings_of(n_latent, seed=1):
    return 0.7 * np.random.default_rng(seed).normal(size=(N_GENES, n_latent))


BIAS = np.random.default_rng(0).normal(size=N_GENES)


def quietly(model, adata, **options):
    """Diagnose; that a cell's state is hard to draw does not matter here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The effective sample size")
        return conditional_independence(model, adata, **QUICK, **options)


@pytest.fixture(scope="module")
def independent():
    """Results on data sets that were drawn from the very model that is diagnosed."""
    known = KnownModel(BIAS, loadings_of(2))
    results = []
    for seed in range(3):
        adata = known.simulate("nb", 150, seed=seed)
        results.append(quietly(known.model(adata, "nb"), adata, seed=seed))
    return results


@pytest.fixture(scope="module")
def dependent():
    """A module of ten genes, a fifth of them against the others, that the model has no latent dimension for."""
    loadings = np.column_stack([loadings_of(2), np.zeros(N_GENES)])
    loadings[:10, 2] = [1.5] * 8 + [-1.5] * 2
    bias = np.where(np.arange(N_GENES) < 10, 1.5, BIAS)
    adata = KnownModel(bias, loadings, theta=10.0).simulate("nb", 200)
    return quietly(KnownModel(bias, loadings[:, :2], theta=10.0).model(adata, "nb"), adata)


def test_independent_genes_are_found_so_at_the_stated_rates(independent):
    z_values = [result.excess / result.excess_error for result in independent]
    assert abs(np.mean(z_values)) < 3 / math.sqrt(len(z_values))
    assert stats.binomtest(sum(z > 1.645 for z in z_values), len(z_values), 0.05, "greater").pvalue > 0.01
    for n_false in (
        sum(len(found.pairs) > 0 for found in independent),
        sum(found.n_modules > 0 for found in independent),
    ):
        assert stats.binomtest(n_false, len(independent), 0.05, "greater").pvalue > 0.01


def test_correlations_of_independent_genes_have_their_null_distribution(independent):
    upper = np.triu_indices(N_GENES, k=1)
    correlations = np.concatenate([result.correlation[upper] for result in independent])
    t = correlations * np.sqrt(148 / (1 - np.square(correlations)))
    assert stats.kstest(t, stats.t(148).cdf).pvalue > 1e-3


def test_a_missing_dimension_is_found_with_its_genes_and_signs(dependent):
    assert dependent.n_modules == 1
    # One or two of the other genes may pass by chance.
    assert set(dependent.var_names[:10]) <= set(dependent.modules[0])
    assert len(dependent.modules[0]) <= 12
    loading = dependent.to_frame("genes")["loading"].to_numpy()
    assert (loading[:8] > 0).all()
    assert (loading[8:10] < 0).all()
    assert (np.abs(loading[10:]) < np.abs(loading[:10]).min()).all()
    assert not dependent.is_independent


def test_most_pairs_found_are_true_and_most_true_pairs_are_found(dependent):
    within = (dependent.pairs < 10).all(1)
    assert within.sum() > 0.8 * 45
    assert (~within).sum() <= 0.2 * len(within)
    frame = dependent.to_frame()
    assert frame.index.names == ["gene", "other"]
    assert frame["correlation"].abs().is_monotonic_decreasing
    same = (dependent.pairs[within] < 8).all(1) | (dependent.pairs[within] >= 8).all(1)
    np.testing.assert_array_equal(frame["correlation"].to_numpy()[within] > 0, same)
    n_correlated = dependent.to_frame("genes")["n_correlated"]
    assert n_correlated.sum() == 2 * len(frame)


def test_figures_follow_from_the_correlations(dependent):
    upper = np.triu_indices(N_GENES, k=1)
    squares = np.square(dependent.correlation[upper])
    assert dependent.excess == pytest.approx(squares.mean() - 1 / 199)
    assert dependent.rms_correlation == pytest.approx(math.sqrt(squares.mean() - 1 / 199))
    eigenvalues = dependent.to_frame("eigenvalues")
    np.testing.assert_allclose(eigenvalues["eigenvalue"][::-1], np.linalg.eigvalsh(dependent.correlation), atol=1e-8)
    assert eigenvalues["is_above_chance"].sum() == 1
    assert dependent.edge < dependent.threshold < eigenvalues["eigenvalue"][0]


def test_the_excess_is_the_mean_square_of_the_true_correlations():
    rng = np.random.default_rng(0)
    loadings = np.where(np.arange(30) < 15, 0.5, 0.0)
    truth = np.outer(loadings, loadings)[np.triu_indices(30, k=1)]
    excess = []
    for _ in range(200):
        common, own = rng.normal(size=(60, 1)), rng.normal(size=(60, 30))
        values = common * loadings + own * np.sqrt(1 - np.square(loadings))
        excess.append(result_of(np.corrcoef(values, rowvar=False), n_cells=60).excess)
    # Terms of the order of a true square over the number of cells are left out.
    expected = np.square(truth).mean()
    assert np.mean(excess) == pytest.approx(expected, abs=4 * np.std(excess) / np.sqrt(200) + 3 * expected / 60)


def test_the_result_does_not_depend_on_minibatches():
    known = KnownModel(BIAS, loadings_of(2))
    adata = known.simulate("nb", 60)
    at_once, in_parts = (
        conditional_independence(
            known.model(adata, "nb"), adata, n_samples=50, n_optimisation_steps=30, batch_size=batch_size
        )
        for batch_size in (None, 17)
    )
    np.testing.assert_allclose(at_once.correlation, in_parts.correlation, atol=1e-4)


def test_genes_with_the_most_counts_are_chosen():
    known = KnownModel(BIAS, loadings_of(2))
    adata = known.simulate("nb", 60)
    counts = adata.X.copy()
    counts[:, 3] = 0
    adata.X = counts
    found = quietly(known.model(adata, "nb"), adata, n_genes=10)
    total = pd.Series(counts.sum(0), index=adata.var_names)
    assert set(found.var_names) == set(total.nlargest(10).index)
    assert "3" not in quietly(known.model(adata, "nb"), adata, n_genes=40).var_names


def test_held_out_cells_are_the_default(counts):
    model = SCVAE(counts, n_hidden=16, n_latent=2)
    model.train(max_steps=20, train_size=0.6, enable_progress_bar=False)
    found = conditional_independence(model, **QUICK)
    assert found.n_cells == len(model.validation_indices) == 60
    named = conditional_independence(model, indices=model.validation_indices, **QUICK)
    np.testing.assert_array_equal(found.correlation, named.correlation)


@pytest.mark.parametrize(
    "options",
    [
        {"gene_likelihood": "zinb"},
        {"gene_likelihood": "poisson", "residual_rank": 1},
        {"gene_likelihood": "normal"},
        {"use_observed_lib_size": False},
        {"prior": "mixture", "n_prior_components": 3, "residual_rank": 2},
    ],
)
def test_every_model_can_be_asked(trained, options):
    found = quietly(trained(max_steps=20, **options), None, indices=np.arange(60))
    assert np.isfinite(found.correlation).all()
    assert str(found) == found.summary()


def test_states_that_cannot_be_drawn_are_warned_of():
    known = KnownModel(BIAS + 3, 3 * loadings_of(2))
    adata = known.simulate("poisson", 60)
    with pytest.warns(UserWarning, match=r"below 10 in \d+ of 60 cells .* of 10 samples"):
        conditional_independence(known.model(adata, "poisson"), adata, n_samples=10, n_optimisation_steps=1)


def result_of(correlation, n_cells=100, loadings=None, pairs=()):
    n_genes = len(correlation)
    return ConditionalIndependence(
        var_names=pd.Index([f"g{i}" for i in range(n_genes)]),
        correlation=correlation,
        eigenvalues=np.linalg.eigvalsh(correlation)[::-1],
        loadings=np.zeros((n_genes, 0)) if loadings is None else loadings,
        pairs=np.array(pairs, dtype=int).reshape(-1, 2),
        p_values=np.full(len(pairs), 1e-6),
        n_cells=n_cells,
        effective_sample_size=np.full(n_cells, 50.0),
        significance=0.05,
    )


def test_each_outcome_has_its_sentence():
    none = result_of(np.eye(20))
    assert none.verdict.startswith("No dependence between genes is left")
    assert none.rms_correlation == 0
    spread = np.full((20, 20), 0.18)
    np.fill_diagonal(spread, 1)
    weak = result_of(spread)
    assert weak.verdict.startswith("A weak dependence")
    assert f"correlations of {math.sqrt(0.18**2 - 1 / 99):.3f}" in weak.verdict
    loadings = np.zeros((20, 1))
    loadings[:8, 0] = np.linspace(0.9, 0.2, 8)
    strong = result_of(spread, loadings=loadings, pairs=[(0, 1), (0, 2)])
    assert "2 of 190 pairs correlate (false discovery rate 5%), and 1 module is beyond chance" in strong.verdict
    assert "Largest modules: g0, g1, g2, g3, g4, g5 (8 genes)." in strong.summary()
    assert strong.to_frame("genes")["module"].isna().sum() == 12


def test_an_unknown_table_is_refused(unchecked):
    with pytest.raises(ValueError, match="table='cells' is not known"):
        result_of(np.eye(3)).to_frame("cells")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"indices": np.arange(49)}, "49 cells are too few .* at least 50"),
        ({"indices": np.repeat(np.arange(30), 2)}, "more than once"),
        ({"indices": np.arange(60), "significance": 0.0}, "significance=0.0 must be a probability"),
        ({"indices": np.arange(60), "n_genes": 1}, "n_genes=1 must be a whole number of at least 2"),
        ({"indices": np.arange(60), "n_samples": 9}, "n_samples=9 must be"),
        ({}, "15 cells are too few"),
    ],
)
def test_bad_input_is_refused(trained, options, message):
    with pytest.raises(ValueError, match=message):
        conditional_independence(trained(max_steps=20), **options)


def test_one_gene_is_refused():
    adata = AnnData(np.ones((60, 1), dtype=np.float32))
    SCVAE.setup_anndata(adata)
    model = SCVAE(adata, n_latent=1)
    model.is_trained = True
    with pytest.raises(ValueError, match="counts of 1: at least 2"):
        conditional_independence(model, adata)


def test_models_without_training_or_likelihood_are_refused(counts):
    with pytest.raises(RuntimeError, match="has not been trained"):
        conditional_independence(SCVAE(counts))
    with pytest.raises(TypeError, match="Autoencoder has not"):
        conditional_independence(Autoencoder(counts))


def test_no_held_out_cells_is_an_error(counts):
    model = SCVAE(counts, n_hidden=16, n_latent=2)
    model.train(max_steps=1, train_size=1.0, enable_progress_bar=False)
    with pytest.raises(ValueError, match="holds out no cells"):
        conditional_independence(model)


@pytest.mark.parametrize(("z", "is_independent"), [(1.6, True), (1.7, False)])
def test_an_excess_is_called_one_beyond_what_chance_gives_at_the_level(z, is_independent):
    n_cells, n_genes = 100, 20
    error = math.sqrt(2 * (n_cells - 2) / ((n_cells - 1) ** 2 * (n_cells + 1)) / (n_genes * (n_genes - 1) / 2))
    correlation = np.full((n_genes, n_genes), math.sqrt(1 / (n_cells - 1) + z * error))
    # Of both signs, so that there is no module.
    signs = np.sign(np.random.default_rng(0).normal(size=(n_genes, n_genes)))
    correlation *= np.triu(signs, 1) + np.triu(signs, 1).T
    np.fill_diagonal(correlation, 1)
    found = result_of(correlation, n_cells)
    assert found.excess == pytest.approx(z * found.excess_error)
    assert found.is_independent == is_independent
