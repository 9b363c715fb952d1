import numpy as np
import pytest
import torch
from anndata import AnnData
from known_model import Identity
from scipy import special, stats
from torch import nn
from torch.distributions import Normal

from scvae_ext import SCVAE
from scvae_ext.data import align
from scvae_ext.distributions import NegativeBinomial, Poisson, ZeroInflated
from scvae_ext.models.abducted_counts import abducted_counts, counts_under, transported_noise
from scvae_ext.models.cells import Cells
from scvae_ext.models.settings import read_setting
from scvae_ext.modules import Posterior

N_CELLS = 40_000
# Inverse dispersions of two populations, from hardly any counts to Poisson.
THETAS = [(0.5, 20.0), (20.0, 0.5), (0.01, 5.0), (3.0, 0.02), (1e6, 0.3), (0.3, 1e6), (2.0, 2.0), (3e-4, 2e-4)]
pairs_of_thetas = pytest.mark.parametrize(("theta", "other_theta"), THETAS)


def _nb(mean, theta, n_cells=N_CELLS):
    return NegativeBinomial(torch.full((n_cells, 1), mean), torch.tensor([theta]))


def _zinb(mean, theta, pi, n_cells=N_CELLS):
    return ZeroInflated(_nb(mean, theta, n_cells), torch.tensor([pi]).logit())


def _assert_drawn_from(counts, mean, theta, pi=0.0):
    """Compare mean, variance, share of zeros, and all else of the distribution."""
    counts = np.asarray(counts, dtype=float).ravel()
    base = stats.nbinom(theta, theta / (theta + mean))
    n_cells, nonzero = len(counts), 1 - pi
    variance = nonzero * mean * (1 + mean / theta + pi * mean)
    assert counts.mean() == pytest.approx(nonzero * mean, abs=4 * np.sqrt(variance / n_cells))
    if theta >= 0.1:  # of others, the variance lies in a handful of counts
        deviation = np.square(counts - counts.mean())
        assert deviation.mean() == pytest.approx(variance, abs=4 * deviation.std() / np.sqrt(n_cells))
    of_zeros = pi + nonzero * base.pmf(0)
    assert (counts == 0).mean() == pytest.approx(of_zeros, abs=4 * np.sqrt(of_zeros * (1 - of_zeros) / n_cells) + 1e-9)
    values, times = np.unique(counts, return_counts=True)
    gap = np.abs(times.cumsum() / n_cells - pi - nonzero * base.cdf(values)).max()
    assert gap < 1.95 / np.sqrt(n_cells)  # of which one sample in a thousand has more


@pairs_of_thetas
@pytest.mark.parametrize(("mean", "other_mean"), [(4.0, 4.0), (3.0, 9.0), (8.0, 0.5)])
def test_counts_are_those_of_the_other_population(theta, other_theta, mean, other_mean):
    factual = _nb(mean, theta)
    counts = counts_under(_nb(other_mean, other_theta), factual, factual.sample())
    _assert_drawn_from(counts, other_mean, other_theta)


@pytest.mark.parametrize(("pi", "other_pi"), [(0.5, 0.02), (0.02, 0.5), (0.3, 0.3), (0.999, 0.4), (1e-6, 0.9)])
@pytest.mark.parametrize(("theta", "other_theta"), [(5.0, 5.0), (0.4, 10.0), (10.0, 0.4), (0.02, 1e6)])
def test_extra_zeros_are_those_of_the_other_population(theta, other_theta, pi, other_pi):
    factual = _zinb(3.0, theta, pi)
    counts = counts_under(_zinb(6.0, other_theta, other_pi), factual, factual.sample())
    _assert_drawn_from(counts, 6.0, other_theta, other_pi)


def test_counts_of_a_poisson_population():
    factual = Poisson(torch.full((N_CELLS, 1), 3.0))
    for other_mean in (1.5, 5.0):
        counts = counts_under(Poisson(torch.full((N_CELLS, 1), other_mean)), factual, factual.sample())
        _assert_drawn_from(counts, other_mean, 1e9)


@pytest.mark.parametrize(
    "px", [_nb(2.0, 0.3, 500), _zinb(2.0, 3.0, 0.4, 500), Poisson(torch.full((500, 1), 2.0))], ids=["nb", "zinb", "p"]
)
def test_counts_in_the_observed_setting_are_those_observed(px):
    seen = px.sample()
    assert torch.equal(counts_under(px, px, seen), seen)


def test_cells_in_the_observed_setting_are_left_alone_beside_others():
    theta, other_theta = torch.full((400, 2), 0.7), torch.full((400, 2), 0.7)
    other_theta[200:] = 9.0
    mean = torch.full((400, 2), 5.0)
    factual, other = NegativeBinomial(mean, theta), NegativeBinomial(mean, other_theta)
    seen = factual.sample()
    counts = counts_under(other, factual, seen)
    assert torch.equal(counts[:200], seen[:200])
    assert not torch.equal(counts[200:], seen[200:])


