import math

import pytest
import torch
from distributions import exact
from hypothesis import given, settings
from hypothesis import strategies as st

from scvae_ext.distributions import NegativeBinomial, Poisson, ZeroInflated
from scvae_ext.minibatch import SparseCounts


def reference(x, mean, theta, logit):
    return exact.zero_inflated(x, exact.negative_binomial(x, mean, theta), logit)


def differentiated(mean, theta, logits, log_prob):
    parameters = [term.clone().requires_grad_() for term in (mean, theta, logits)]
    result = log_prob(ZeroInflated(NegativeBinomial(*parameters[:2]), parameters[2]))
    return result, torch.autograd.grad(result.sum(), parameters)


def points(dtype):
    return torch.meshgrid(
        torch.tensor([0.0, 1.0, 7.0, 2000.0], dtype=dtype),
        torch.logspace(-8, 6, 8, dtype=dtype),
        torch.logspace(-4, 10, 8, dtype=dtype),
        torch.tensor([-20.0, -8, -1, 0, 0.5, 5, 20], dtype=dtype),
        indexing="ij",
    )


@pytest.mark.parametrize("path", ["log_prob", "log_prob_sparse", "log_prob_sum"])
@pytest.mark.parametrize(
    ("dtype", "tolerance", "gradient_tolerance"), [(torch.float32, 2e-5, 5e-4), (torch.float64, 1e-13, 1e-11)]
)
def test_log_prob_and_gradients_against_50_digits(dtype, tolerance, gradient_tolerance, path):
    # One gene, so that the sum over genes is the log-probability of one count.
    value, *parameters = (term.reshape(-1, 1) for term in points(dtype))
    counts = value if path == "log_prob" else SparseCounts.from_dense(value)
    log_prob, gradients = differentiated(*parameters, lambda distribution: getattr(distribution, path)(counts))
    truth = exact.evaluate(reference, value, *parameters)
    assert exact.worst_error(log_prob, truth[0]) < tolerance
    for gradient, exact_gradient in zip(gradients, truth[1:], strict=True):
        assert exact.worst_error(gradient, exact_gradient) < gradient_tolerance


@settings(deadline=None)
@given(
    x=st.one_of(st.just(0), st.integers(0, 100_000)),
    log10_mean=st.floats(-8, 6),
    log10_theta=st.floats(-4, 10),
    logit=st.floats(-20, 20),
)
def test_log_prob_anywhere(x, log10_mean, log10_theta, logit):
    value, *parameters = torch.tensor([float(x), 10**log10_mean, 10**log10_theta, logit]).view(4, 1, 1)
    counts = SparseCounts.from_dense(value)
    log_prob, gradients = differentiated(*parameters, lambda distribution: distribution.log_prob_sum(counts))
    truth = exact.evaluate(reference, value, *parameters)
    assert exact.worst_error(log_prob, truth[0]) < 1e-4
    for gradient, exact_gradient in zip(gradients, truth[1:], strict=True):
        assert exact.worst_error(gradient, exact_gradient) < 1e-3


@pytest.mark.parametrize("logit", [-1e4, -200.0, 200.0, 1e4])
def test_logits_far_outside_the_usual(logit):
    counts = SparseCounts.from_dense(torch.tensor([[0.0, 3.0]]))
    base = Poisson(torch.tensor([[150.0, 2.0]]))
    log_prob = ZeroInflated(base, torch.tensor([logit, logit])).log_prob_sum(counts)
    at_zero = max(min(logit, 0), -150.0)
    at_three = 3 * math.log(2) - 2 - math.log(6) - max(logit, 0)
    assert log_prob.item() == pytest.approx(at_zero + at_three, rel=1e-6)


