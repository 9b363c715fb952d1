import numpy as np
import torch
from minibatches import make_minibatch
from scipy import stats

from scvae_ext.likelihoods import GeneStatistics, NegativeBinomialLikelihood, depth


def test_log_likelihood_is_that_of_the_negative_binomial():
    minibatch = make_minibatch(n_batches=2, dtype=torch.float64)
    likelihood = NegativeBinomialLikelihood(3, 7, "gene-batch", 2, 1, True).double()
    hidden = torch.randn(12, 3, dtype=torch.float64)
    theta = torch.linspace(0.1, 20, 14, dtype=torch.float64).view(2, 7)
    with torch.no_grad():
        likelihood.dispersion.log_value.copy_(theta.log())
        px = likelihood(hidden, depth(minibatch), minibatch.batch, minibatch.label)
        found = likelihood.reconstruction(px, minibatch)
    head = likelihood.expression_head.linear
    logits = (hidden @ head.weight.T + head.bias).detach().numpy()
    mean = np.exp(logits) / np.exp(logits).sum(1, keepdims=True) * minibatch.library_size.numpy()[:, None]
    of_cell = theta.numpy()[minibatch.batch.numpy()]
    counts = minibatch.counts.dense().numpy()
    expected = stats.nbinom.logpmf(counts, of_cell, of_cell / (of_cell + mean)).sum(1)
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    named = likelihood.parameters_by_name(px)
    np.testing.assert_allclose(named["mean"], mean)
    np.testing.assert_allclose(named["dispersions"], of_cell)


def test_size_factors_multiply_a_rate():
    minibatch = make_minibatch(size_factor=True)
    likelihood = NegativeBinomialLikelihood(3, 7, "gene", 1, 1, False)
    hidden = torch.randn(12, 3)
    mean = likelihood(hidden, depth(minibatch), minibatch.batch, minibatch.label).mean
    torch.testing.assert_close(mean, minibatch.size_factor[:, None] * likelihood.expression(hidden))


def test_dispersions_start_from_what_is_typical_of_counts():
    """The geometric mean over counts: genes with few say little about their own."""
    likelihood = NegativeBinomialLikelihood(3, 4, "gene", 1, 1, True)
    expression = torch.tensor([0.7, 0.2, 0.09, 0.01])
    theta = torch.tensor([2.0, 5.0, 0.3, 10.0])
    likelihood.initialise(GeneStatistics(expression, theta, torch.zeros(4), torch.ones(4)))
    typical = np.exp(np.average(np.log(theta.numpy()), weights=expression.numpy()))
    np.testing.assert_allclose(likelihood.dispersion.log_value.detach().exp(), typical, rtol=1e-5)
