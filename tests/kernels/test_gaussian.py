import numpy as np
import pytest
import torch
from torch.distributions import Normal, kl_divergence

from scvae_ext.kernels import gaussian_sample, gaussian_sample_backward

LIMIT = np.float32(15)


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    shape = (33, 7)
    mean, log_variance, noise, upstream = (rng.normal(size=shape).astype(np.float32) for _ in range(4))
    log_variance *= 4
    log_variance[0, :2] = 20.0, -20.0
    return mean, log_variance, noise, upstream


def test_sample_divergence_and_derivatives_are_those_of_torch_in_double_precision(arrays):
    mean, log_variance, noise, upstream = arrays
    of_divergence = np.float32(0.3)
    exact_mean, exact_log_variance = (torch.from_numpy(array).double().requires_grad_() for array in arrays[:2])
    normal = Normal(exact_mean, torch.exp(0.5 * exact_log_variance.clamp(-15, 15)))
    exact_sample = normal.loc + normal.scale * torch.from_numpy(noise).double()
    exact_divergence = kl_divergence(normal, Normal(0.0, 1.0)).sum(1)
    (exact_sample * torch.from_numpy(upstream)).sum().backward(retain_graph=True)
    (exact_divergence.sum() * float(of_divergence)).backward()

    sample, std, divergence = gaussian_sample(mean, log_variance, noise, LIMIT)
    by_mean, by_log_variance = gaussian_sample_backward(upstream, mean, log_variance, noise, std, LIMIT, of_divergence)
    for found, expected in (
        (sample, exact_sample),
        (std, normal.scale),
        (divergence, exact_divergence),
        (by_mean, exact_mean.grad),
        (by_log_variance, exact_log_variance.grad),
    ):
        # A handful of roundings of 6e-8 each, of terms as large as the square of the largest standard deviation.
        np.testing.assert_allclose(found, expected.detach(), rtol=2e-6, atol=2e-6)
    assert by_log_variance[0, :2].tolist() == [0, 0]


@pytest.mark.parametrize("position", [0, 1])
def test_a_value_that_is_not_a_number_is_not_lost(arrays, position):
    arrays[position][3, 2] = np.nan
    sample, _, divergence = gaussian_sample(*arrays[:3], LIMIT)
    assert np.isnan(sample[3, 2])
    assert np.flatnonzero(np.isnan(divergence)).tolist() == [3]
