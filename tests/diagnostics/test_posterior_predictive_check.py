import numpy as np
import pandas as pd
import pytest
import torch
from known_model import KnownModel
from scipy import stats
from torch.distributions import Normal

from scvae_ext import SCVAE, Autoencoder
from scvae_ext.diagnostics import posterior_predictive_check
from scvae_ext.modules import Posterior

EVERYTHING = {"indices": slice(None)}
LIKELIHOODS = ["poisson", "nb", "zinb", "normal"]


def _latent_model(n_genes=12, **options):
    rng = np.random.default_rng(3)
    return KnownModel(np.linspace(-1.5, 4, n_genes), rng.normal(0, 0.8, (n_genes, 2)), **options)


def _uniformity(pit_counts):
    """Return the p-value of each gene's histogram against the uniform distribution."""
    return stats.chisquare(pit_counts, axis=1).pvalue


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_the_generating_process_is_calibrated_from_prior_draws(likelihood):
    known = _latent_model()
    adata = known.simulate(likelihood, 800, seed=1)
    found = posterior_predictive_check(known.model(adata, likelihood), **EVERYTHING, latent="prior", n_samples=60)
    p_values = _uniformity(found.pit_counts)
    assert p_values.min() > 0.001 / len(p_values)
    assert stats.kstest(p_values, "uniform").pvalue > 0.001
    for gene in np.eye(12, dtype=bool):
        coverage = found.coverage(gene)
        error = np.sqrt(coverage.index * (1 - coverage.index) / 800)
        assert (np.abs(coverage - coverage.index) / error).max() < 4.5
    assert not found.findings
    assert "Replicated data have the means, variances and zeros of the observed ones" in found.verdict
    assert "as they should" in found.summary()


@pytest.mark.parametrize("likelihood", ["nb", "zinb"])
def test_the_generating_process_is_calibrated_from_an_exact_posterior(likelihood):
    # A decoder without loadings: the posterior is the prior.
    known = KnownModel(np.linspace(-2, 4, 200))
    adata = known.simulate(likelihood, 200, seed=2)
    found = posterior_predictive_check(known.model(adata, likelihood), **EVERYTHING)
    p_values = _uniformity(found.pit_counts)
    assert stats.kstest(p_values, "uniform").pvalue > 0.001
    # Genes are independent: those beyond 95% of the replicates are binomial, but for the resolution of 100 replicates.
    for statistic in ("mean", "variance", "zeros", "cv"):
        off = found.genes[statistic].is_too_low | found.genes[statistic].is_too_high
        assert stats.binomtest(off.sum(), 200, 0.06).pvalue > 0.001
    off = found.correlation.is_too_low | found.correlation.is_too_high
    assert off.mean() == pytest.approx(0.05, abs=0.02)
    off = found.cells["mean"].is_too_low | found.cells["mean"].is_too_high
    assert stats.binomtest(off.sum(), 200, 0.06).pvalue > 0.001
    assert not found.findings


def test_replicated_statistics_have_their_expectation():
    known = KnownModel(np.linspace(0, 4, 30), theta=1.5)
    adata = known.simulate("nb", 400, size_sd=0.0)
    found = posterior_predictive_check(known.model(adata, "nb"), **EVERYTHING, n_samples=200).genes
    mean = np.log1p(np.exp(known.bias))
    zeros = (1.5 / (1.5 + mean)) ** 1.5
    variance = (mean + mean**2 / 1.5) * (1 - 1 / 400)
    np.testing.assert_allclose(found["mean"].expected, mean, rtol=0.02)
    np.testing.assert_allclose(found["zeros"].expected, zeros, atol=0.005)
    np.testing.assert_allclose(found["variance"].expected, variance, rtol=0.03)
    # 95% of binomial shares of zeros.
    bounds = stats.binom.interval(0.95, 400, zeros)
    np.testing.assert_allclose(400 * found["zeros"].lower, bounds[0], atol=5)
    np.testing.assert_allclose(400 * found["zeros"].upper, bounds[1], atol=5)
    observed = adata.X
    np.testing.assert_allclose(found["variance"].observed, observed.var(0, dtype=float), rtol=1e-6)
    np.testing.assert_allclose(found["zeros"].observed, (observed == 0).mean(0))


@pytest.mark.parametrize("latent", ["prior", "posterior"])
def test_a_poisson_on_overdispersed_counts_has_too_little_variance_and_too_few_zeros(latent):
    known = _latent_model(30, theta=1.0)
    adata = known.simulate("nb", 300)
    found = posterior_predictive_check(known.model(adata, "poisson"), **EVERYTHING, latent=latent)
    assert set(found.findings) >= {"too little variance", "too few zeros"}
    assert not {"too much variance", "too many zeros"} & set(found.findings)
    assert "too few zeros in" in found.verdict
    assert found.coverage(found.strata()["above 1"]).loc[0.9] < 0.85
    assert "predictions are too narrow" in found.summary()
    # A U: the outer tenths hold more than a tenth each.
    pit = found.pit(found.strata()["above 1"])
    assert min(pit[:4].mean(), pit[-4:].mean()) > 1.3


