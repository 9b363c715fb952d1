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
