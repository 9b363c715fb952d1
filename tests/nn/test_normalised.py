import copy

import pytest
import torch
from torch import nn

from scvae_ext.nn.normalised import normalise_and_rectify

N_COLUMNS = 37


@pytest.fixture
def batch_norm():
    torch.manual_seed(0)
    layer = nn.BatchNorm1d(N_COLUMNS, eps=1e-3)
    with torch.no_grad():
        layer.weight.uniform_(0.5, 2)
        layer.bias.normal_()
        layer.running_mean.normal_()
    return layer


@pytest.mark.parametrize("shape", [(2, N_COLUMNS), (128, N_COLUMNS), (3, 20, N_COLUMNS)])
def test_values_derivatives_and_running_moments_are_those_of_torch_in_double_precision(batch_norm, shape):
    # Single precision keeps means of columns to 4e-7, which is as much of their standard deviations, none below one.
    x = torch.randn(shape) * (1 + torch.rand(N_COLUMNS) * 4) + 3
    upstream = torch.randn(shape)
    exact, exact_x = copy.deepcopy(batch_norm).double(), x.double().requires_grad_()
    x.requires_grad_()
    output = normalise_and_rectify(x, batch_norm, 0.0, True)
    expected = exact(exact_x.flatten(0, -2)).relu().view(shape)
    (output * upstream).sum().backward()
    (expected * upstream.double()).sum().backward()
    torch.testing.assert_close(output.double(), expected, rtol=1e-5, atol=1e-5)
    # Two rows are +-1 once standardised, and derivatives the difference of terms that cancel.
    pairs = [(x, exact_x), (batch_norm.weight, exact.weight), (batch_norm.bias, exact.bias)]
    for ours, theirs in pairs:
        torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=1e-4, atol=1e-4)
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        found, expected = getattr(batch_norm, name).double(), getattr(exact, name).double()
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_dropout_leaves_its_share_out_and_keeps_the_expectation(batch_norm):
    """Bounds of five standard deviations, sqrt(0.3 * 0.7 / n) of a share and sqrt(2 / n) of a variance."""
    x = torch.rand(4000, N_COLUMNS)
    with torch.no_grad():
        batch_norm.bias.fill_(20.0)  # nothing is rectified
        kept = normalise_and_rectify(x, batch_norm, 0.0, True)
        dropped = normalise_and_rectify(x, batch_norm, 0.3, True)
    out = dropped == 0
    assert abs(out.double().mean() - 0.3) < 5 * (0.3 * 0.7 / out.numel()) ** 0.5
    torch.testing.assert_close(dropped[~out], kept[~out] / 0.7, rtol=1e-4, atol=0)
    # Units of a row are left out independently of each other: their number has the variance of a binomial.
    assert abs(out.double().sum(1).var() / (N_COLUMNS * 0.3 * 0.7) - 1) < 5 * (2 / len(out)) ** 0.5
    # What was left out has no derivative.
    x = x.clone().requires_grad_()
    output = normalise_and_rectify(x, batch_norm, 0.3, True)
    (grad,) = torch.autograd.grad(output.sum(), batch_norm.bias)
    torch.testing.assert_close(grad, (output > 0).sum(0) / 0.7, rtol=1e-4, atol=0)


def test_the_generator_of_torch_decides(batch_norm):
    def draw(seed):
        torch.manual_seed(seed)
        return normalise_and_rectify(torch.ones(6, N_COLUMNS) * torch.arange(6.0)[:, None], batch_norm, 0.5, True)

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))


def test_a_value_that_is_no_number_stays_one(batch_norm):
    x = torch.randn(5, N_COLUMNS)
    x[2, 3] = torch.nan
    assert normalise_and_rectify(x, batch_norm, 0.0, True)[:, 3].isnan().all()


@pytest.mark.parametrize("case", ["evaluation", "double"])
def test_elsewhere_it_is_what_torch_makes_of_it(batch_norm, case):
    x = torch.randn(9, N_COLUMNS)
    if case == "double":
        batch_norm, x = batch_norm.double(), x.double()
    batch_norm.train(case != "evaluation")
    expected = copy.deepcopy(batch_norm)(x).relu()
    assert torch.equal(normalise_and_rectify(x, batch_norm, 0.0, case != "evaluation"), expected)
