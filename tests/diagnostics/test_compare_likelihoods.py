import importlib
import warnings

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from interrupts import interrupt_every_training
from known_model import KnownModel

from scvae_ext import SCVAE, datasets
from scvae_ext.data.fields import layer_names
from scvae_ext.diagnostics import (
    Evidence,
    LikelihoodComparison,
    compare_likelihoods,
    evidence,
    posterior_predictive_check,
)
from scvae_ext.diagnostics.rounded_normal import on_scale_of_counts

N_CELLS = 50


@pytest.fixture(scope="module")
def check():
    known = KnownModel(np.linspace(0, 3, 6))
    return posterior_predictive_check(known.model(known.simulate("nb", 40), "nb"), indices=slice(None), n_samples=40)


def _evidence(mean, spread=0.0):
    """Evidence whose differences to cells without spread have a known standard deviation."""
    log_evidence = -100.0 + mean + spread * np.where(np.arange(N_CELLS) % 2, 1.0, -1.0)
    return Evidence(
        obs_names=pd.Index([f"cell{i}" for i in range(N_CELLS)]),
        log_evidence=log_evidence,
        standard_error=np.full(N_CELLS, 0.1),
        effective_sample_size=np.full(N_CELLS, 50.0),
        elbo=log_evidence - 1,
        optimised_elbo=log_evidence - 0.5,
        n_samples=100,
    )


@pytest.fixture
def comparison(check):
    """Make a comparison of given mean evidences, or of pairs of a mean and a spread."""

    def make(least_gain=1.0, **scores):
        evidence = {name: _evidence(*np.atleast_1d(score)) for name, score in scores.items()}
        validation = {name: [-101.5, -101.0] for name in scores}
        return LikelihoodComparison(evidence, dict.fromkeys(scores, check), {}, validation, least_gain)

    return make


@pytest.mark.parametrize(
    ("scores", "supported"),
    [
        # More than asked for: the best.
        ({"poisson": -9.0, "nb": -3.0, "zinb": 0.0}, "zinb"),
        # Less than asked for: the one with fewer parameters.
        ({"poisson": -9.0, "nb": -0.9, "zinb": 0.0}, "nb"),
        ({"poisson": -0.9, "nb": -0.5, "zinb": 0.0}, "poisson"),
        # A simple one that is best stays.
        ({"poisson": 0.0, "nb": -0.1, "zinb": -0.2}, "poisson"),
        # 3 nats, but a standard error of 14.14/7 = 2.02: within two standard errors.
        ({"poisson": -9.0, "nb": -3.0, "zinb": (0.0, 14.0)}, "nb"),
        # As many parameters: the better one, however little.
        ({"nb": -0.1, "normal": 0.0, "zinb": -5.0}, "normal"),
        ({"nb": 0.0, "normal": -0.1, "zinb": 0.5}, "nb"),
        # One that is too far off is not taken for its simplicity.
        ({"poisson": -1.5, "nb": -0.9, "zinb": 0.0}, "nb"),
    ],
)
def test_the_rule_of_the_verdict(comparison, scores, supported):
    found = comparison(**scores)
    assert found.supported == supported
    assert found.verdict.startswith(f"The data support {supported}: ")
    frame = found.to_frame()
    assert frame.index[frame["is_supported"]].tolist() == [supported]
    assert frame["log_evidence"].is_monotonic_decreasing


def test_standard_errors_are_those_of_paired_differences(comparison):
    # Spread that all likelihoods share cancels.
    shared = comparison(nb=(0.0, 30.0), zinb=(2.0, 30.0))
    assert shared.difference("zinb", "nb") == pytest.approx((2.0, 0.0))
    single = comparison(nb=0.0, zinb=(2.0, 7.0))
    difference, error = single.difference("zinb", "nb")
    assert difference == pytest.approx(2.0)
    assert error == pytest.approx(7.0 / np.sqrt(N_CELLS - 1))
    assert single.difference("nb", "zinb") == pytest.approx((-2.0, error))


def test_the_verdict_says_why_a_better_one_is_not_taken(comparison):
    assert "zinb gains 0.50 ± 0.00 (less than the 1 asked for)" in comparison(nb=0.0, zinb=0.5).verdict
    assert "(within two standard errors)" in comparison(nb=0.0, zinb=(1.5, 14.0)).verdict
    assert "poisson loses 4.00 ± 0.00" in comparison(poisson=-4.0, nb=0.0).verdict
    assert comparison(least_gain=0.2, nb=0.0, zinb=0.5).supported == "zinb"


