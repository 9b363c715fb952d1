import pytest
import torch
from distributions import exact
from hypothesis import given, settings
from hypothesis import strategies as st

from scvae_ext.distributions import Poisson
from scvae_ext.minibatch import SparseCounts


def differentiated(rate, value, sparse):
    rate = rate.clone().requires_grad_()
    distribution = Poisson(rate)
    log_prob = distribution.log_prob_sparse(SparseCounts.from_dense(value)) if sparse else distribution.log_prob(value)
    return log_prob, torch.autograd.grad(log_prob.sum(), rate)[0]


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.float64, 1e-13)])
def test_log_prob_and_gradient_against_50_digits(dtype, tolerance, sparse):
    value, rate = torch.meshgrid(
        torch.tensor(exact.COUNTS, dtype=dtype), torch.logspace(-8, 6, 57, dtype=dtype), indexing="ij"
    )
    log_prob, gradient = differentiated(rate, value, sparse)
    truth = exact.evaluate(exact.poisson, value, rate)
    assert exact.worst_error(log_prob, truth[0]) < tolerance
    assert exact.worst_error(gradient, truth[1]) < tolerance


@settings(deadline=None)
@given(x=st.integers(0, 100_000), log10_rate=st.floats(-8, 6))
def test_log_prob_anywhere(x, log10_rate):
    rate = torch.tensor([[10**log10_rate]])
    value = torch.tensor([[float(x)]])
    log_prob, gradient = differentiated(rate, value, sparse=False)
    truth = exact.evaluate(exact.poisson, value, rate)
    assert exact.worst_error(log_prob, truth[0]) < 1e-4
    assert exact.worst_error(gradient, truth[1]) < 1e-3


@pytest.mark.parametrize("rate", [1e-6, 0.3, 7.0, 900.0])
def test_probabilities_sum_to_one(rate):
    value = torch.arange(2_000)
    assert Poisson(torch.tensor(rate)).log_prob(value).exp().sum().item() == pytest.approx(1, abs=2e-6)


def test_log_prob_zero():
    rate = torch.tensor([0.0, 1e-8, 3.0, 1e6])
    assert torch.equal(Poisson(rate).log_prob_zero(), -rate)
    assert torch.equal(Poisson(rate).log_prob(torch.zeros(4)), -rate)


def test_gradient_of_the_sum_in_double_precision():
    torch.manual_seed(0)
    rate = torch.rand(2, 3, 4, dtype=torch.float64, requires_grad=True)
    counts = SparseCounts.from_dense(torch.poisson(torch.ones(3, 4, dtype=torch.float64)))
    assert torch.autograd.gradcheck(lambda rate: Poisson(rate).log_prob_sum(counts), rate)


def test_samples_follow_the_distribution():
    torch.manual_seed(0)
    distribution = Poisson(torch.tensor([0.2, 40.0]))
    sample = distribution.sample((50_000,))
    assert sample.shape == (50_000, 2)
    assert sample.mean(0) == pytest.approx(distribution.mean, rel=0.03)
    assert sample.var(0) == pytest.approx(distribution.variance, rel=0.05)


def test_negative_rate_is_rejected():
    with pytest.raises(ValueError, match="rate"):
        Poisson(torch.tensor([-1.0]))
