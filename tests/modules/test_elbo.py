import math

import numpy as np
import pytest
import torch
from linear_gaussian import LinearGaussian, best_log_likelihood, quadrature, simulate
from minibatches import make_minibatch
from scipy import stats
from torch.distributions import Normal, kl_divergence

from scvae_ext.likelihoods import PoissonLikelihood, depth
from scvae_ext.minibatch import Minibatch, SparseCounts
from scvae_ext.modules import VAE, Posterior, VAEOutput, elbo, log_importance_weights

N_CELLS, N_GENES, N_LATENT = 40, 6, 2


def _minibatch(x):
    x = torch.as_tensor(x)
    zeros = torch.zeros(len(x), dtype=torch.int64)
    return Minibatch(SparseCounts.from_dense(x), x.sum(1), zeros, zeros, zeros.view(-1, 1)[:, :0], x[:, :0])


def _exact_elbo(model, minibatch):
    output = model.output(minibatch, quadrature(N_LATENT, minibatch.n_cells))
    return elbo(output, model.likelihood, minibatch).score().mean(0)


@pytest.mark.parametrize("seed", range(3))
def test_evidence_is_elbo_plus_divergence_from_the_posterior(seed):
    torch.manual_seed(seed)
    x = simulate(N_CELLS, N_GENES, N_LATENT, seed)
    minibatch = _minibatch(x)
    model = LinearGaussian(N_GENES, N_LATENT).double()
    with torch.no_grad():
        model.log_scale.normal_()
        model.likelihood.log_scale.fill_(0.3)
        bound = _exact_elbo(model, minibatch).numpy()
    loadings, offset = (value.detach().numpy() for value in model.likelihood.linear.parameters())
    noise = math.exp(0.6)
    evidence = stats.multivariate_normal.logpdf(x, offset, loadings @ loadings.T + noise * np.eye(N_GENES))
    covariance = np.linalg.inv(loadings.T @ loadings / noise + np.eye(N_LATENT))
    mean = (x - offset) @ loadings @ covariance / noise
    q_mean = model.encoder(torch.as_tensor(x)).detach().numpy()
    q_covariance = np.diag(np.exp(2 * model.log_scale.detach().numpy()))
    divergence = 0.5 * (
        np.trace(np.linalg.solve(covariance, q_covariance))
        + np.einsum("nk,nk->n", q_mean - mean, np.linalg.solve(covariance, (q_mean - mean).T).T)
        - N_LATENT
        + np.log(np.linalg.det(covariance) / np.linalg.det(q_covariance))
    )
    assert divergence.min() > 0.1
    np.testing.assert_allclose(bound + divergence, evidence, rtol=1e-9)


def test_maximising_the_elbo_reaches_the_maximum_likelihood_of_probabilistic_pca():
    x = simulate(300, N_GENES, N_LATENT)
    minibatch = _minibatch(x)
    model = LinearGaussian(N_GENES, N_LATENT).double()
    with torch.no_grad():
        model.likelihood.linear.bias.copy_(torch.as_tensor(x.mean(0)))
        model.encoder.bias.copy_(-model.encoder.weight @ torch.as_tensor(x.mean(0)))
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=2000, line_search_fn="strong_wolfe")

    def loss():
        optimizer.zero_grad()
        value = -_exact_elbo(model, minibatch).mean()
        value.backward()
        return value

    optimizer.step(loss)
    reached = float(_exact_elbo(model, minibatch).mean().detach())
    assert reached == pytest.approx(best_log_likelihood(x, N_LATENT), abs=1e-4)
    variance = np.linalg.eigvalsh(np.cov(x.T, bias=True))[:-N_LATENT].mean()
    assert math.exp(2 * float(model.likelihood.log_scale.detach())) == pytest.approx(variance, rel=1e-3)


def _output(n_cells, loc, scale, minibatch, likelihood):
    qz = Normal(loc, scale)
    latent = qz.rsample()
    px = likelihood(latent, depth(minibatch), minibatch.batch, minibatch.label)
    return VAEOutput(Posterior(qz, None), latent, None, px)


def test_divergence_is_that_of_torch_and_of_many_samples():
    minibatch = make_minibatch()
    loc, scale = torch.randn(12, 3, dtype=torch.float64), 0.2 + torch.rand(12, 3, dtype=torch.float64)
    likelihood = PoissonLikelihood(3, 7, "gene", 1, 1, True).double()
    found = elbo(_output(12, loc, scale, minibatch, likelihood), likelihood, minibatch)
    qz, pz = Normal(loc, scale), Normal(torch.zeros_like(loc), 1.0)
    torch.testing.assert_close(found.kl, kl_divergence(qz, pz).sum(-1))
    samples = qz.sample((20_000,))
    differences = (qz.log_prob(samples) - pz.log_prob(samples)).sum(-1)
    error = differences.std(0) / math.sqrt(len(differences))
    assert float(((differences.mean(0) - found.kl) / error).abs().max()) < 4.5


def test_a_posterior_equal_to_the_prior_costs_nothing():
    minibatch = make_minibatch()
    likelihood = PoissonLikelihood(3, 7, "gene", 1, 1, True)
    output = _output(12, torch.zeros(12, 3), torch.ones(12, 3), minibatch, likelihood)
    assert torch.equal(elbo(output, likelihood, minibatch).kl, torch.zeros(12))


