from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from scvae_ext.nn.precision import full_precision, single_precision


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_tensors_are_float32_within_whatever_the_default(default_dtype, dtype):
    default_dtype(dtype)

    def fail():
        with single_precision():
            assert torch.zeros(1).dtype == torch.nn.Linear(1, 1).weight.dtype == torch.float32
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert torch.get_default_dtype() == dtype


def test_the_last_of_several_threads_puts_the_default_back(default_dtype):
    default_dtype(torch.float64)
    first, second = single_precision(), single_precision()
    with ThreadPoolExecutor(2) as threads:
        for step, expected in (
            (first.__enter__, torch.float32),
            (second.__enter__, torch.float32),
            (lambda: first.__exit__(None, None, None), torch.float32),
            (lambda: second.__exit__(None, None, None), torch.float64),
        ):
            threads.submit(step).result()
            assert torch.get_default_dtype() == expected
