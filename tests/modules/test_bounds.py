import math

import pytest
import torch
from minibatches import make_minibatch
from quadrature import exact_elbo, exact_iwae_of_two, gradients, largest_deviation, one_dimensional_vae, repeat, terms

from scvae_ext.modules import (
    VAE,
    ImportanceWeightedBound,
    SampledElbo,
    trainable_bound,
)


def test_free_bits_need_divergences_by_dimension():
    with pytest.raises(ValueError, match=r'free_bits=0\.5 .* build the model with prior="standard"'):
        SampledElbo(VAE(7, n_hidden=4, prior="mixture"), 1, 0.5)


@torch.no_grad()
@pytest.mark.parametrize("prior", ["standard", "mixture"])
def test_many_samples_give_the_elbo_of_numerical_integration(prior):
    vae, minibatch = one_dimensional_vae(prior=prior), make_minibatch(4, 5, dtype=torch.float64)
    found = SampledElbo(vae, 20_000, 0.0).objective(minibatch)
    assert found.score().shape == (4,)
    torch.testing.assert_close(found.score(), exact_elbo(vae, minibatch), atol=0.1, rtol=0)
    assert torch.equal(found.score(), found.terms()["elbo"])


@torch.no_grad()
def test_the_importance_weighted_bound_of_two_samples_is_that_of_numerical_integration():
    vae, minibatch = one_dimensional_vae(), make_minibatch(4, 5, dtype=torch.float64)
    draws = ImportanceWeightedBound(vae, 2).objective(repeat(minibatch, 5000)).score().view(5000, 4)
    error = draws.std(0) / math.sqrt(len(draws))
    exact = exact_iwae_of_two(vae, minibatch)
    assert float(((draws.mean(0) - exact) / error).abs().max()) < 4.5
    assert bool((exact > exact_elbo(vae, minibatch) + 3 * error).all())


@torch.no_grad()
def test_the_importance_weighted_bound_of_many_samples_is_the_evidence():
    # Wider than the exact posterior, so that importance weights are bounded.
    vae, minibatch = one_dimensional_vae(log_variance=0.5), make_minibatch(4, 5, dtype=torch.float64)
    likelihood, ratio, _, log_weights = terms(vae, minibatch, 200)
    evidence = (likelihood + ratio + log_weights.view(-1, 1)).logsumexp(0)
    found = ImportanceWeightedBound(vae, 50_000).objective(minibatch)
    error = (found.log_weights() - evidence).exp().std(0) / 50_000**0.5
    assert float(error.max()) < 0.05
    assert float(((found.score() - evidence).exp() - 1).abs().div(error).max()) < 4.5
    assert list(found.terms()) == ["iwae", "elbo", "reconstruction", "kl"]
    assert torch.equal(found.terms()["iwae"], found.score())
    torch.testing.assert_close(found.terms()["elbo"], exact_elbo(vae, minibatch), atol=0.1, rtol=0)


@pytest.mark.parametrize("options", [{}, {"use_observed_lib_size": False}], ids=["observed", "latent library"])
@pytest.mark.parametrize("beta", [0.0, 0.4])
def test_doubly_reparameterised_gradients_are_right_while_the_weight_warms_up(beta, options):
    vae, one = one_dimensional_vae(**options), make_minibatch(1, 5, dtype=torch.float64)
    vae.initialise_library(one.library_size, one.batch)
    with torch.no_grad():
        if vae.library_encoder is not None:
            vae.library_log_variances.fill_(0.3)
    n = 40 if vae.library_encoder is None else 14
    exact = gradients(exact_iwae_of_two(vae, one, beta, n), vae)
    many = repeat(one, 1000)
    bound = ImportanceWeightedBound(vae, 2)
    estimates = [gradients(bound.objective(many).score(beta), vae) for _ in range(40)]
    assert largest_deviation(estimates, exact) < 4.5


def test_the_gradient_does_not_accumulate_over_objectives():
    vae, minibatch = one_dimensional_vae(), make_minibatch(4, 5, dtype=torch.float64)
    bound = ImportanceWeightedBound(vae, 3)
    one, two = (gradients(bound.objective(minibatch, torch.Generator().manual_seed(1)).score(), vae) for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize(
    ("arguments", "kind"), [(("elbo", 2, 0.0), SampledElbo), (("iwae", 2, 0.0), ImportanceWeightedBound)]
)
def test_views_train_the_parameters_of_the_model_and_no_others(arguments, kind):
    vae = VAE(7, n_hidden=4, n_latent=2)
    view = trainable_bound(vae, *arguments)
    assert isinstance(view, kind)
    assert {id(value) for value in view.parameters()} == {id(value) for value in vae.parameters()}
    assert torch.equal(view.log_prior(), vae.log_prior())
    minibatch = make_minibatch()
    objective = view.objective(minibatch, torch.Generator().manual_seed(0))
    assert view.monitor in objective.terms()
    assert all(term.shape == (12,) for term in objective.terms().values())
    objective.score().sum().backward()
    assert all(bool(value.grad.any()) for value in vae.parameters())


def test_one_sample_of_the_elbo_is_the_model_itself():
    vae = VAE(7, n_hidden=4, n_latent=2)
    assert trainable_bound(vae, "elbo", 1, 0.0) is vae
