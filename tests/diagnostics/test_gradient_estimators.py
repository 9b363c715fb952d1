import importlib
import math

import numpy as np
import pandas as pd
import pytest
import torch

from scvae_ext import SCVAE, Autoencoder
from scvae_ext.diagnostics import gradient_estimators
from scvae_ext.diagnostics._gradient_moments import moments_of_gradient
from scvae_ext.modules import SURROGATES

X = np.random.default_rng(0).uniform(1, 3, (20, 3))
WEIGHT, BIAS, SCALE = [[0.3, -0.2, 0.1], [0.1, 0.2, 0.4]], [-0.2, -1.0], np.array([0.6, 0.8])
LOADINGS, OFFSET, NOISE = np.array([[1.0, 0.2], [-0.5, 1.0], [0.3, 0.7]]), 2.0, 0.9
FEW = {"n_samples": 2, "n_estimates": 10, "n_reference": 10}


@pytest.fixture
def linear(linear_model):
    return linear_model(X, WEIGHT, BIAS, SCALE, loadings=LOADINGS, offset=OFFSET, noise=NOISE)


@pytest.fixture(scope="module")
def found(trained):
    return gradient_estimators(trained(gene_likelihood="poisson"), n_estimates=40, n_reference=80)


@pytest.mark.slow
def test_norm_and_variance_have_their_closed_forms(linear):
    n_samples = 4
    frame = gradient_estimators(linear, n_samples=n_samples, n_estimates=300, n_reference=300).to_frame()
    mean = X @ np.transpose(WEIGHT) + BIAS
    of_mean = (X - OFFSET - mean @ LOADINGS.T) @ LOADINGS / NOISE**2 - mean
    gradient = np.r_[(of_mean.T @ X / len(X)).ravel(), of_mean.mean(0)]
    # The derivative by a cell's mean has the noise -W'W s eps / sigma^2, and those of its weights that times x.
    noise = LOADINGS.T @ LOADINGS * SCALE / NOISE**2
    variance = np.square(noise).sum() * (np.square(X).sum() + len(X)) / (len(X) ** 2 * n_samples)
    pathwise = frame.loc[("pathwise", "encoder mean")]
    assert pathwise["gradient_norm"] == pytest.approx(np.linalg.norm(gradient), rel=0.05)
    assert pathwise["variance"] == pytest.approx(variance, rel=0.2)
    assert pathwise["noise_to_signal"] == pytest.approx(math.sqrt(variance) / np.linalg.norm(gradient), rel=0.2)
    # With sticking the landing the density of the posterior adds eps / s.
    landing = np.square(noise - np.diag(1 / SCALE) + np.diag(SCALE)).sum() / np.square(noise).sum()
    assert frame.loc[("sticking_the_landing", "encoder mean"), "variance"] == pytest.approx(landing * variance, rel=0.2)
    assert not frame["is_biased"].any()


def test_every_parameter_is_in_one_group(found, trained):
    model = trained(gene_likelihood="poisson")
    frame = found.to_frame()
    groups = frame.loc["pathwise"]
    assert list(groups.index) == ["encoder body", "encoder mean", "encoder scale", "decoder", "likelihood"]
    assert groups["n_parameters"].sum() == sum(value.numel() for value in model.module.parameters())
    assert groups.loc["encoder mean", "n_parameters"] == 16 * 2 + 2
    assert frame.index.get_level_values("estimator").unique().tolist() == list(SURROGATES)


def test_estimators_of_counts_are_unbiased_and_in_the_known_order(found):
    frame = found.to_frame()
    assert not frame["is_biased"].any()
    noise = frame["noise_to_signal"].unstack("estimator").loc["encoder mean"]
    assert noise["score_function"] > 2 * noise["score_function_with_baseline"]
    assert noise["score_function_with_baseline"] > noise["pathwise"]
    assert noise["importance_weighted"] > noise["doubly_reparameterised"]
    assert str(found).startswith("Root of the variance over the norm of the gradient")
    assert "No estimator is biased beyond noise" in str(found)
    assert "on 128 cells with 5 samples each" in str(found)


