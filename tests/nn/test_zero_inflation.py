import numpy as np
import pytest
import torch
from scipy import stats

from scvae_ext.distributions import Poisson, ZeroInflated
from scvae_ext.nn import ZeroInflationHead

HIDDEN = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)).relu()
MEAN = torch.tensor([1e-3, 0.1, 1.0, 20.0, 5e3]).expand(4, 5)
KINDS = ["gene-cell", "gene", "logistic"]


def _set(head, logits):
    """Let pi of every cell depend on the gene alone."""
    with torch.no_grad():
        if head.kind == "gene-cell":
            head.linear.weight.zero_()
            head.linear.bias.copy_(logits)
        else:
            head.scaled_logit.copy_(logits / head.SCALE)
    return head


@pytest.mark.parametrize("kind", KINDS)
def test_pi_starts_small(kind):
    head = ZeroInflationHead(kind, 3, 5)
    pi = ZeroInflated(Poisson(MEAN.expand(2, 4, 5)), head(HIDDEN.expand(2, 4, 3), Poisson(MEAN.expand(2, 4, 5))))
    pi = pi.zero_inflation_probability
    assert pi.shape == ((5,) if kind == "gene" else (2, 4, 5))
    assert bool(((pi > 0.0) & (pi < 0.2)).all())


@pytest.mark.parametrize(("kind", "n_parameters"), [("gene-cell", 3 * 5 + 5), ("gene", 5), ("logistic", 2)])
def test_a_kind_has_no_parameters_that_it_does_not_use(kind, n_parameters):
    head = ZeroInflationHead(kind, 3, 5, (1.0, 9.0))
    assert sum(value.numel() for value in head.parameters()) == n_parameters


def test_at_slope_one_the_logistic_curve_is_that_of_michaelis_and_menten():
    head = _set(ZeroInflationHead("logistic", 3, 5), torch.tensor([np.log(2.0)], dtype=torch.float32))
    with torch.no_grad():
        head.scaled_log_slope.zero_()
    assert head.slope.item() == 1.0
    torch.testing.assert_close(1 - head(HIDDEN, Poisson(MEAN)).sigmoid(), MEAN / (2.0 + MEAN))


def test_the_slope_stays_positive():
    head = ZeroInflationHead("logistic", 3, 5)
    with torch.no_grad():
        head.scaled_log_slope.fill_(-10)
    assert head.slope.item() > 0
    logits = head(HIDDEN, Poisson(MEAN))
    assert bool((logits.diff(dim=-1) <= 0).all())


def test_the_logistic_curve_is_finite_where_no_count_is_expected():
    assert bool(ZeroInflationHead("logistic", 3, 5)(HIDDEN, Poisson(torch.full((4, 5), 1e-30))).isfinite().all())


@pytest.mark.parametrize("kind", KINDS)
def test_no_prior_without_its_parameters(kind):
    assert ZeroInflationHead(kind, 3, 5).log_prior() is None


@pytest.mark.parametrize("kind", ["gene-cell", "gene"])
@pytest.mark.parametrize("prior", [(1.0, 9.0), (2.5, 1.0), (3, 4)])
def test_the_prior_is_the_density_of_the_beta_distribution_up_to_a_constant(kind, prior):
    pis = np.random.default_rng(0).uniform(0.01, 0.95, (2, 5))
    expected = stats.beta.logpdf(pis, *prior).sum(1)
    head = ZeroInflationHead(kind, 3, 5, [float(number) for number in prior])
    found = [_set(head, torch.from_numpy(np.log(pi / (1 - pi)))).log_prior().item() for pi in pis]
    assert found[1] - found[0] == pytest.approx(expected[1] - expected[0], rel=1e-4)


def test_the_prior_of_the_logistic_curve_is_that_of_pi_at_one_count():
    head = ZeroInflationHead("logistic", 3, 5, (1.0, 9.0))
    pi = head(HIDDEN, Poisson(torch.ones(4, 5))).sigmoid()[0, 0].item()
    assert head.log_prior().item() == pytest.approx(8 * np.log1p(-pi), rel=1e-5)


def test_the_prior_of_cells_is_that_of_pi_at_the_mean_activations():
    head = ZeroInflationHead("gene-cell", 3, 5, (1.0, 9.0))
    head.train()
    for _ in range(200):
        head(HIDDEN.expand(2, 4, 3), Poisson(MEAN.expand(2, 4, 5)))
    torch.testing.assert_close(head.mean_hidden, HIDDEN.mean(0))
    logits = HIDDEN.mean(0) @ head.linear.weight.T + head.linear.bias
    expected = 8 * np.log1p(-logits.sigmoid().detach().double().numpy()).sum()
    assert head.log_prior().item() == pytest.approx(expected, rel=1e-4)
    head.eval()
    before = head.mean_hidden.clone()
    head(HIDDEN + 1, Poisson(MEAN))
    assert torch.equal(head.mean_hidden, before)


@pytest.mark.parametrize("kind", KINDS)
def test_the_prior_alone_pulls_pi_to_its_mode(kind):
    head = ZeroInflationHead(kind, 3, 5, (3.0, 7.0))
    head.train()
    for _ in range(100):
        head(HIDDEN, Poisson(MEAN))
    optimizer = torch.optim.Adam(head.parameters(), lr=0.05)
    for _ in range(150):
        optimizer.zero_grad()
        (-head.log_prior()).backward()
        optimizer.step()
    at_one_count = torch.ones(4, 5)
    hidden = HIDDEN.mean(0).expand(4, 3)
    inflated = ZeroInflated(Poisson(at_one_count), head(hidden, Poisson(at_one_count)))
    torch.testing.assert_close(inflated.zero_inflation_probability.mean(), torch.tensor(0.25), atol=0.01, rtol=0)
