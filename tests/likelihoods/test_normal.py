import numpy as np
import pytest
import torch
from minibatches import make_minibatch
from scipy import stats

from scvae_ext.likelihoods import NormalLikelihood, depth


@torch.no_grad()
def test_log_likelihood_is_that_of_log_normalised_values():
    minibatch = make_minibatch(dtype=torch.float64)
    likelihood = NormalLikelihood(3, 7, "gene", 1, 1, True).double()
    likelihood.scale.log_value.copy_(torch.linspace(-2, 1, 7))
    hidden = torch.randn(12, 3, dtype=torch.float64)
    px = likelihood(hidden, depth(minibatch), minibatch.batch, minibatch.label)
    counts = minibatch.counts.dense().numpy()
    values = np.log1p(1e4 * counts / counts.sum(1, keepdims=True))
    head = likelihood.location.linear
    location = (hidden @ head.weight.T + head.bias).numpy()
    scale = np.exp(np.linspace(-2, 1, 7))
    expected = stats.norm.logpdf(values, location, scale).sum(1)
    np.testing.assert_allclose(likelihood.reconstruction(px, minibatch), expected, rtol=1e-6)
    named = likelihood.parameters_by_name(px)
    np.testing.assert_allclose(named["mean"], location)
    np.testing.assert_allclose(np.broadcast_to(named["scale"], (12, 7)), np.broadcast_to(scale, (12, 7)), rtol=1e-6)


@torch.no_grad()
def test_log_likelihood_with_size_factors():
    minibatch = make_minibatch(size_factor=True, dtype=torch.float64)
    likelihood = NormalLikelihood(3, 7, "gene", 1, 1, False).double()
    hidden = torch.randn(12, 3, dtype=torch.float64)
    px = likelihood(hidden, depth(minibatch), minibatch.batch, minibatch.label)
    value = np.log1p(minibatch.counts.dense().numpy() / minibatch.size_factor.numpy()[:, None])
    expected = stats.norm.logpdf(value, px.loc.numpy(), px.scale.numpy()).sum(1)
    np.testing.assert_allclose(likelihood.reconstruction(px, minibatch), expected, rtol=1e-9)


@pytest.mark.parametrize("compositional", [True, False])
def test_to_counts_undoes_the_normalisation(compositional):
    minibatch = make_minibatch(size_factor=not compositional)
    counts = minibatch.counts.dense()
    scale = (1e4 if compositional else 1.0) / depth(minibatch)[:, None]
    likelihood = NormalLikelihood(3, 7, "gene", 1, 1, compositional)
    torch.testing.assert_close(likelihood.to_counts(torch.log1p(counts * scale), depth(minibatch)), counts)


def test_to_counts_gives_no_negative_counts():
    likelihood = NormalLikelihood(3, 2, "gene", 1, 1, True)
    assert torch.equal(likelihood.to_counts(torch.tensor([[-1.0, 0.0]]), torch.tensor([1e3])), torch.zeros(1, 2))


def test_depth_does_not_change_the_distribution_of_normalised_values():
    minibatch = make_minibatch()
    likelihood = NormalLikelihood(3, 7, "gene", 1, 1, True)
    hidden = torch.randn(12, 3)
    one, two = (likelihood(hidden, factor * depth(minibatch), minibatch.batch, minibatch.label) for factor in (1, 2))
    assert torch.equal(one.loc, two.loc)