def test_molecules_are_thinned_or_added_to_where_dispersions_are_the_same():
    """Those of cells with seven counts, by the known posterior of their noise."""
    mean, theta, seen = 3.0, 2.0, torch.full((N_CELLS, 1), 7.0)
    kept = counts_under(_nb(1.2, theta), _nb(mean, theta), seen).ravel().numpy()
    expected = stats.binom(7, 1.2 / mean).pmf(np.arange(8))
    assert stats.chisquare(np.bincount(kept.astype(int), minlength=8), expected * N_CELLS).pvalue > 0.001
    more = counts_under(_nb(8.0, theta), _nb(mean, theta), seen)
    # Poisson of a rate that is Gamma(theta + 7, theta + mean), times what the mean rises by.
    _assert_drawn_from(more - seen, (8.0 - mean) * (theta + 7) / (theta + mean), theta + 7)


@pytest.mark.parametrize(("theta", "other_theta"), [(0.5, 20.0), (20.0, 0.5)])
def test_cells_keep_their_rank(theta, other_theta):
    """Counts are tied more closely than counts that were drawn by themselves at equal ranks of the noise."""
    mean = 200.0
    factual = _nb(mean, theta)
    seen = factual.sample()
    found = stats.spearmanr(seen, counts_under(_nb(mean, other_theta), factual, seen)).statistic
    rng = np.random.default_rng(0)
    rank = rng.random(N_CELLS)
    one, two = (rng.poisson(mean * stats.gamma(each, scale=1 / each).ppf(rank)) for each in (theta, other_theta))
    assert stats.spearmanr(one, two).statistic < found < 1


def test_what_an_extra_zero_hides_is_drawn_anew():
    extra, base = 0.6, (2 / 3.5) ** 2
    lifted = counts_under(_zinb(1.5, 2.0, 1e-7), _zinb(1.5, 2.0, extra), torch.zeros(N_CELLS, 1))
    was_extra = extra / (extra + (1 - extra) * base)
    # A zero of the negative binomial stays, an extra one is now a count of it.
    assert float((lifted > 0).double().mean()) == pytest.approx(was_extra * (1 - base), abs=0.01)
    # Counts that were seen become extra zeros only as far as these are more common.
    hidden = counts_under(_zinb(1.5, 2.0, 0.8), _zinb(1.5, 2.0, extra), torch.full((N_CELLS, 1), 3.0))
    assert float((hidden == 0).double().mean()) == pytest.approx((0.8 - extra) / (1 - extra), abs=0.01)
    assert set(hidden.unique().tolist()) == {0.0, 3.0}


@pytest.mark.parametrize(
    ("theta", "other"), [(0.01, 3.0), (3.0, 0.01), (0.5, 1e6), (1e6, 0.5), (1e4, 1e10), (2.0, 2.0)]
)
def test_noise_is_moved_by_quantiles(theta, other):
    rank = np.array([1e-12, 1e-6, 0.01, 0.3, 0.7, 0.89, 0.91, 0.999])
    noise, expected = (stats.gamma(each, scale=1 / each).ppf(rank) for each in (theta, other))
    is_there = noise > 0
    thetas, others = (np.full(is_there.sum(), each) for each in (theta, other))
    found = transported_noise(np.log(noise[is_there]), thetas, others)
    np.testing.assert_allclose(found, expected[is_there], rtol=1e-6)
    above = 10.0 ** -np.arange(4, 200, 30)
    noise, expected = (stats.gamma(each, scale=1 / each).isf(above) for each in (theta, other))
    found = transported_noise(np.log(noise), np.full(len(above), theta), np.full(len(above), other))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("theta", [5e-5, 1e-3])
def test_noise_that_is_too_small_for_a_number_keeps_its_rank(theta):
    rank = np.array([0.05, 0.5, 0.7, 0.95])
    # Of small x, the share below x is x^theta / Gamma(theta + 1).
    log_noise = (np.log(rank) + special.gammaln(theta + 1)) / theta - np.log(theta)
    found = transported_noise(log_noise, np.full(4, theta), np.full(4, 4.0))
    np.testing.assert_allclose(found, stats.gamma(4, scale=1 / 4).ppf(rank), rtol=1e-9)
    assert (np.exp(log_noise) == 0).any()


@pytest.mark.parametrize("theta", [5e-5, 0.3, 1e3, 1e10])
@pytest.mark.parametrize("other", [5e-5, 0.3, 1e3, 1e10])
def test_noise_stays_finite_and_in_order_however_far_out(theta, other):
    log_noise = np.sort(np.concatenate([np.linspace(-1e6, 12, 50), np.linspace(-3, 3, 51), [-np.inf]]))
    found = transported_noise(log_noise, np.full(len(log_noise), theta), np.full(len(log_noise), other))
    assert np.isfinite(found).all()
    assert (found >= 0).all()
    assert (np.diff(found) >= -1e-6 * found[1:]).all()