def test_an_overdispersed_model_of_poisson_counts_has_too_much_variance_and_too_many_zeros():
    known = KnownModel(np.linspace(0, 4, 40), theta=1.0)
    adata = known.simulate("poisson", 300)
    found = posterior_predictive_check(known.model(adata, "nb"), **EVERYTHING)
    assert set(found.findings) == {"too much variance", "too many zeros"}
    assert found.coverage(found.strata()["above 1"]).loc[0.9] > 0.95
    assert "predictions are too wide" in found.summary()


def test_missing_inflation_shows_as_too_few_zeros():
    known = KnownModel(np.linspace(1, 4, 40), theta=3.0, pi=0.3)
    adata = known.simulate("zinb", 300)
    assert "too few zeros" in posterior_predictive_check(known.model(adata, "nb"), **EVERYTHING).findings
    assert not posterior_predictive_check(known.model(adata, "zinb"), **EVERYTHING).findings


@pytest.mark.parametrize(("true_loadings", "loadings", "side"), [(0.0, 2.0, "is_too_high"), (2.0, 0.0, "is_too_low")])
def test_correlations_that_the_model_adds_or_misses(true_loadings, loadings, side):
    bias = np.full(8, 3.0)
    adata = KnownModel(bias, np.full((8, 1), true_loadings)).simulate("poisson", 400, size_sd=0.0)
    model = KnownModel(bias, np.full((8, 1), loadings)).model(adata, "poisson")
    found = posterior_predictive_check(model, **EVERYTHING, latent="prior", n_samples=50)
    assert getattr(found.correlation, side).all()
    observed = np.corrcoef(np.log1p(adata.X.astype(float)).T)
    np.testing.assert_allclose(found.correlation.observed, observed[np.triu_indices(8, 1)], atol=1e-5)


def test_the_posterior_of_the_same_cells_is_optimistic_by_as_much_as_theory_says():
    # One gene, y = z + b + noise of variance one: y has been seen, so that predictions are off by half the noise alone.
    known = KnownModel([7.0], [[1.0]], noise=1.0)
    adata = known.simulate("normal", 4000, size_sd=0.0)
    model = known.model(adata, "normal")

    def encode(minibatch):
        value = minibatch.counts.dense().log1p()
        return Posterior(Normal((value - 7.0) / 2, torch.full_like(value, 0.5**0.5)), None)

    model.module.encode = encode
    coverage = posterior_predictive_check(model, **EVERYTHING).coverage()
    # u = Phi((y - b) / sqrt(6)), with a standard deviation of the argument of sqrt(1/3).
    truth = 2 * stats.norm.cdf(np.sqrt(3) * stats.norm.ppf(0.5 + coverage.index / 2)) - 1
    np.testing.assert_allclose(coverage, truth, atol=0.025)
    honest = posterior_predictive_check(model, **EVERYTHING, latent="prior").coverage()
    np.testing.assert_allclose(honest, honest.index, atol=0.025)


def test_one_sample_at_a_time_gives_the_same_kind_of_result(monkeypatch):
    known = _latent_model()
    adata = known.simulate("nb", 60)
    model = known.model(adata, "nb")
    whole = posterior_predictive_check(model, **EVERYTHING, n_samples=400)
    monkeypatch.setattr("scvae_ext.models.cells.MAX_ENTRIES", 60 * 12)
    parts = posterior_predictive_check(model, **EVERYTHING, n_samples=400, batch_size=7)
    for units in ("genes", "cells"):
        for name, statistic in getattr(whole, units).items():
            other = getattr(parts, units)[name]
            np.testing.assert_allclose(statistic.observed, other.observed, rtol=1e-6)
            spread = np.maximum(statistic.upper - statistic.lower, 1e-6)
            assert np.nanmax(np.abs(statistic.expected - other.expected) / spread) < 0.25
    np.testing.assert_allclose(whole.correlation.observed, parts.correlation.observed, atol=1e-5)
    assert whole.pit_counts.sum() == parts.pit_counts.sum() == 60 * 12


