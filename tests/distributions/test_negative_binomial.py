import math

import pytest
import torch
from distributions import exact
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from scvae_ext.distributions import NegativeBinomial, Poisson
from scvae_ext.minibatch import SparseCounts

PRECISIONS = [(torch.float32, 2e-5, 5e-4), (torch.float64, 1e-13, 1e-11)]


@pytest.fixture(scope="module")
def grid():
    axes = torch.tensor(exact.COUNTS, dtype=torch.float32), torch.logspace(-8, 6, 15), torch.logspace(-4, 10, 15)
    points = torch.meshgrid(*axes, indexing="ij")
    return points, exact.evaluate(exact.negative_binomial, *points)


def differentiated(mean, theta, log_prob):
    mean, theta = mean.clone().requires_grad_(), theta.clone().requires_grad_()
    result = log_prob(NegativeBinomial(mean, theta))
    return result, *torch.autograd.grad(result.sum(), (mean, theta))


@pytest.mark.parametrize(("dtype", "tolerance", "gradient_tolerance"), PRECISIONS)
def test_log_prob_and_gradients_against_50_digits(grid, dtype, tolerance, gradient_tolerance):
    (value, mean, theta), truth = grid
    value, mean, theta = (term.to(dtype) for term in (value, mean, theta))
    log_prob, by_mean, by_theta = differentiated(mean, theta, lambda distribution: distribution.log_prob(value))
    assert log_prob.dtype == dtype
    assert exact.worst_error(log_prob, truth[0]) < tolerance
    assert exact.worst_error(by_mean, truth[1]) < gradient_tolerance
    assert exact.worst_error(by_theta, truth[2]) < gradient_tolerance


@pytest.mark.parametrize(("dtype", "tolerance", "gradient_tolerance"), PRECISIONS)
def test_sparse_log_prob_against_50_digits(grid, dtype, tolerance, gradient_tolerance):
    (value, mean, theta), truth = grid
    value, mean, theta = (term.to(dtype).reshape(-1, 15) for term in (value, mean, theta))
    counts = SparseCounts.from_dense(value)
    # The last axis of the grid is theta, so it can also be given once for each gene.
    for given_theta in (theta, theta[0]):
        log_prob, by_mean, by_theta = differentiated(
            mean, given_theta, lambda distribution: distribution.log_prob_sparse(counts)
        )
        assert exact.worst_error(log_prob, truth[0]) < tolerance
        assert exact.worst_error(by_mean, truth[1]) < gradient_tolerance
        exact_by_theta = truth[2] if given_theta.dim() == 2 else [sum(truth[2][gene::15]) for gene in range(15)]
        assert exact.worst_error(by_theta, exact_by_theta) < gradient_tolerance


@pytest.mark.parametrize("theta_per_gene", [False, True])
def test_sum_over_genes_against_50_digits(grid, theta_per_gene):
    (value, mean, theta), truth = grid
    # Means within a factor of 1e4 of the counts: sums are then not ruled by one entry.
    near = ((value + 1) / mean).log10().abs().amax(-1).flatten() < 4
    value, mean, theta = (term.reshape(-1, 15)[near] for term in (value, mean, theta))
    rows = [row for row in range(len(near)) if near[row]]
    counts = SparseCounts.from_dense(value)
    given_theta = theta[0] if theta_per_gene else theta
    log_prob, by_mean, by_theta = differentiated(
        mean, given_theta, lambda distribution: distribution.log_prob_sum(counts)
    )
    log_prob_truth, mean_truth, theta_truth = ([column[15 * r : 15 * r + 15] for r in rows] for column in truth)
    assert exact.worst_error(log_prob, [sum(row) for row in log_prob_truth]) < 1e-5
    assert exact.worst_error(by_mean, [entry for row in mean_truth for entry in row]) < 5e-4
    if theta_per_gene:
        assert exact.worst_error(by_theta, [sum(column) for column in zip(*theta_truth, strict=True)]) < 5e-4
    else:
        assert exact.worst_error(by_theta, [entry for row in theta_truth for entry in row]) < 5e-4