def test_other_distributions_are_refused():
    values = Normal(torch.zeros(2, 3), torch.ones(2, 3))
    with pytest.raises(TypeError, match="Normal is no distribution of counts"):
        counts_under(values, values, torch.zeros(2, 3))


class _ByBatch(nn.Module):
    """Counts whose mean, dispersion and extra zeros are those of a batch, whatever the state."""

    mean = torch.tensor([[2.0, 6.0, 0.7, 30.0], [5.0, 3.0, 0.7, 30.0]])
    theta = torch.tensor([[0.5, 0.4, 3.0, 50.0], [20.0, 9.0, 0.3, 50.0]])
    pi = torch.tensor([[0.5, 0.1, 0.3, 1e-9], [0.05, 0.4, 0.3, 1e-9]])

    def __init__(self, is_inflated):
        super().__init__()
        self.is_inflated = is_inflated

    def forward(self, hidden, depth, batch, label):
        base = NegativeBinomial(self.mean[batch], self.theta[batch])
        return ZeroInflated(base, self.pi[batch].logit()) if self.is_inflated else base


@pytest.mark.parametrize("is_inflated", [False, True])
def test_cells_of_a_model_show_the_counts_of_the_other_batch(is_inflated):
    n_cells = 8000
    batch, likelihood = torch.arange(n_cells) % 2, _ByBatch(is_inflated)
    seen = likelihood(None, None, batch, None).sample().numpy()
    adata = AnnData(seen, obs={"batch": np.where(batch.numpy(), "b", "a"), "size": np.ones(n_cells)})
    adata.obs_names = [f"cell_{i}" for i in range(n_cells)]
    SCVAE.setup_anndata(adata, batch_key="batch", size_factor_key="size")
    model = SCVAE(adata, n_latent=1)
    model.module.decoder, model.module.likelihood = Identity(), likelihood
    model.module.encode = lambda minibatch: Posterior(
        Normal(torch.zeros(minibatch.n_cells, 1), torch.ones(minibatch.n_cells, 1)), None
    )
    cells = Cells(align(adata, model.registry), np.arange(n_cells), torch.device("cpu"))
    for place, name in enumerate("ab"):
        setting = read_setting("set", {"batch": name}, model.registry)
        (counts,) = abducted_counts(model.module, cells, setting, None, 1, seed=0)
        counts, is_own = counts.toarray(), batch.numpy() == place
        np.testing.assert_array_equal(counts[is_own], seen[is_own])
        for gene in range(4):
            mean, theta, pi = (float(each[place, gene]) for each in (_ByBatch.mean, _ByBatch.theta, _ByBatch.pi))
            _assert_drawn_from(counts[~is_own, gene], mean, theta, pi if is_inflated else 0.0)


@pytest.mark.parametrize("kind", ["nb", "latent library"])
def test_states_and_library_sizes_are_drawn_from_the_posterior_and_states_are_shifted(load, kind, monkeypatch):
    """Both decodings of a cell have one draw, but for the shift that was asked for."""
    model = load(kind)
    module, given = model.module, []
    decode = module.decode

    def remember(latent, minibatch, log_library=None, batch=None):
        given.append((latent, log_library, minibatch.batch))
        return decode(latent, minibatch, log_library, batch)

    cells = Cells(align(model.adata, model.registry), np.arange(6), torch.device("cpu"))
    shift = np.arange(18, dtype=np.float32).reshape(6, 3)
    monkeypatch.setattr(module, "decode", remember)
    with torch.no_grad():
        minibatch = cells.source.minibatch(cells.positions)
        posterior = module.encode(minibatch)
        setting = read_setting("set", {"batch": "batch_1"}, model.registry)
        abducted_counts(module, cells, setting, None, 600, 0, shift)
    factual, other = given[::2], given[1::2]
    for (latent, library, batch), (moved, same, there) in zip(factual, other, strict=True):
        torch.testing.assert_close(moved - latent, torch.from_numpy(shift))
        assert library is same
        assert torch.equal(batch, minibatch.batch)
        assert (there == 1).all()
    draws = [(torch.stack([each[0] for each in factual]), posterior.qz)]
    if kind == "latent library":
        draws.append((torch.stack([each[1] for each in factual]), posterior.log_library))
    for drawn, expected in draws:
        z = (drawn.mean(0) - expected.loc) / expected.scale * 600**0.5
        assert float(z.abs().max()) < 4.5
        torch.testing.assert_close(drawn.std(0), expected.scale.expand_as(drawn[0]), rtol=0.15, atol=0)
