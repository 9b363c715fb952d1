import mpmath
import numpy as np
import pytest
import torch

from scvae_ext.distributions import Mixture, NegativeBinomial, Poisson
from scvae_ext.minibatch import SparseCounts


def nb_at_fifty_digits(x, mean, theta):
    with mpmath.workdps(50):
        x, mean, theta = map(mpmath.mpf, (x, mean, theta))
        log = (
            mpmath.loggamma(x + theta)
            - mpmath.loggamma(theta)
            - mpmath.loggamma(x + 1)
            + theta * mpmath.log(theta / (theta + mean))
            + x * mpmath.log(mean / (theta + mean))
        )
        return mpmath.exp(log)


def test_log_probability_is_that_of_fifty_digits():
    """Also where one component, or the mixing, is beyond the range of float32 probabilities."""
    for x in (0, 1, 7, 300, 20_000):
        for means in ((3.0, 40.0), (1e-3, 900.0), (500.0, 501.0)):
            for logit in (-60.0, -1.5, 0.0, 4.0, 60.0):
                mixture = Mixture(
                    NegativeBinomial(torch.tensor([[means[0]]]), torch.tensor([2.5])),
                    NegativeBinomial(torch.tensor([[means[1]]]), torch.tensor([8.0])),
                    torch.tensor([[logit]]),
                )
                with mpmath.workdps(50):
                    share = 1 / (1 + mpmath.exp(-mpmath.mpf(logit)))
                    exact = share * nb_at_fifty_digits(x, means[0], 2.5)
                    exact = float(mpmath.log(exact + (1 - share) * nb_at_fifty_digits(x, means[1], 8.0)))
                found = float(mixture.log_prob(torch.tensor([[float(x)]])))
                assert found == pytest.approx(exact, rel=1e-4, abs=1e-4)


@pytest.fixture
def mixture():
    first = NegativeBinomial(torch.tensor([[2.0, 5.0]]), torch.tensor([3.0, 1.0]))
    second = NegativeBinomial(torch.tensor([[30.0, 8.0]]), torch.tensor([6.0, 20.0]))
    return Mixture(first, second, torch.tensor([[0.4, -1.0]]))


def test_probabilities_sum_to_one_and_give_the_moments(mixture):
    x = torch.arange(0, 2000.0).view(-1, 1).expand(-1, 2)
    p = mixture.expand((len(x), 2)).log_prob(x).double().exp()
    np.testing.assert_allclose(p.sum(0), 1, atol=1e-5)
    mean = (p * x).sum(0)
    np.testing.assert_allclose(mixture.mean[0], mean, rtol=1e-5)
    np.testing.assert_allclose(mixture.variance[0], (p * (x - mean).square()).sum(0), rtol=1e-4)
    np.testing.assert_allclose(mixture.log_prob_zero()[0].exp(), p[0], rtol=1e-5)


def test_samples_have_the_moments_and_the_share_of_zeros(mixture):
    torch.manual_seed(0)
    draws = mixture.sample((40_000,))[:, 0].double()
    error = draws.std(0) / 200
    assert ((draws.mean(0) - mixture.mean[0]).abs() < 4.5 * error).all()
    np.testing.assert_allclose(draws.var(0), mixture.variance[0], rtol=0.05)
    np.testing.assert_allclose((draws == 0).double().mean(0), mixture.log_prob_zero()[0].exp(), atol=0.01)


def test_which_component_a_count_is_from_follows_from_bayes(mixture):
    counts = torch.tensor([[4.0, 9.0]])
    first = mixture.first.log_prob(counts).double().exp() * mixture.first_probability
    second = mixture.second.log_prob(counts).double().exp() * (1 - mixture.first_probability)
    found = mixture.first_logits_given(SparseCounts.from_dense(counts)).sigmoid()
    np.testing.assert_allclose(found, first / (first + second), rtol=1e-5)


def test_gradients_are_those_of_differences():
    torch.manual_seed(1)
    log_means, logits = torch.randn(2, 3, 4, dtype=torch.float64), torch.randn(3, 4, dtype=torch.float64)
    log_theta = torch.randn(2, 4, dtype=torch.float64)
    counts = SparseCounts.from_dense(torch.tensor([[0.0, 3, 11, 0], [1, 0, 0, 40], [2, 2, 5, 0]], dtype=torch.float64))

    def log_prob(log_means, log_theta, logits):
        parts = [NegativeBinomial(m.exp(), t.exp(), False) for m, t in zip(log_means, log_theta, strict=True)]
        return Mixture(*parts, logits, False).log_prob_sparse(counts).sum()

    arguments = [value.requires_grad_() for value in (log_means, log_theta, logits)]
    assert torch.autograd.gradcheck(log_prob, arguments, atol=1e-6)


def test_samples_lead_and_a_logit_that_is_no_number_is_refused():
    rate = torch.ones(5, 3, 2)
    mixture = Mixture(Poisson(rate), Poisson(4 * rate), torch.zeros(2))
    counts = SparseCounts.from_dense(torch.tensor([[0.0, 1], [2, 0], [3, 4]]))
    assert mixture.log_prob_sparse(counts).shape == (5, 3, 2)
    with pytest.raises(ValueError, match="first_logits"):
        Mixture(Poisson(torch.ones(1)), Poisson(torch.ones(1)), torch.tensor([torch.nan]), validate_args=True)