@settings(deadline=None)
@given(x=st.integers(0, 100_000), log10_mean=st.floats(-8, 6), log10_theta=st.floats(-4, 10))
def test_log_prob_anywhere(x, log10_mean, log10_theta):
    value, mean, theta = torch.tensor([[float(x)], [10**log10_mean], [10**log10_theta]])
    log_prob, by_mean, by_theta = differentiated(mean, theta, lambda distribution: distribution.log_prob(value))
    truth = exact.evaluate(exact.negative_binomial, value, mean, theta)
    assert exact.worst_error(log_prob, truth[0]) < 1e-4
    assert exact.worst_error(by_mean, truth[1]) < 1e-3
    assert exact.worst_error(by_theta, truth[2]) < 1e-3


@settings(deadline=None)
@given(excess=st.floats(-1e-3, 1e-3), x=st.integers(1, 50), log10_theta=st.floats(-4, -1))
def test_gradient_by_theta_where_its_terms_cancel(excess, x, log10_theta):
    # 1 / theta and (x - mean) / (theta + mean) are both of the order of 1e4 here, and nearly equal.
    theta = torch.tensor([10**log10_theta])
    mean = theta * x * (1 + excess)
    value = torch.tensor([float(x)])
    *_, by_theta = differentiated(mean, theta, lambda distribution: distribution.log_prob(value))
    assert exact.worst_error(by_theta, exact.evaluate(exact.negative_binomial, value, mean, theta)[2]) < 1e-3


@pytest.mark.parametrize("mean", [1e-4, 0.5, 20.0, 300.0])
@pytest.mark.parametrize("theta", [0.2, 3.0, 1e4, 1e10])
def test_probabilities_sum_to_one(mean, theta):
    value = torch.arange(40_000)
    total = NegativeBinomial(torch.tensor(mean), torch.tensor(theta)).log_prob(value).exp().sum()
    assert total.item() == pytest.approx(1, abs=5e-6)


def test_is_poisson_for_large_theta():
    value = torch.arange(60.0)
    mean = torch.tensor(12.0)
    poisson = Poisson(mean).log_prob(value)
    assert torch.allclose(NegativeBinomial(mean, torch.tensor(1e10)).log_prob(value), poisson, atol=2e-6)
    # To first order in 1 / theta, they differ by ((x - mean)^2 - x) / (2 theta).
    near = NegativeBinomial(mean.double(), torch.tensor(1e6, dtype=torch.float64)).log_prob(value)
    difference = near - Poisson(mean.double()).log_prob(value)
    assert torch.allclose(difference, ((value - mean).square() - value).double() / 2e6, rtol=1e-3, atol=1e-8)


@pytest.mark.parametrize("theta_shape", [(), (3,), (2, 3), (2, 1), (2, 2, 3), (2, 1, 3)])
@pytest.mark.parametrize("mean_shape", [(2, 3), (2, 2, 3), (3,)])
def test_gradcheck_over_shapes(mean_shape, theta_shape):
    generator = torch.Generator().manual_seed(0)
    mean, theta = (
        torch.rand(shape, generator=generator, dtype=torch.float64).add_(0.2).requires_grad_()
        for shape in (mean_shape, theta_shape)
    )
    value = torch.poisson(torch.ones(2, 3, dtype=torch.float64), generator=generator)
    counts = SparseCounts.from_dense(value)

    def log_prob_sum(mean, theta):
        return NegativeBinomial(mean, theta).log_prob_sum(counts)

    def weighted(mean, theta):
        return NegativeBinomial(mean, theta).log_prob_sparse(counts) * value.cos()

    assert torch.autograd.gradcheck(log_prob_sum, (mean, theta))
    assert torch.autograd.gradcheck(weighted, (mean, theta))
    expected = NegativeBinomial(mean, theta).log_prob(value).sum(-1)
    assert torch.allclose(log_prob_sum(mean, theta), expected, rtol=1e-12)