def test_random_state_and_module_are_left_alone_and_seeds_decide():
    known = _latent_model()
    adata = known.simulate("nb", 30)
    model = known.model(adata, "nb")
    model.module.train()
    state = torch.get_rng_state()
    first, same, other = (
        posterior_predictive_check(model, **EVERYTHING, n_samples=40, seed=seed).to_frame() for seed in (1, 1, 2)
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert model.module.training
    pd.testing.assert_frame_equal(first, same)
    assert (first["mean_replicated"] != other["mean_replicated"]).any()


def test_latent_library_sizes_are_drawn():
    known = KnownModel(np.full(20, 1.0))
    adata = known.simulate("poisson", 150, size_sd=0.0)
    SCVAE.setup_anndata(adata)
    model = SCVAE(adata, gene_likelihood="poisson", n_hidden=8, n_latent=1, use_observed_lib_size=False)
    model.is_trained = True
    with torch.no_grad():
        model.module.library_log_means.fill_(np.log(30.0))
        model.module.library_log_variances.fill_(1.0)
    # Totals of a log-normal library size of variance one spread far more than those of Poisson counts.
    wide = posterior_predictive_check(model, **EVERYTHING, latent="prior", n_samples=40)
    assert wide.cells["mean"].upper.mean() > 3 * wide.cells["mean"].expected.mean()


def test_tables():
    known = _latent_model()
    adata = known.simulate("nb", 50)
    found = posterior_predictive_check(known.model(adata, "nb"), **EVERYTHING, n_samples=40, n_correlated_genes=4)
    genes, cells, pairs, coverage = (found.to_frame(table) for table in ("genes", "cells", "pairs", "coverage"))
    assert list(genes.index) == list(adata.var_names)
    assert list(cells.index) == list(adata.obs_names)
    np.testing.assert_allclose(genes["detection_rate"], (adata.X > 0).mean(0))
    np.testing.assert_allclose(cells["mean"], adata.X.mean(1), rtol=1e-6)
    assert (genes["detection_rate_lower"] <= genes["detection_rate_median"]).all()
    assert (genes["detection_rate_median"] <= genes["detection_rate_upper"]).all()
    # More zeros are fewer cells with the gene, and equal numbers count half in either.
    np.testing.assert_allclose(genes["detection_rate_tail"] + genes["zeros_tail"], 1)
    assert genes["cv_tail"].between(0, 1).all()
    most = adata.var_names[np.sort(np.argsort(-adata.X.sum(0))[:4])]
    assert list(pairs.index) == [(most[i], most[j]) for i in range(4) for j in range(i + 1, 4)]
    assert list(coverage.columns) == ["all", *found.strata()]
    assert coverage["all"].is_monotonic_increasing


def test_held_out_cells_by_default_and_others_in_the_order_asked_for(trained):
    model = trained()
    names = model.adata.obs_names
    assert list(posterior_predictive_check(model, n_samples=40).obs_names) == list(names[model.validation_indices])
    asked = [names[5], names[2]]
    found = posterior_predictive_check(model, indices=asked, n_samples=40)
    assert list(found.obs_names) == asked
    np.testing.assert_allclose(found.cells["mean"].observed, model.adata[asked].X.toarray().mean(1), rtol=1e-6)


NO_COUNTS = pytest.mark.filterwarnings(r"ignore:\d of \d genes have no counts")


@NO_COUNTS
def test_too_few_counts_for_a_verdict():
    known = KnownModel(np.full(3, -6.0))
    model = known.model(known.simulate("poisson", 20), "poisson")
    assert "too few to say" in posterior_predictive_check(model, **EVERYTHING, n_samples=40).verdict


@NO_COUNTS
def test_undefined_statistics_are_left_out():
    known = KnownModel([3.0, -9.0])
    adata = known.simulate("poisson", 20)
    found = posterior_predictive_check(known.model(adata, "poisson"), **EVERYTHING, n_samples=40)
    assert np.isnan(found.genes["cv"].observed[1])
    assert np.isnan(found.genes["cv"].tail[1])
    assert np.isfinite(found.genes["zeros"].tail).all()
    assert np.isnan(found.correlation.tail).all()
    assert "Correlations" not in found.summary()
    assert "nan" not in found.summary()


def test_one_gene():
    known = KnownModel([2.0])
    found = posterior_predictive_check(known.model(known.simulate("nb", 40), "nb"), **EVERYTHING, n_samples=40)
    assert len(found.to_frame("pairs")) == 0
    assert "nan" not in found.summary()


@pytest.mark.usefixtures("unchecked")
def test_mistakes_are_named(trained, counts):
    model = trained()
    for options, message in (
        ({"n_samples": 39}, "n_samples=39 must be a whole number of at least 40"),
        ({"latent": "encoder"}, r"latent='encoder' is not known: use \"posterior\" or \"prior\""),
        ({"n_correlated_genes": 0}, "n_correlated_genes=0 must be a whole number of at least 1"),
        ({"indices": [3]}, "indices selects one: pass at least two"),
        ({"seed": -1}, "seed=-1 must be"),
    ):
        with pytest.raises(ValueError, match=message):
            posterior_predictive_check(model, **options)
    with pytest.raises(ValueError, match=r"table='gene' is not known: use \"genes\""):
        posterior_predictive_check(model, n_samples=40).to_frame("gene")
    with pytest.raises(RuntimeError, match="has not been trained"):
        posterior_predictive_check(SCVAE(counts))
    with pytest.raises(TypeError, match="which Autoencoder has not: use SCVAE"):
        posterior_predictive_check(Autoencoder(counts))