@pytest.mark.parametrize("prior_scale", [0.5, 2.0])
def test_divergence_of_the_library_size(prior_scale):
    minibatch = make_minibatch()
    likelihood = PoissonLikelihood(3, 7, "gene", 1, 1, True)
    output = _output(12, torch.zeros(12, 3), torch.ones(12, 3), minibatch, likelihood)
    q, prior = Normal(torch.randn(12), 0.1 + torch.rand(12)), Normal(torch.randn(12), torch.full((12,), prior_scale))
    output = VAEOutput(Posterior(output.posterior.qz, q), output.latent, q.rsample(), output.px)
    found = elbo(output, likelihood, minibatch, prior)
    torch.testing.assert_close(found.kl_library, kl_divergence(q, prior))
    torch.testing.assert_close(found.score(), found.reconstruction - found.kl - found.kl_library)


GRID = torch.linspace(-8, 8, 1601, dtype=torch.float64)
LOG_PRIOR = Normal(0.0, 1.0).log_prob(GRID) + math.log(GRID[1] - GRID[0])


def _one_dimensional_vae(**options):
    vae = VAE(5, n_latent=1, n_hidden=8, **options).double().eval()
    with torch.no_grad():
        # A decoder that depends on z, and an encoder that is wrong but not far off.
        vae.likelihood.get_submodule(HEADS[options["gene_likelihood"]]).weight.mul_(3)
        vae.encoder.mean.weight.mul_(0.3)
    return vae


HEADS = {
    "nb": "expression_head.linear",
    "zinb": "base.expression_head.linear",
    "poisson": "expression_head.linear",
    "normal": "location.linear",
}


def _scipy_log_pmf(name, values, rho, library):
    """Log-probability of each cell at each grid point; the initial inverse dispersion and scale are one."""
    mean = library[:, None] * rho
    if name == "poisson":
        return stats.poisson.logpmf(values, mean).sum(-1)
    return stats.nbinom.logpmf(values, 1.0, 1 / (1 + mean)).sum(-1)


@torch.no_grad()
@pytest.mark.parametrize("name", ["nb", "poisson"])
def test_importance_weights_give_the_evidence_by_numerical_integration(name):
    vae = _one_dimensional_vae(gene_likelihood=name)
    minibatch = make_minibatch(4, 5, dtype=torch.float64)
    hidden = vae.decoder(GRID.view(-1, 1), torch.zeros(len(GRID), 0, dtype=torch.float64))
    rho = vae.likelihood.expression(hidden).numpy()[:, None]
    values, library = minibatch.counts.dense().numpy(), minibatch.library_size.numpy()
    at_grid = torch.as_tensor(_scipy_log_pmf(name, values, rho, library))
    expected = (at_grid + LOG_PRIOR[:, None]).logsumexp(0)
    _assert_evidence(vae, minibatch, expected)


@torch.no_grad()
@pytest.mark.parametrize("name", ["zinb", "normal"])
def test_importance_weights_give_the_evidence_of_every_likelihood(name):
    vae = _one_dimensional_vae(gene_likelihood=name)
    minibatch = make_minibatch(4, 5, dtype=torch.float64)
    if name == "normal":
        vae.likelihood.scale.log_value.fill_(1.5)
    px = vae.decode(GRID.view(-1, 1, 1).expand(-1, 4, 1), minibatch)
    values = minibatch.counts.dense()
    if name == "normal":
        values = torch.log1p(1e4 * values / values.sum(1, keepdim=True))
    expected = (px.log_prob(values).sum(-1) + LOG_PRIOR[:, None]).logsumexp(0)
    _assert_evidence(vae, minibatch, expected)


@torch.no_grad()
def test_importance_weights_integrate_over_a_latent_library_size():
    vae = _one_dimensional_vae(gene_likelihood="nb", use_observed_lib_size=False)
    minibatch = make_minibatch(3, 5, dtype=torch.float64)
    vae.initialise_library(minibatch.library_size, minibatch.batch)
    vae.library_log_variances.fill_(0.3)
    vae.library_encoder.log_variance.bias.fill_(-1.0)
    z, log_library = GRID[::8], torch.linspace(-1.0, 6.0, 281, dtype=torch.float64)
    hidden = vae.decoder(z.view(-1, 1), torch.zeros(len(z), 0, dtype=torch.float64))
    rho = vae.likelihood.expression(hidden).numpy()
    mean = log_library.exp().numpy()[:, None, None, None] * rho[:, None]
    at_grid = torch.as_tensor(stats.nbinom.logpmf(minibatch.counts.dense().numpy(), 1.0, 1 / (1 + mean)).sum(-1))
    prior = Normal(vae.library_log_means[0], 0.3**0.5).log_prob(log_library) + math.log(log_library[1] - log_library[0])
    joint = at_grid + (LOG_PRIOR[::8] + math.log(8)).view(1, -1, 1) + prior.view(-1, 1, 1)
    _assert_evidence(vae, minibatch, joint.flatten(0, 1).logsumexp(0))


def _assert_evidence(vae, minibatch, expected):
    output = vae(minibatch, 20_000)
    weights = log_importance_weights(output, vae.likelihood, minibatch, vae.library_prior(minibatch))
    assert weights.shape == (20_000, minibatch.n_cells)
    ratio = (weights - expected).exp()
    error = ratio.std(0) / math.sqrt(len(ratio))
    assert float(error.max()) < 0.05
    assert float(((ratio.mean(0) - 1) / error).abs().max()) < 4.5
    bound = elbo(output, vae.likelihood, minibatch, vae.library_prior(minibatch)).score().mean(0)
    assert bool((bound < expected).all())