@pytest.mark.parametrize("n_genes", [1, 63, 64, 65, 200])
def test_sum_over_any_number_of_genes(n_genes):
    generator = torch.Generator().manual_seed(0)
    rate = torch.rand(3, n_genes, generator=generator)
    logits = torch.randn(3, n_genes, generator=generator) * 8
    value = torch.poisson(rate, generator=generator)
    log_prob = ZeroInflated(Poisson(rate), logits).log_prob_sum(SparseCounts.from_dense(value))
    entries = exact.evaluate(
        lambda x, rate, logit: exact.zero_inflated(x, exact.poisson(x, rate), logit)[:1], value, rate, logits
    )[0]
    assert exact.worst_error(log_prob, [sum(entries[n_genes * cell :][:n_genes]) for cell in range(3)]) < 2e-6


@pytest.mark.parametrize("logits_shape", [(), (3,), (2, 3), (2, 1), (2, 2, 3)])
@pytest.mark.parametrize("base_shape", [(2, 3), (2, 2, 3), (3,)])
def test_gradcheck_over_shapes(base_shape, logits_shape):
    generator = torch.Generator().manual_seed(0)
    mean, theta, logits = (
        torch.rand(shape, generator=generator, dtype=torch.float64).add_(0.2).requires_grad_()
        for shape in (base_shape, (3,), logits_shape)
    )
    value = torch.poisson(torch.ones(2, 3, dtype=torch.float64), generator=generator)
    counts = SparseCounts.from_dense(value)

    def log_prob_sum(mean, theta, logits):
        return ZeroInflated(NegativeBinomial(mean, theta), logits).log_prob_sum(counts)

    assert torch.autograd.gradcheck(log_prob_sum, (mean, theta, logits))
    distribution = ZeroInflated(NegativeBinomial(mean, theta), logits)
    assert torch.allclose(log_prob_sum(mean, theta, logits), distribution.log_prob(value).sum(-1), rtol=1e-12)


@pytest.mark.parametrize("logit", [-3.0, 0.0, 3.0])
def test_probabilities_sum_to_one(logit):
    distribution = ZeroInflated(NegativeBinomial(torch.tensor(5.0), torch.tensor(0.7)), torch.tensor(logit))
    probability = distribution.log_prob(torch.arange(2_000)).exp()
    assert probability.sum().item() == pytest.approx(1, abs=2e-6)
    assert distribution.log_prob_zero().exp().item() == pytest.approx(probability[0].item(), rel=1e-6)


def test_samples_follow_the_distribution():
    torch.manual_seed(0)
    mean, theta, extra = 4.0, 2.0, 0.3
    base = NegativeBinomial(torch.tensor(mean), torch.tensor(theta))
    distribution = ZeroInflated(base, torch.tensor(math.log(extra / (1 - extra))))
    sample = distribution.sample((400_000,))
    second_moment = (1 - extra) * (mean + mean**2 / theta + mean**2)
    variance = second_moment - ((1 - extra) * mean) ** 2
    assert distribution.zero_inflation_probability.item() == pytest.approx(extra)
    assert distribution.mean.item() == pytest.approx((1 - extra) * mean)
    assert distribution.variance.item() == pytest.approx(variance)
    assert sample.mean().item() == pytest.approx((1 - extra) * mean, rel=0.01)
    assert sample.var().item() == pytest.approx(variance, rel=0.02)
    zeros = extra + (1 - extra) * (theta / (theta + mean)) ** theta
    assert (sample == 0).float().mean().item() == pytest.approx(zeros, abs=0.004)


def test_expand_keeps_one_logit_per_gene():
    logits = torch.zeros(5)
    distribution = ZeroInflated(Poisson(torch.ones(4, 5)), logits).expand((3, 4, 5))
    assert distribution.zero_inflation_logits is logits
    assert distribution.batch_shape == distribution.base.batch_shape == distribution.sample().shape == (3, 4, 5)
    assert ZeroInflated(Poisson(torch.ones(5)), torch.zeros(4, 5)).base.batch_shape == (4, 5)


def test_nan_logits_are_rejected():
    with pytest.raises(ValueError, match="zero_inflation_logits"):
        ZeroInflated(Poisson(torch.ones(1)), torch.tensor([torch.nan]))
