import mpmath
import pytest
import torch
from distributions.exact import worst_error

from scvae_ext.distributions.special import binet_above_one, log_one_minus, stirling_remainders


def binet(a):
    a = mpmath.mpf(a)
    return mpmath.loggamma(a) - (a - 0.5) * mpmath.log(a) + a - mpmath.log(2 * mpmath.pi) / 2


def digamma_remainder(a):
    return mpmath.digamma(a) - mpmath.log(a)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 4e-7), (torch.float64, 2e-14)])
def test_stirling_remainders(dtype, tolerance):
    a = torch.cat([torch.linspace(1, 20, 200, dtype=dtype), torch.logspace(1, 10, 50, dtype=dtype)])
    value, slope = stirling_remainders(a)
    assert worst_error(value, map(binet, a.tolist())) < tolerance
    assert worst_error(slope, map(digamma_remainder, a.tolist())) < tolerance
    assert torch.equal(binet_above_one(a), value)


@pytest.mark.parametrize(("dtype", "epsilon"), [(torch.float32, 2**-24), (torch.float64, 2**-53)])
def test_log_one_minus_is_relatively_exact(dtype, epsilon):
    small = torch.logspace(-12, -0.5, 60, dtype=dtype)
    gap = torch.cat([small, -small, -torch.logspace(0, 6, 20, dtype=dtype)])
    result = log_one_minus(gap, 1 - gap)
    truth = [mpmath.log1p(-mpmath.mpf(value)) for value in gap.tolist()]
    relative = [abs(mpmath.mpf(value) / exact - 1) for value, exact in zip(result.tolist(), truth, strict=True)]
    assert max(relative) < 8 * epsilon


def test_log_one_minus_takes_tiny_ratios_from_the_ratio():
    ratio = torch.logspace(-30, -2, 29)
    truth = [mpmath.log(mpmath.mpf(value)) for value in ratio.tolist()]
    assert worst_error(log_one_minus(1 - ratio, ratio), truth) < 1e-6
