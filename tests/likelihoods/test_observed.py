import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch.distributions import Normal

from scvae_ext.distributions import NegativeBinomial, Poisson, ZeroInflated
from scvae_ext.likelihoods import expected_rate_ratio

MEAN, THETA, COUNTS = (0.01, 0.7, 30.0), (0.2, 3.0, 50.0), (0, 1, 7, 100)


def _integral(power, mean, theta, count):
    """Of u^power p(u) p(count | u) over all u, by quadrature in log u: in units of a number, and its logarithm."""

    def log_density(log_u):
        u = np.exp(log_u)
        return stats.gamma.logpdf(u, theta, scale=1 / theta) + log_u + stats.poisson.logpmf(count, mean * u)

    peak = np.log((theta + count) / (theta + mean))
    width = 12 / np.sqrt(theta + count)
    ends = peak - max(width, 12 / (theta + count)), peak + min(width, 8)
    value, _ = integrate.quad(
        lambda log_u: np.exp(power * log_u + log_density(log_u) - log_density(peak)),
        *ends,
        points=[peak],
        limit=500,
    )
    return value, log_density(peak)


@pytest.mark.parametrize("mean", MEAN)
@pytest.mark.parametrize("theta", THETA)
@pytest.mark.parametrize("count", COUNTS)
def test_it_is_the_mean_of_what_made_the_count_overdispersed(mean, theta, count):
    px = NegativeBinomial(torch.tensor([[mean]]), torch.tensor([theta]))
    found = expected_rate_ratio(px, torch.tensor([[float(count)]])).item()
    expected = _integral(1, mean, theta, count)[0] / _integral(0, mean, theta, count)[0]
    assert found == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("mean", MEAN)
@pytest.mark.parametrize("theta", THETA)
@pytest.mark.parametrize("extra", [0.01, 0.5, 0.99])
def test_an_extra_zero_says_nothing_about_the_rate(mean, theta, extra):
    base = NegativeBinomial(torch.tensor([[mean, mean]]), torch.tensor([theta, theta]))
    logit = float(np.log(extra / (1 - extra)))
    found = expected_rate_ratio(ZeroInflated(base, torch.full((1, 2), logit)), torch.tensor([[0.0, 4.0]]))
    zero = [value * np.exp(log_unit) for value, log_unit in (_integral(power, mean, theta, 0) for power in (0, 1))]
    expected = (extra + (1 - extra) * zero[1]) / (extra + (1 - extra) * zero[0])
    assert found[0, 0].item() == pytest.approx(expected, rel=1e-4)
    assert found[0, 1].item() == pytest.approx((theta + 4) / (theta + mean), rel=1e-5)


def test_poisson_counts_are_not_overdispersed():
    seen = torch.tensor([[0.0, 5.0]])
    assert expected_rate_ratio(Poisson(torch.tensor([[1.0, 2.0]])), seen).tolist() == [[1.0, 1.0]]


def test_other_distributions_are_refused():
    with pytest.raises(TypeError, match="Normal is no distribution of counts"):
        expected_rate_ratio(Normal(torch.zeros(1, 1), 1.0), torch.zeros(1, 1))
