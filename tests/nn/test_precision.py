import pytest
import torch

from scvae_ext.nn.precision import full_precision


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_becomes_float32_with_its_gradient(dtype):
    values = torch.randn(3, 4, dtype=dtype, requires_grad=True)
    full = full_precision(values)
    assert full.dtype == torch.float32
    assert torch.equal(full.to(dtype), values)
    full.sum().backward()
    assert torch.equal(values.grad, torch.ones(3, 4, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_other_values_are_returned_as_they_are(dtype):
    values = torch.randn(3, dtype=dtype)
    assert full_precision(values) is values
