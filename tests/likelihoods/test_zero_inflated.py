import numpy as np
import pytest
import torch
from minibatches import make_minibatch
from scipy import stats

from scvae_ext.distributions import Poisson, ZeroInflated
from scvae_ext.likelihoods import ZeroInflatedNegativeBinomialLikelihood, depth


@pytest.fixture
def likelihood():
    return ZeroInflatedNegativeBinomialLikelihood(3, 7, "gene", 1, 1, True).double()


@torch.no_grad()
def test_log_likelihood_is_that_of_the_mixture(likelihood):
    minibatch = make_minibatch(rate=0.7, dtype=torch.float64)
    hidden = torch.randn(12, 3, dtype=torch.float64)
    px = likelihood(hidden, depth(minibatch), minibatch.batch, minibatch.label)
    mean = (minibatch.library_size[:, None] * likelihood.expression(hidden)).numpy()
    head = likelihood.zero_inflation.linear
    pi = 1 / (1 + np.exp(-(hidden @ head.weight.T + head.bias).numpy()))
    counts = minibatch.counts.dense().numpy()
    base = stats.nbinom.pmf(counts, 1.0, 1 / (1 + mean))
    expected = np.log(pi * (counts == 0) + (1 - pi) * base).sum(1)
    np.testing.assert_allclose(likelihood.reconstruction(px, minibatch), expected, rtol=1e-9)
    named = likelihood.parameters_by_name(px)
    np.testing.assert_allclose(named["mean"], mean)
    np.testing.assert_allclose(named["dropout"], pi)
    np.testing.assert_allclose(np.broadcast_to(named["dispersions"], (12, 7)), 1.0)


@torch.no_grad()
def test_without_extra_zeros_it_is_the_negative_binomial(likelihood):
    minibatch = make_minibatch(dtype=torch.float64)
    hidden = torch.randn(12, 3, dtype=torch.float64)
    likelihood.zero_inflation.linear.bias.fill_(-60)
    cells = hidden, depth(minibatch), minibatch.batch, minibatch.label
    found = likelihood.reconstruction(likelihood(*cells), minibatch)
    torch.testing.assert_close(found, likelihood.base.reconstruction(likelihood.base(*cells), minibatch))


def test_expression_is_that_before_inflation(likelihood):
    hidden = torch.randn(12, 3, dtype=torch.float64)
    torch.testing.assert_close(likelihood.expression(hidden).sum(-1), torch.ones(12, dtype=torch.float64))


def test_parameters_of_another_inflated_distribution_are_refused(likelihood):
    px = ZeroInflated(Poisson(torch.ones(2, 7)), torch.zeros(2, 7))
    with pytest.raises(TypeError, match=r"Poisson.*NegativeBinomial"):
        likelihood.parameters_by_name(px)


def _decoded(kind, prior=None):
    likelihood = ZeroInflatedNegativeBinomialLikelihood(3, 7, "gene", 1, 1, True, kind, prior)
    minibatch = make_minibatch(rate=0.7)
    px = likelihood(torch.randn(4, 12, 3), depth(minibatch), minibatch.batch, minibatch.label)
    return likelihood, minibatch, px


@pytest.mark.parametrize("kind", ["gene", "logistic"])
def test_constrained_inflation_gives_the_log_probability_summed_over_genes(kind):
    likelihood, minibatch, px = _decoded(kind)
    expected = px.log_prob(minibatch.counts.dense()).sum(-1)
    torch.testing.assert_close(likelihood.reconstruction(px, minibatch), expected)
    assert likelihood.parameters_by_name(px)["dropout"].expand(4, 12, 7).isfinite().all()


def test_logistic_inflation_follows_the_mean():
    _, _, px = _decoded("logistic")
    mean = px.base.mean.detach().numpy()
    pi = px.zero_inflation_probability.detach().numpy()
    slope, intercept = np.polyfit(np.log(mean).ravel(), np.log(pi / (1 - pi)).ravel(), 1)
    np.testing.assert_allclose([slope, intercept], [-0.1, -3.0], rtol=1e-3)


@pytest.mark.parametrize("kind", ["gene-cell", "gene", "logistic"])
@pytest.mark.parametrize("prior", [None, (2.0, 9.0)])
def test_every_parameter_receives_a_gradient(kind, prior):
    likelihood, minibatch, px = _decoded(kind, prior)
    (likelihood.reconstruction(px, minibatch).sum() + likelihood.log_prior()).backward()
    for name, value in likelihood.named_parameters():
        assert value.grad is not None, name
        assert bool(value.grad.isfinite().all()), name
        assert bool(value.grad.flatten(0, -2).any(-1).all() if value.dim() > 1 else value.grad.any()), name


def test_priors_of_dispersion_and_inflation_add_up():
    likelihood, _, _ = _decoded("gene", (1.0, 9.0))
    with torch.no_grad():
        likelihood.base.dispersion.log_value[0] = 1.0
    deviations = np.r_[6 / 7, np.full(6, -1 / 7)]
    pi = 1 / (1 + np.exp(3.0))
    expected = -2 * np.square(deviations).sum() + 7 * 8 * np.log1p(-pi)
    assert likelihood.log_prior().item() == pytest.approx(expected, rel=1e-5)
