import numpy as np
import pytest
import torch
from minibatches import make_minibatch
from quadrature import nodes, one_dimensional_vae
from scipy import stats
from torch.distributions import Normal, kl_divergence

from scvae_ext.modules import VAE, MixturePrior, VampPrior
from scvae_ext.nn import Encoder

DATA = {"n_batches": 2, "n_categories": (3,), "n_continuous": 1}


@pytest.fixture
def mixture():
    vae = VAE(7, n_hidden=8, n_latent=2, prior="mixture", n_prior_components=3)
    with torch.no_grad():
        vae.prior.logits.copy_(torch.tensor([0.0, 1.0, -1.0]))
        vae.prior.mean.copy_(torch.tensor([[0.0, 0.0], [2.0, -1.0], [-3.0, 3.0]]))
        vae.prior.log_scale.copy_(torch.tensor([[0.0, -1.0], [-1.0, 0.5], [0.3, 0.0]]))
    return vae


def _vamp(**options):
    vae = VAE(7, n_hidden=8, n_latent=2, prior="vamp", n_prior_components=12, **options)
    minibatch = make_minibatch(**DATA) if "n_batches" in options else make_minibatch()
    vae.initialise_prior(minibatch)
    return vae, minibatch


@torch.no_grad()
def test_the_density_of_a_mixture_is_that_of_scipy(mixture):
    z = torch.randn(50, 2) * 2
    weights = np.exp([0.0, 1.0, -1.0]) / np.exp([0.0, 1.0, -1.0]).sum()
    expected = sum(
        weight * stats.multivariate_normal.pdf(z.numpy(), mean, np.diag(np.exp(2 * np.asarray(log_scale))))
        for weight, mean, log_scale in zip(weights, mixture.prior.mean, mixture.prior.log_scale, strict=True)
    )
    np.testing.assert_allclose(mixture.pz().log_prob(z), np.log(expected), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_samples_have_the_moments_of_the_mixture(mixture):
    samples = mixture.sample_prior(40_000, torch.Generator().manual_seed(0)).double()
    weights, means = mixture.prior.logits.softmax(0), mixture.prior.mean
    mean = weights @ means
    second = weights @ (mixture.prior.log_scale.exp().square() + means.square())
    variance = second - mean.square()
    assert float(((samples.mean(0) - mean) / (variance / 40_000).sqrt()).abs().max()) < 4.5
    torch.testing.assert_close(samples.var(0), variance.double(), rtol=0.05, atol=0)


@torch.no_grad()
def test_samples_of_the_standard_prior_are_standard_normal_and_have_their_own_generator():
    vae = VAE(7, n_hidden=8, n_latent=2)
    state = torch.get_rng_state()
    samples = vae.sample_prior(20_000, torch.Generator().manual_seed(0))
    assert torch.equal(torch.get_rng_state(), state)
    assert stats.kstest(samples.flatten(), "norm").pvalue > 1e-4
    assert vae.pz() is None


@torch.no_grad()
@pytest.mark.parametrize("name", ["mixture", "vamp"])
def test_the_divergence_is_that_of_numerical_integration(name):
    vae = one_dimensional_vae(prior=name, n_prior_components=3)
    minibatch = make_minibatch(4, 5, dtype=torch.float64)
    points, log_weights = nodes(60)
    qz = vae.encode(minibatch).qz
    z = qz.loc + qz.scale * points.view(-1, 1, 1)
    parts = vae.prior.components(vae.encoder)
    log_weight = vae.prior.logits.log_softmax(0)
    log_pz = torch.stack([log_weight[k] + Normal(parts.loc[k], parts.scale[k]).log_prob(z) for k in range(3)])
    exact = (log_weights.exp().view(-1, 1, 1) * (qz.log_prob(z) - log_pz.logsumexp(0))).sum(0).squeeze(-1)
    draws = vae.elbo(minibatch, 20_000).kl
    error = draws.std(0) / 20_000**0.5
    assert float(((draws.mean(0) - exact) / error).abs().max()) < 4.5


@torch.no_grad()
def test_a_single_gaussian_has_its_closed_form():
    vae = VAE(7, n_hidden=8, n_latent=2, prior="mixture", n_prior_components=1).double().eval()
    vae.prior.mean.copy_(torch.tensor([[0.5, -1.0]]))
    vae.prior.log_scale.fill_(0.4)
    minibatch = make_minibatch(dtype=torch.float64)
    qz = vae.encode(minibatch).qz
    exact = kl_divergence(qz, Normal(vae.prior.mean, vae.prior.log_scale.exp())).sum(-1)
    torch.testing.assert_close(vae.elbo(minibatch, 20_000).kl.mean(0), exact, atol=0.05, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("name", ["mixture", "vamp"])
def test_importance_weights_give_the_evidence_under_a_learned_prior(name):
    vae = one_dimensional_vae(prior=name, n_prior_components=3)
    minibatch = make_minibatch(4, 5, dtype=torch.float64)
    grid = torch.linspace(-12, 12, 2401, dtype=torch.float64)
    parts, weight = vae.prior.components(vae.encoder), vae.prior.logits.softmax(0).numpy()
    density = sum(
        weight[k] * stats.norm.pdf(grid, float(parts.loc[k]), float(parts.scale[k])) for k in range(3)
    ) * float(grid[1] - grid[0])
    hidden = vae.decoder(grid.view(-1, 1), torch.zeros(len(grid), 0, dtype=torch.float64))
    mean = minibatch.library_size.numpy()[:, None] * vae.likelihood.expression(hidden).numpy()[:, None]
    at_grid = stats.poisson.logpmf(minibatch.counts.dense().numpy(), mean).sum(-1)
    exact = (torch.as_tensor(at_grid) + torch.as_tensor(np.log(density)).view(-1, 1)).logsumexp(0)
    ratio = (vae.log_importance_weights(minibatch, 20_000) - exact).exp()
    error = ratio.std(0) / 20_000**0.5
    assert float(((ratio.mean(0) - 1) / error).abs().max()) < 4.5


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, DATA | {"encode_covariates": True}], ids=["plain", "covariates"])
def test_pseudo_cells_start_at_the_posteriors_of_the_cells_they_are_made_from(options):
    vae, minibatch = _vamp(**options)
    expected = vae.eval().encode(minibatch).qz
    found = vae.prior.components(vae.encoder)
    # Zeros become small numbers that can still grow.
    torch.testing.assert_close(found.loc, expected.loc, atol=0.02, rtol=0)
    torch.testing.assert_close(found.scale, expected.scale, atol=0.02, rtol=0)