def test_a_wrong_estimator_is_named(trained, monkeypatch):
    def wrong(vae, minibatch, n_samples, generator):
        return 1.5 * vae.elbo(minibatch, n_samples, generator).score().mean(0)

    monkeypatch.setattr(
        "scvae_ext.diagnostics._gradient_moments.SURROGATES",
        {**SURROGATES, "score_function": ("elbo", wrong)},
    )
    result = gradient_estimators(trained(gene_likelihood="poisson"), n_estimates=20, n_reference=40)
    biased = result.to_frame()["is_biased"]
    assert biased.loc["score_function"].any()
    assert not biased.drop("score_function", level="estimator").any()
    assert "Biased beyond noise: score function." in str(result)


def test_priors_and_library_encoders_are_groups_of_their_own(trained):
    model = trained(prior="vamp", n_prior_components=3, use_observed_lib_size=False, max_steps=20)
    groups = gradient_estimators(model, **FEW).to_frame().loc["pathwise"]
    assert {"prior", "library encoder"} <= set(groups.index)
    assert groups.loc["prior", "n_parameters"] == 3 * 12 + 3
    assert (groups["gradient_norm"] > 0).all()


def test_the_model_is_left_as_it_was_and_seeds_decide(trained):
    model = trained(gene_likelihood="poisson")
    state = torch.get_rng_state()
    weights = {name: value.clone() for name, value in model.module.state_dict().items()}
    one, two, other = (gradient_estimators(model, seed=seed, **FEW).to_frame() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    pd.testing.assert_frame_equal(one.drop(columns="seconds"), two.drop(columns="seconds"))
    assert (one["variance"] != other["variance"]).all()
    assert all(torch.equal(value, weights[name]) for name, value in model.module.state_dict().items())
    assert not model.module.training


def test_cells_can_be_chosen(trained):
    model = trained(gene_likelihood="poisson")
    assert gradient_estimators(model, indices=range(7), **FEW).n_cells == 7
    other = gradient_estimators(model, model.adata[:5].copy(), **FEW)
    assert other.n_cells == 5
    assert gradient_estimators(model, **FEW).n_cells == 128


def test_mistakes_are_named(trained, counts):
    model = trained(gene_likelihood="poisson")
    for options, message in (
        ({"n_samples": 1}, "n_samples=1 must be a whole number of at least 2"),
        ({"n_estimates": 3}, "n_estimates=3 must be a whole number of at least 10"),
        ({"n_reference": 9}, "n_reference=9 must be a whole number of at least 10"),
    ):
        with pytest.raises(ValueError, match=message):
            gradient_estimators(model, **options)
    with pytest.raises(TypeError, match="a posterior, which Autoencoder has not"):
        gradient_estimators(Autoencoder(counts))
    with pytest.raises(RuntimeError, match="has not been trained"):
        gradient_estimators(SCVAE(counts))


def test_variances_are_those_of_a_sample(linear):
    """Of ten estimates, one after the other from one source of randomness."""
    minibatch = linear._own_source().minibatch(np.arange(8))
    found = moments_of_gradient(linear.module, minibatch, "pathwise", 2, 10, seed=4)
    generator, gradients = torch.Generator().manual_seed(4), []
    for _ in range(10):
        linear.module.zero_grad()
        SURROGATES["pathwise"][1](linear.module, minibatch, 2, generator).mean().backward()
        parts = [
            (torch.zeros_like(value) if value.grad is None else value.grad).flatten()
            for value in linear.module.parameters()
        ]
        gradients.append(torch.cat(parts).double())
    each = torch.stack(gradients)
    torch.testing.assert_close(found.mean, each.mean(0), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.variance, each.var(0, correction=1), rtol=1e-4, atol=1e-8)


def test_without_a_choice_cells_are_some_that_were_trained_on(counts, monkeypatch):
    model = SCVAE(counts, n_hidden=4, n_latent=1)
    model.train(max_steps=1, train_size=0.3, enable_progress_bar=False)
    module = importlib.import_module(gradient_estimators.__module__)
    monkeypatch.setattr(module, "N_CELLS", 20)
    known = counts.X.toarray()
    seen = []
    for seed in range(3):
        rows = module._minibatch(model, None, None, seed).counts.dense().numpy()
        # By their counts, which differ from cell to cell.
        place = np.array([np.flatnonzero((known == row).all(1)) for row in rows]).ravel()
        assert len(np.unique(place)) == 20
        assert set(place) <= set(model.train_indices)
        seen.append(tuple(place))
    assert len(set(seen)) == 3