def test_table_and_summary(comparison, check):
    found = comparison(poisson=-4.0, nb=0.0)
    frame = found.to_frame()
    assert frame.loc["poisson", "difference"] == pytest.approx(-4.0)
    assert frame.loc["nb", "standard_error"] == 0
    assert frame["n_parameters"].to_dict() == {"nb": 2, "poisson": 1}
    assert frame["n_untrusted"].eq(0).all()
    assert frame.loc["nb", "zeros_too_low"] == check.genes["zeros"].is_too_low[check.is_testable].mean()
    assert f"nb: {check.verdict}" in str(found)
    assert frame["spread_of_fits"].eq(0.5).all()
    assert "the best of 2 fits minus that of the worst: poisson 0.50, nb 0.50." in str(found)
    assert "for want of samples" not in str(found)


def test_cells_whose_evidence_is_not_precise_are_named(comparison):
    found = comparison(poisson=-4.0, nb=0.0)
    found.evidence["poisson"].effective_sample_size[:3] = 2.0
    assert "likely too low, for want of samples that count, for poisson in 3 cells." in found.summary()
    assert found.to_frame()["n_untrusted"].to_dict() == {"nb": 0, "poisson": 3}


@pytest.mark.slow
@pytest.mark.filterwarnings(r"ignore:\w+. The effective sample size")
# Extra zeros show where few are expected without them.
@pytest.mark.parametrize(
    ("truth", "library_size", "max_steps"), [("poisson", 300, 600), ("nb", 300, 600), ("zinb", 1500, 600)]
)
def test_the_likelihood_that_generated_the_data_is_named(truth, library_size, max_steps):
    adata = datasets.synthetic_counts(
        800, 150, likelihood=truth, n_types=1, n_latent=2, library_size=library_size, zero_inflation=0.3, seed=1
    )
    SCVAE.setup_anndata(adata)
    found = compare_likelihoods(
        adata,
        ["poisson", "nb", "zinb"],
        model_options={"n_hidden": 32, "n_latent": 2},
        max_steps=max_steps,
        n_fits=1,
        n_samples=100,
        accelerator="cpu",
        enable_progress_bar=False,
    )
    assert found.supported == truth
    # A Poisson has too few zeros for the others, and is right for itself.
    assert ("too few zeros" in found.checks["poisson"].findings) == (truth != "poisson")
    assert "too few zeros" not in found.checks[truth].findings


@pytest.fixture(scope="module")
def small():
    adata = datasets.synthetic_counts(120, 30, likelihood="nb", n_types=2, library_size=120, inverse_dispersion=0.5)
    SCVAE.setup_anndata(adata)
    return adata


OPTIONS = {
    "model_options": {"n_hidden": 8, "n_latent": 2},
    "max_steps": 60,
    "n_fits": 1,
    "n_samples": 100,
    "n_replicates": 40,
    "accelerator": "cpu",
    "enable_progress_bar": False,
}


@pytest.fixture(scope="module")
def found(small):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"\w+: The effective sample size")
        return compare_likelihoods(small, **OPTIONS)


def test_all_are_compared_on_the_same_cells_that_none_was_trained_on(found, small):
    assert list(found.models) == ["poisson", "nb", "zinb", "normal"]
    first = found.models["poisson"]
    for name, model in found.models.items():
        np.testing.assert_array_equal(model.train_indices, first.train_indices)
        np.testing.assert_array_equal(model.validation_indices, first.validation_indices)
        names = list(small.obs_names[model.test_indices])
        assert list(found.evidence[name].obs_names) == list(found.checks[name].obs_names) == names
        assert not set(model.test_indices) & {*model.train_indices, *model.validation_indices}
        assert model._options["gene_likelihood"] == name
    assert len(first.test_indices) == 12


def test_all_are_on_the_scale_of_probabilities_of_counts(found):
    # No count is more probable than certain, whereas densities of zeros can be far above one.
    assert all((evidence.log_evidence < 0).all() for evidence in found.evidence.values())
    assert found.to_frame().index[-1] in ("poisson", "normal")


def test_the_anndata_is_left_alone(small, found):
    assert not small.obsm.keys() - {"latent"}
    assert set(layer_names(small)) == {"expression", "mean"}