def test_pseudo_cells_leave_batch_statistics_and_dropout_alone():
    vae, _ = _vamp()
    vae.train()
    before = {name: value.clone() for name, value in vae.named_buffers()}
    one, two = vae.pz(), vae.pz()
    assert torch.equal(one.component_distribution.base_dist.loc, two.component_distribution.base_dist.loc)
    assert all(torch.equal(value, before[name]) for name, value in vae.named_buffers())
    assert all(part.training for part in vae.modules())


@pytest.mark.parametrize("name", ["mixture", "vamp"])
@pytest.mark.parametrize(
    "options", [{}, {"encode_covariates": True}, {"use_observed_lib_size": False}, {"latent_distribution": "ln"}]
)
def test_every_parameter_receives_a_gradient(name, options):
    minibatch = make_minibatch(**DATA)
    # Pseudo-cells move with the posteriors, and batch statistics would take a shift of all out of the decoder: that by
    # the encoder's bias would be zero but for rounding.
    options = {**options, "decoder_normalisation": "none"}
    vae = VAE(7, **DATA, n_hidden=8, n_latent=2, prior=name, n_prior_components=4, **options)
    vae.initialise_library(minibatch.library_size, minibatch.batch)
    vae.objective(minibatch).score().sum().backward()
    for parameter, value in vae.named_parameters():
        assert value.grad is not None, parameter
        assert bool(value.grad.isfinite().all()), parameter
        assert bool(value.grad.any()), parameter


def test_components_start_apart():
    vae = VAE(7, n_hidden=8, n_latent=2, prior="mixture")
    assert isinstance(vae.prior, MixturePrior)
    assert float(torch.pdist(vae.prior.mean.detach()).min()) > 0
    vamp, _ = _vamp()
    assert isinstance(vamp.prior, VampPrior)
    assert float(torch.pdist(vamp.prior.components(vamp.encoder).loc.detach()).min()) > 0


def test_a_mixture_finds_the_groups_that_the_latent_falls_into():
    prior = MixturePrior(5, 2)
    centres = torch.tensor([[4.0, 0.0], [-4.0, 1.0], [0.0, -4.0]])
    groups = torch.arange(300) % 3
    z = centres[groups] + 0.3 * torch.randn(300, 2)
    optimizer = torch.optim.Adam(prior.parameters(), lr=0.03)
    encoder = Encoder(7, 4, 2)
    for _ in range(400):
        optimizer.zero_grad()
        loss = -prior(encoder).log_prob(z).mean()
        loss.backward()
        optimizer.step()
    truth = stats.entropy([1 / 3] * 3) + 2 * (0.5 * np.log(2 * np.pi * np.e) + np.log(0.3))
    assert float(loss.detach()) == pytest.approx(truth, abs=0.15)


@pytest.mark.usefixtures("unchecked")
def test_an_unknown_prior_is_refused():
    with pytest.raises(ValueError, match='prior=\'gaussian\' is not known: use "standard", "mixture" or "vamp"'):
        VAE(7, prior="gaussian")
