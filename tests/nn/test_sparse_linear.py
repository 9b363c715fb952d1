import pytest
import torch

from scvae_ext.minibatch import SparseCounts
from scvae_ext.nn import SparseLinear
from scvae_ext.nn.sparse_linear import MAX_DENSITY


def sparse_matrix(density: float, n_cells: int = 30, n_genes: int = 40) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(n_cells, n_genes, generator=generator) + 0.5
    kept = torch.rand(n_cells, n_genes, generator=generator) < density
    kept[3], kept[:, 7] = False, False  # a cell and a gene without counts
    kept[-1] = False
    return values * kept


@pytest.mark.parametrize("density", [0.0, 0.1, MAX_DENSITY - 0.05, 0.9])
@pytest.mark.parametrize("bias", [True, False])
def test_product_and_gradients_are_those_of_the_dense_product_in_double_precision(density, bias):
    x = sparse_matrix(density)
    layer = SparseLinear(40, 16, bias=bias)
    upstream = torch.randn(30, 16, generator=torch.Generator().manual_seed(1))
    output = layer(SparseCounts.from_dense(x))
    output.backward(upstream)
    weight = layer.weight.detach().double()
    expected = x.double() @ weight + (layer.bias.detach().double() if bias else 0.0)
    torch.testing.assert_close(output.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(layer.weight.grad.double(), x.T.double() @ upstream.double(), rtol=1e-5, atol=1e-5)
    if bias:
        torch.testing.assert_close(layer.bias.grad, upstream.sum(0))


def test_dense_input_passes_gradients_on_to_the_input():
    layer = SparseLinear(4, 3)
    x = torch.randn(2, 5, 4, requires_grad=True)
    layer(x).sum().backward()
    torch.testing.assert_close(x.grad, layer.weight.detach().sum(1).expand(2, 5, 4))


def test_same_seed_gives_the_weights_of_torchs_linear_map():
    torch.manual_seed(7)
    ours = SparseLinear(6, 5)
    torch.manual_seed(7)
    theirs = torch.nn.Linear(6, 5)
    torch.testing.assert_close(ours.weight, theirs.weight.T)
    torch.testing.assert_close(ours.bias, theirs.bias)


def test_gradient_is_the_same_bit_for_bit_on_every_call():
    counts = SparseCounts.from_dense(sparse_matrix(0.2))
    layer = SparseLinear(40, 16, bias=False)
    first, second = (torch.autograd.grad(layer(counts).square().sum(), layer.weight)[0] for _ in range(2))
    assert torch.equal(first, second)
