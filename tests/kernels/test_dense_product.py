import importlib

import llvmlite.binding as llvm
import numpy as np
import pytest
import torch

from scvae_ext.kernels import dense_product, transposed_dense_product

module = importlib.import_module("scvae_ext.kernels.dense_product")
ONEDNN = torch.ops.mkldnn._linear_pointwise if torch.backends.mkldnn.is_available() else None


class Counted:
    """oneDNN's linear map, and how often it was asked."""

    def __init__(self):
        self.calls = 0

    def __call__(self, *arguments):
        self.calls += 1
        return ONEDNN(*arguments)


@pytest.fixture
def onednn(monkeypatch):
    if ONEDNN is None:
        pytest.skip("torch was built without oneDNN")
    counted = Counted()
    monkeypatch.setattr(module, "_onednn_linear", lambda: counted)
    return counted


@pytest.fixture
def mkl(monkeypatch):
    monkeypatch.setattr(module, "_onednn_linear", lambda: None)


@pytest.fixture(params=["onednn", "mkl"])
def library(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(params=[1, 3])
def n_threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def draw(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))


# The longest side is no multiple of what is turned at a time, or is; short sides and small products are MKL's.
@pytest.mark.parametrize(("rows", "inner", "columns"), [(128, 128, 500), (77, 130, 333), (128, 10, 2000), (5, 7, 3)])
def test_products_are_those_of_numpy_in_double_precision(library, n_threads, rows, inner, columns):
    x, weight, bias, by_output = (
        draw(rows, inner),
        draw(columns, inner, seed=1),
        draw(columns, seed=2),
        draw(rows, columns, seed=3),
    )
    exact = {name: value.double().numpy() for name, value in locals().items() if isinstance(value, torch.Tensor)}
    product = exact["x"] @ exact["weight"].T
    assert_single_precision(dense_product(x, weight), product, inner)
    assert_single_precision(dense_product(x, weight, bias), product + exact["bias"], inner)
    assert_single_precision(dense_product(by_output, weight.T), exact["by_output"] @ exact["weight"], columns)
    assert_single_precision(transposed_dense_product(by_output, x), exact["by_output"].T @ exact["x"], rows)
    assert_single_precision(transposed_dense_product(x, by_output), exact["x"].T @ exact["by_output"], rows)


def assert_single_precision(actual, exact, n_terms):
    # Sums of so many products of standard normals, whose rounding grows with their size and their number.
    np.testing.assert_allclose(actual, exact, rtol=0, atol=1e-5 * n_terms**0.5)


@pytest.mark.parametrize("turn", ["x", "weight"])
def test_views_are_as_good_as_matrices(library, turn):
    x, weight = draw(128, 64), draw(400, 64, seed=1)
    views = {"x": x, "weight": weight}
    views[turn] = views[turn].T.contiguous().T
    torch.testing.assert_close(dense_product(views["x"], views["weight"]), x @ weight.T, atol=1e-4, rtol=1e-5)


def test_results_are_contiguous_as_optimisers_take_gradients(library):
    assert transposed_dense_product(draw(128, 400), draw(128, 64)).is_contiguous()


def test_what_onednn_takes(onednn):
    x, weight = draw(128, 128), draw(500, 128, seed=1)
    dense_product(x, weight)
    transposed_dense_product(draw(128, 500), x)
    assert onednn.calls == 2
    dense_product(x[:, :20], weight[:, :20])  # a side too short
    dense_product(x[:, :40], weight[:40, :40])  # too little altogether
    dense_product(x.double(), weight.double())
    torch._C._set_mkldnn_enabled(False)
    try:
        dense_product(x, weight)
    finally:
        torch._C._set_mkldnn_enabled(True)
    assert onednn.calls == 2


@pytest.mark.parametrize(
    ("processor", "capability", "expected"),
    [
        ("znver5", "AVX512", True),
        ("znver6", "AVX512", True),
        ("znver4", "AVX512", False),
        ("znver5", "AVX2", False),
        ("sapphirerapids", "AVX512", False),
        ("apple-m1", "DEFAULT", False),
    ],
)
def test_onednn_is_for_processors_on_which_it_is_faster(monkeypatch, processor, capability, expected):
    if ONEDNN is None:
        pytest.skip("torch was built without oneDNN")
    monkeypatch.setattr(llvm, "get_host_cpu_name", lambda: processor)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    module._onednn_linear.cache_clear()
    try:
        assert (module._onednn_linear() is not None) is expected
    finally:
        module._onednn_linear.cache_clear()
