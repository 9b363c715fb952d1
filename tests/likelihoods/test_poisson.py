import numpy as np
import torch
from minibatches import make_minibatch
from scipy import stats

from scvae_ext.likelihoods import PoissonLikelihood, depth


@torch.no_grad()
def test_log_likelihood_is_that_of_the_poisson():
    minibatch = make_minibatch(dtype=torch.float64)
    likelihood = PoissonLikelihood(3, 7, "gene", 1, 1, True).double()
    hidden = torch.randn(12, 3, dtype=torch.float64)
    px = likelihood(hidden, depth(minibatch), minibatch.batch, minibatch.label)
    rate = (minibatch.library_size[:, None] * likelihood.expression(hidden)).numpy()
    expected = stats.poisson.logpmf(minibatch.counts.dense().numpy(), rate).sum(1)
    np.testing.assert_allclose(likelihood.reconstruction(px, minibatch), expected, rtol=1e-9)
    np.testing.assert_allclose(likelihood.parameters_by_name(px)["mean"], rate)


def test_it_has_the_head_of_the_rate_alone():
    names = [name for name, _ in PoissonLikelihood(3, 7, "gene", 1, 1, True).named_parameters()]
    assert names == ["expression_head.linear.weight", "expression_head.linear.bias"]
