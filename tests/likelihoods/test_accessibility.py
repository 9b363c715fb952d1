import mpmath
import pytest
import scipy.sparse as sp
import torch

from scvae_ext.likelihoods import AccessibilityLikelihood
from scvae_ext.peaks import AccessiblePeaks


def with_log_rates(log_rates):
    """A likelihood whose log rates are given, whatever the state, and the activations to call it with."""
    likelihood = AccessibilityLikelihood(2, len(log_rates))
    with torch.no_grad():
        likelihood.log_rate.weight.zero_()
        likelihood.log_rate.bias.copy_(torch.tensor(log_rates))
    return likelihood


def exact(log_rate, depth, is_accessible):
    with mpmath.workdps(50):
        rate = mpmath.mpf(depth) * mpmath.exp(mpmath.mpf(log_rate))
        return float(mpmath.log(1 - mpmath.exp(-rate)) if is_accessible else -rate)


@pytest.mark.parametrize("log_rate", [-25.0, -10.0, -3.0, -0.1, 0.0, 0.1, 2.0, 4.5])
@pytest.mark.parametrize("depth", [0.25, 1.0, 1.5])
@pytest.mark.parametrize("is_accessible", [False, True])
def test_a_peak_has_the_probability_of_the_reference(log_rate, depth, is_accessible):
    likelihood = with_log_rates([log_rate])
    peaks = AccessiblePeaks.from_csr(sp.csr_matrix([[float(is_accessible)]]))
    found = likelihood.log_prob(torch.zeros(1, 2), torch.tensor([depth]), peaks)
    assert float(found.detach()) == pytest.approx(exact(log_rate, depth, is_accessible), rel=1e-5, abs=1e-6)


def test_a_cell_is_the_sum_over_its_peaks_also_with_samples():
    torch.manual_seed(0)
    likelihood = AccessibilityLikelihood(3, 6).double()
    hidden, depth = torch.randn(4, 5, 3, dtype=torch.float64), torch.rand(5, dtype=torch.float64) + 0.5
    seen = (torch.rand(5, 6) < 0.5).double()
    probability = -torch.expm1(-likelihood(hidden, depth).exp())
    expected = torch.distributions.Bernoulli(probability).log_prob(seen.expand(4, 5, 6)).sum(-1)
    found = likelihood.log_prob(hidden, depth, AccessiblePeaks.from_csr(sp.csr_matrix(seen.numpy())))
    torch.testing.assert_close(found, expected)
    some = torch.tensor([4, 1])
    torch.testing.assert_close(likelihood(hidden, depth, some), likelihood(hidden, depth)[..., some])


def test_gradients_are_those_of_differences_and_finite_at_the_bounds():
    torch.manual_seed(0)
    likelihood = AccessibilityLikelihood(3, 6).double()
    hidden = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    peaks = AccessiblePeaks.from_csr(sp.csr_matrix((torch.rand(5, 6) < 0.5).double().numpy()))
    depth = torch.ones(5, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda h: likelihood.log_prob(5 * h, depth, peaks), hidden)
    for log_rate in (-200.0, 200.0, -29.0, 4.9):
        far = with_log_rates([log_rate, log_rate])
        both = AccessiblePeaks.from_csr(sp.csr_matrix([[0.0, 1.0]]))
        far.log_prob(torch.zeros(1, 2), torch.ones(1), both).sum().backward()
        assert far.log_rate.bias.grad.isfinite().all()


def test_the_start_is_how_often_each_peak_is_accessible():
    likelihood = AccessibilityLikelihood(2, 3)
    share = torch.tensor([0.01, 0.4, 0.99])
    likelihood.initialise(share)
    found = -torch.expm1(-likelihood(torch.zeros(1, 2), torch.ones(1)).exp())
    torch.testing.assert_close(found[0], share)
