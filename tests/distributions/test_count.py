import math

import pytest
import torch

from scvae_ext.distributions import CountDistribution, Mixture, NegativeBinomial, Poisson, ZeroInflated
from scvae_ext.minibatch import SparseCounts

BUILDERS = {
    "poisson": lambda shape, **options: Poisson(torch.full(shape, 2.0), **options),
    "nb": lambda shape, **options: NegativeBinomial(torch.full(shape, 2.0), torch.ones(shape), **options),
    "zinb": lambda shape, **options: ZeroInflated(
        NegativeBinomial(torch.full(shape, 2.0), torch.ones(shape), **options), torch.zeros(shape), **options
    ),
}
# p(3) by hand: Poisson 2^3 e^-2 / 3!, negative binomial of theta one is geometric: (1/3) (2/3)^3.
AT_THREE = {"poisson": math.log(8 / 6) - 2, "nb": math.log(8 / 81), "zinb": math.log(4 / 81)}


@pytest.fixture(params=BUILDERS)
def name(request):
    return request.param


def test_abstract_base_cannot_be_built():
    with pytest.raises(TypeError, match="abstract"):
        CountDistribution()


@pytest.mark.parametrize("name", [*BUILDERS, "few extra zeros", "mixture"])
def test_poisson_counts_of_rates_that_are_drawn_follow_the_distribution(name):
    torch.manual_seed(0)
    n = 100_000
    if name == "mixture":
        distribution = Mixture(Poisson(torch.tensor([0.5])), BUILDERS["nb"]((1,)), torch.tensor([0.3]))
    elif name == "few extra zeros":
        distribution = ZeroInflated(BUILDERS["nb"]((1,)), torch.tensor([-1.5]))
    else:
        distribution = BUILDERS[name]((1,))
    rate = distribution.sample_rate((n,))
    assert rate.shape == (n, 1)
    # Moments of a Poisson mixture: the mean is that of the rates, the variance theirs and the mean.
    mean, variance = distribution.mean.item(), distribution.variance.item()
    assert rate.mean().item() == pytest.approx(mean, abs=5 * math.sqrt(variance / n))
    assert rate.var().item() == pytest.approx(variance - mean, rel=0.05, abs=1e-9)
    zeros = rate.neg().exp()
    expected = distribution.log_prob_zero().exp().item()
    assert zeros.mean().item() == pytest.approx(expected, abs=5 * zeros.std().item() / math.sqrt(n) + 1e-6)


def test_integer_values(name):
    log_prob = BUILDERS[name](()).log_prob(torch.tensor(3))
    assert log_prob.dtype == torch.float32
    assert log_prob.item() == pytest.approx(AT_THREE[name], abs=1e-6)


def test_values_broadcast_against_parameters(name):
    log_prob = BUILDERS[name]((2, 1)).log_prob(torch.tensor([3.0, 3.0, 3.0]))
    assert log_prob.shape == (2, 3)
    assert log_prob.flatten().tolist() == pytest.approx([AT_THREE[name]] * 6, abs=1e-6)


@pytest.mark.parametrize("value", [-1.0, 0.5])
def test_values_outside_the_support_are_rejected(name, value):
    with pytest.raises(ValueError, match="support"):
        BUILDERS[name]((2,)).log_prob(torch.tensor([value, 1.0]))


def test_negative_values_are_impossible_where_not_validated(name):
    distribution = BUILDERS[name]((2,), validate_args=False)
    impossible, possible = distribution.log_prob(torch.tensor([-1.0, 3.0]))
    assert impossible == -torch.inf
    assert possible.item() == pytest.approx(AT_THREE[name], abs=1e-6)


def test_sum_over_genes(name):
    counts = SparseCounts.from_dense(torch.full((2, 70), 3.0))
    for shape in ((2, 70), (70,), (1,), ()):
        log_prob = BUILDERS[name](shape).log_prob_sum(counts)
        assert log_prob.tolist() == pytest.approx([70 * AT_THREE[name]] * 2, rel=1e-6)
    assert BUILDERS[name]((4, 2, 70)).log_prob_sum(counts).shape == (4, 2)


def test_cells_without_counts(name):
    distribution = BUILDERS[name]((2, 3))
    log_prob = distribution.log_prob_sum(SparseCounts.from_dense(torch.zeros(2, 3)))
    assert torch.allclose(log_prob, distribution.log_prob_zero().sum(-1))


@pytest.mark.parametrize("shape", [(2, 4), (3, 3), (3, 1, 2), (5,)])
def test_counts_of_another_shape_are_rejected(name, shape):
    counts = SparseCounts.from_dense(torch.ones(2, 3))
    with pytest.raises(ValueError, match=r"counts of 2 cells and 3 genes do not fit .* pass parameters of shape"):
        BUILDERS[name](shape).log_prob_sum(counts)


def test_expand_keeps_the_choice_of_validation(name):
    assert BUILDERS[name]((3,), validate_args=False).expand((2, 3)).log_prob(torch.tensor(-1.0)).shape == (2, 3)
    with pytest.raises(ValueError, match="support"):
        BUILDERS[name]((3,)).expand((2, 3)).log_prob(torch.tensor(-1.0))


def test_seeds_and_parameters_are_left_alone(name):
    distribution = BUILDERS[name]((2, 3))
    before = torch.random.get_rng_state()
    distribution.log_prob_sum(SparseCounts.from_dense(torch.ones(2, 3)))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(distribution.log_prob(torch.full((2, 3), 3.0)), distribution.log_prob(torch.full((2, 3), 3)))
