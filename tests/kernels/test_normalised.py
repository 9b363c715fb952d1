import numpy as np
import pytest
import torch

from scvae_ext.kernels import normalised, normalised_backward

f32 = np.float32
MOMENTUM, EPS = 0.1, 1e-3


def _inputs(n_rows, n_columns, seed=0):
    rng = np.random.default_rng(seed)
    x = (rng.normal(size=(n_rows, n_columns)) * rng.uniform(0.1, 30, n_columns) + rng.normal(0, 5, n_columns)).astype(
        f32
    )
    weight, bias = rng.normal(1, 0.5, n_columns).astype(f32), rng.normal(size=n_columns).astype(f32)
    random = rng.integers(2**16, size=x.shape, dtype=np.uint16)
    return x, weight, bias, random


def _reference(x, weight, bias, kept, n_kept):
    """The same in double precision, recorded by torch."""
    x, weight, bias = (torch.from_numpy(array).double().requires_grad_() for array in (x, weight, bias))
    running = torch.zeros(x.shape[1], dtype=torch.float64), torch.ones(x.shape[1], dtype=torch.float64)
    output = torch.nn.functional.batch_norm(x, *running, weight, bias, True, MOMENTUM, EPS).relu()
    return output * torch.from_numpy(kept) * (65536 / n_kept), (x, weight, bias), running


@pytest.mark.parametrize("shape", [(2, 1), (7, 5), (128, 33)])
@pytest.mark.parametrize("n_kept", [65536, 58982, 1000])
def test_values_moments_and_derivatives_are_those_of_double_precision(shape, n_kept):
    x, weight, bias, random = _inputs(*shape)
    expected, leaves, moments = _reference(x, weight, bias, random < n_kept, n_kept)
    running = np.zeros(shape[1], f32), np.ones(shape[1], f32)
    output, standardised, inverse_std = normalised(x, weight, bias, running, f32(MOMENTUM), f32(EPS), random, n_kept)
    np.testing.assert_allclose(output, expected.detach(), rtol=1e-4, atol=1e-4)
    for found, moment in zip(running, moments, strict=True):
        np.testing.assert_allclose(found, moment, rtol=1e-4, atol=1e-5)
    grad = np.random.default_rng(1).normal(size=shape).astype(f32)
    expected.backward(torch.from_numpy(grad).double())
    factor = f32(65536 / n_kept)
    found = normalised_backward(grad, output, standardised, weight, inverse_std, factor)
    for derivative, leaf in zip(found, leaves, strict=True):
        scale = leaf.grad.abs().max().item()
        np.testing.assert_allclose(derivative, leaf.grad, rtol=1e-3, atol=2e-4 * scale)


def test_as_many_levels_are_kept_as_it_is_said():
    """All sixteen-bit integers once: the share of activations that are kept is exact."""
    n_kept = 40000
    random = np.arange(2**16, dtype=np.uint16).reshape(-1, 4)
    x = np.random.default_rng(3).normal(size=random.shape).astype(f32)
    running = np.zeros(4, f32), np.ones(4, f32)
    weight, bias = np.zeros(4, f32), np.ones(4, f32)
    output, *_ = normalised(x, weight, bias, running, f32(MOMENTUM), f32(EPS), random, n_kept)
    assert np.count_nonzero(output) == n_kept


def test_without_random_numbers_nothing_is_left_out():
    x, weight, bias, random = _inputs(6, 4)
    running = np.zeros(4, f32), np.ones(4, f32)
    output, *_ = normalised(x, weight, bias, running, f32(MOMENTUM), f32(EPS), random[:0], 65536)
    expected, *_ = _reference(x, weight, bias, np.ones_like(random, dtype=bool), 65536)
    np.testing.assert_allclose(output, expected.detach(), rtol=1e-4, atol=1e-4)


def test_a_missing_value_stays_one():
    x, weight, bias, random = _inputs(6, 4)
    x[2, 1] = np.nan
    running = np.zeros(4, f32), np.ones(4, f32)
    output, *_ = normalised(x, weight, bias, running, f32(MOMENTUM), f32(EPS), random[:0], 65536)
    assert np.isnan(output[:, 1]).all()
    assert np.isfinite(output[:, [0, 2, 3]]).all()