@pytest.mark.filterwarnings(r"ignore:\w+. The effective sample size")
def test_of_several_fits_the_best_by_validation_is_compared(small):
    found = compare_likelihoods(small, ["nb", "poisson"], **{**OPTIONS, "n_fits": 2, "max_steps": 5})
    for name, model in found.models.items():
        first, second = found.validation[name]
        assert first != second
        assert model.history["elbo_validation"].max() == max(first, second)
        assert model.seed == int(second > first)
    np.testing.assert_array_equal(found.models["nb"].test_indices, found.models["poisson"].test_indices)


@pytest.mark.filterwarnings(r"ignore:\w+. The effective sample size")
def test_options_that_belong_to_some_likelihoods_reach_those_alone(small):
    options = {"n_hidden": 8, "n_latent": 2, "dispersion": "gene-cell", "zero_inflation": "gene"}
    few = {**OPTIONS, "model_options": options, "max_steps": 3}
    models = compare_likelihoods(small, ["poisson", "nb", "zinb"], **few).models
    assert [model._options["dispersion"] for model in models.values()] == ["gene", "gene-cell", "gene-cell"]
    assert models["zinb"]._options["zero_inflation"] == "gene"


def test_warnings_name_the_likelihood(small, monkeypatch):
    def doubtful(model, **options):
        warnings.warn("not precise", UserWarning, stacklevel=2)
        return _evidence(0.0)

    # The function hides the module of the same name.
    monkeypatch.setattr(importlib.import_module(compare_likelihoods.__module__), "evidence", doubtful)
    with pytest.warns(UserWarning, match="not precise") as caught:
        compare_likelihoods(small, ["nb", "poisson"], **{**OPTIONS, "max_steps": 2})
    assert [str(warning.message) for warning in caught] == ["nb: not precise", "poisson: not precise"]


@pytest.mark.usefixtures("unchecked")
def test_mistakes_are_named(small):
    for options, message in (
        ({"likelihoods": ["nb"]}, "leaves nothing to compare: pass at least two of 'nb', 'zinb'"),
        ({"likelihoods": "nb"}, "likelihoods='nb' is one string"),
        ({"likelihoods": ["nb", "gamma"]}, "likelihoods holds 'gamma', which is not known: use 'nb'"),
        ({"likelihoods": ["nb", "nb"]}, "names 'nb' more than once"),
        ({"train_size": 0.9}, "must leave cells to compare on"),
        ({"validation_size": 0.0}, "must leave cells to compare on"),
        ({"n_samples": 5}, "n_samples=5 must be a whole number of at least 10"),
        ({"n_replicates": 5}, "n_replicates=5 must be a whole number of at least 40"),
        ({"n_fits": 0}, "n_fits=0 must be a whole number of at least 1"),
        ({"least_gain": -1.0}, "least_gain=-1.0 must be a number of nats per cell, at least 0"),
        ({"model_options": {"gene_likelihood": "nb"}}, "holds 'gene_likelihood', which is an argument"),
        ({"train_size": 0.9, "validation_size": 0.099, "max_steps": 1}, "leave 0 of 120 cells to compare on"),
    ):
        with pytest.raises(ValueError, match=message):
            compare_likelihoods(small, **options)
    with pytest.raises(TypeError, match="unknown option 'n_latents'"):
        compare_likelihoods(small, model_options={"n_latents": 3})
    with pytest.raises(ValueError, match="setup_anndata"):
        compare_likelihoods(AnnData(np.ones((3, 2), dtype=np.float32)))


def test_an_interrupt_ends_the_comparison(monkeypatch):
    adata = datasets.synthetic_counts(400, 20)
    SCVAE.setup_anndata(adata)
    trainings = interrupt_every_training(monkeypatch)
    options = {"max_steps": 500, "accelerator": "cpu", "enable_progress_bar": False}
    with pytest.raises(KeyboardInterrupt):
        compare_likelihoods(adata, ["poisson", "nb"], **options)
    assert len(trainings) == 1


@pytest.mark.filterwarnings("ignore:The effective sample size")
def test_normal_values_are_compared_by_the_probabilities_of_counts(found):
    model = found.models["normal"]
    options = {"indices": model.test_indices, "n_samples": 100, "seed": 0}
    of_counts, of_values = evidence(on_scale_of_counts(model), **options), evidence(model, **options)
    np.testing.assert_allclose(found.evidence["normal"].log_evidence, of_counts.log_evidence)
    assert (np.abs(of_counts.log_evidence - of_values.log_evidence) > 1).all()