def test_without_gradients_the_value_is_the_same():
    torch.manual_seed(0)
    mean, theta = torch.rand(4, 5, requires_grad=True), torch.rand(5)
    counts = SparseCounts.from_dense(torch.poisson(torch.ones(4, 5)))
    expected = NegativeBinomial(mean, theta).log_prob_sum(counts)
    assert expected.requires_grad
    with torch.no_grad():
        assert torch.equal(NegativeBinomial(mean, theta).log_prob_sum(counts), expected)
    assert torch.allclose(NegativeBinomial(mean.detach(), theta).log_prob_sum(counts), expected.detach(), atol=1e-6)


class Operations(TorchDispatchMode):
    """Records the names of operations and the size of what they return."""

    def __init__(self):
        super().__init__()
        self.sizes = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            name = func.name().removeprefix("aten::").partition(".")[0].rstrip("_")
            self.sizes[name] = max(self.sizes.get(name, 0), result.numel())
        return result


def test_expensive_functions_are_evaluated_at_entries_that_are_not_zero():
    mean, theta = torch.ones(50, 40, requires_grad=True), torch.ones(40, requires_grad=True)
    counts = SparseCounts.from_dense(torch.eye(50, 40))
    with Operations() as operations:
        NegativeBinomial(mean, theta, validate_args=False).log_prob_sum(counts).sum().backward()
    assert not {"lgamma", "digamma"} & operations.sizes.keys()
    assert operations.sizes["log"] == 40
    assert operations.sizes["log1p"] == 2_000


@pytest.mark.parametrize("theta", [0.05, 1.0, 30.0, 1e10])
@pytest.mark.parametrize("mean", [0.3, 20.0])
def test_samples_follow_the_distribution(mean, theta):
    torch.manual_seed(1)
    distribution = NegativeBinomial(torch.tensor(mean), torch.tensor(theta))
    sample = distribution.sample((400_000,))
    assert torch.equal(sample, sample.round())
    assert distribution.variance.item() == pytest.approx(mean + mean**2 / theta, rel=1e-5)
    standard_error = math.sqrt((mean + mean**2 / theta) / 400_000)
    assert sample.mean().item() == pytest.approx(mean, abs=5 * standard_error)
    assert sample.var().item() == pytest.approx(mean + mean**2 / theta, rel=0.1)
    zeros = (1 + mean / theta) ** -theta if theta < 1e6 else math.exp(-mean)
    assert (sample == 0).float().mean().item() == pytest.approx(zeros, abs=0.004)


@pytest.mark.parametrize("mean", [1e-8, 1.0, 1e6])
def test_samples_of_extreme_dispersion_are_finite(mean):
    torch.manual_seed(0)
    rare = NegativeBinomial(torch.tensor(mean), torch.tensor(1e-4)).sample((200_000,))
    assert torch.isfinite(rare).all()
    assert (rare > 0).float().mean().item() == pytest.approx(-math.expm1(-1e-4 * math.log1p(mean / 1e-4)), abs=6e-4)
    dense = NegativeBinomial(torch.tensor(mean), torch.tensor(1e10)).sample((20_000,))
    assert dense.mean().item() == pytest.approx(mean, abs=5 * math.sqrt(mean / 20_000) + 1e-4)


def test_inverse_dispersion_is_not_expanded():
    theta = torch.rand(5) + 0.1
    distribution = NegativeBinomial(torch.ones(4, 5), theta)
    assert distribution.inverse_dispersion is theta
    assert distribution.batch_shape == (4, 5)
    expanded = distribution.expand((3, 4, 5))
    assert expanded.inverse_dispersion is theta
    assert expanded.mean.shape == expanded.variance.shape == expanded.sample().shape == (3, 4, 5)


@pytest.mark.parametrize(("mean", "theta", "name"), [(-1.0, 1.0, "mean"), (1.0, 0.0, "inverse_dispersion")])
def test_parameters_outside_their_range_are_rejected(mean, theta, name):
    with pytest.raises(ValueError, match=name):
        NegativeBinomial(torch.tensor([mean]), torch.tensor([theta]))
    NegativeBinomial(torch.tensor([mean]), torch.tensor([theta]), validate_args=False)
