import math

import pytest
import torch
from linear_gaussian import LinearGaussianLikelihood, simulate
from minibatches import make_minibatch
from quadrature import exact_elbo, exact_iwae_of_two, gradients, largest_deviation, one_dimensional_vae, repeat
from torch import nn
from torch.distributions import Normal

from scvae_ext.minibatch import Minibatch, SparseCounts
from scvae_ext.modules import SURROGATES, VAE

N_CELLS, N_GENES, N_LATENT = 30, 5, 2
OF_ELBO = [name for name, (objective, _) in SURROGATES.items() if objective == "elbo"]
OF_IWAE = [name for name, (objective, _) in SURROGATES.items() if objective == "iwae"]


class Identity(nn.Module):
    def forward(self, x, covariates):
        return x


class LinearEncoder(nn.Module):
    """Mean linear in the values, one variance a dimension for all cells."""

    def __init__(self):
        super().__init__()
        self.mean = nn.Linear(N_GENES, N_LATENT)
        self.log_variance = nn.Parameter(torch.zeros(N_LATENT))

    def forward(self, x, covariates):
        mean = self.mean(torch.expm1(x.dense()))
        return Normal(mean, torch.exp(0.5 * self.log_variance).expand_as(mean))


@pytest.fixture
def data():
    x = torch.as_tensor(simulate(N_CELLS, N_GENES, N_LATENT))
    zeros = torch.zeros(N_CELLS, dtype=torch.int64)
    return Minibatch(SparseCounts.from_dense(x), x.sum(1), zeros, zeros, zeros.view(-1, 1)[:, :0], x[:, :0])


@pytest.fixture
def vae(data):
    """Probabilistic PCA with orthogonal loadings, so that exact posteriors are diagonal."""
    vae = VAE(N_GENES, n_latent=N_LATENT, n_hidden=N_LATENT)
    vae.encoder, vae.decoder = LinearEncoder(), Identity()
    vae.likelihood = LinearGaussianLikelihood(N_LATENT, N_GENES)
    vae = vae.double().eval()
    with torch.no_grad():
        vae.likelihood.linear.weight.copy_(torch.linalg.qr(torch.randn(N_GENES, N_LATENT).double())[0] * 1.5)
        vae.likelihood.linear.bias.copy_(data.counts.dense().mean(0))
        vae.likelihood.log_scale.fill_(math.log(0.7))
        vae.encoder.mean.weight.mul_(0.2)
        vae.encoder.mean.bias.copy_(-vae.encoder.mean.weight @ vae.likelihood.linear.bias + 0.2)
        vae.encoder.log_variance.copy_(torch.tensor([-1.0, 0.5]))
    return vae


def _closed_form(vae, data):
    """Derivatives of the mean ELBO of probabilistic PCA, on paper."""
    x = data.counts.dense()
    loadings, offset = vae.likelihood.linear.weight.detach(), vae.likelihood.linear.bias.detach()
    noise = math.exp(2 * float(vae.likelihood.log_scale.detach()))
    variance = vae.encoder.log_variance.detach().exp()
    mean = vae.encoder.mean(x).detach()
    residual = x - offset - mean @ loadings.T
    of_mean = residual @ loadings / noise - mean
    of_loadings = (residual.T @ mean / len(x) - loadings * variance) / noise
    square = residual.square().sum(1).mean() + (variance * loadings.square().sum(0)).sum()
    return {
        "encoder.mean.weight": (of_mean.T @ x / len(x)).flatten(),
        "encoder.mean.bias": of_mean.mean(0),
        "encoder.log_variance": 0.5 - 0.5 * variance * (loadings.square().sum(0) / noise + 1),
        "likelihood.linear.weight": of_loadings.flatten(),
        "likelihood.linear.bias": residual.mean(0) / noise,
        "likelihood.log_scale": (square / noise - N_GENES).view(1),
    }


def _estimates(name, vae, minibatch, n_estimates, n_samples):
    generator = torch.Generator().manual_seed(0)
    surrogate = SURROGATES[name][1]
    return [gradients(surrogate(vae, minibatch, n_samples, generator), vae) for _ in range(n_estimates)]


@pytest.mark.parametrize("name", OF_ELBO)
def test_the_mean_is_the_closed_form_of_probabilistic_pca(name, vae, data):
    exact = _closed_form(vae, data)
    assert exact.keys() == dict(vae.named_parameters()).keys()
    assert all(float(value.abs().max()) > 0.1 for value in exact.values())
    assert largest_deviation(_estimates(name, vae, data, 60, 100), exact) < 4.5


@pytest.mark.parametrize("options", [{}, {"prior": "mixture", "n_prior_components": 3}], ids=["standard", "mixture"])
@pytest.mark.parametrize("name", OF_ELBO)
def test_the_mean_is_that_of_numerical_integration_for_counts(name, options):
    vae, minibatch = one_dimensional_vae(**options), make_minibatch(6, 5, dtype=torch.float64)
    exact = gradients(exact_elbo(vae, minibatch), vae)
    assert largest_deviation(_estimates(name, vae, minibatch, 60, 100), exact) < 4.5


@pytest.mark.parametrize(
    "options",
    [{}, {"prior": "vamp", "n_prior_components": 2}, {"use_observed_lib_size": False}],
    ids=["standard", "vamp", "latent library"],
)
@pytest.mark.parametrize("name", OF_IWAE)
def test_the_mean_of_importance_weighted_gradients_is_that_of_numerical_integration(name, options):
    vae = one_dimensional_vae(**options)
    minibatch = make_minibatch(3, 5, dtype=torch.float64)
    vae.initialise_library(minibatch.library_size, minibatch.batch)
    n = 40 if vae.library_encoder is None else 12
    exact = gradients(exact_iwae_of_two(vae, minibatch, n=n), vae)
    assert largest_deviation(_estimates(name, vae, repeat(minibatch, 300), 40, 2), exact) < 4.5


def test_the_mean_with_a_baseline_is_right_for_two_samples():
    """The mean over the other samples of the cell, of which there is one."""
    vae, minibatch = one_dimensional_vae(), make_minibatch(6, 5, dtype=torch.float64)
    exact = gradients(exact_elbo(vae, minibatch), vae)
    estimates = _estimates("score_function_with_baseline", vae, repeat(minibatch, 200), 40, 2)
    assert largest_deviation(estimates, exact) < 4.5


def _at_the_exact_posterior(vae):
    loadings, offset = vae.likelihood.linear.weight, vae.likelihood.linear.bias
    noise = torch.exp(2 * vae.likelihood.log_scale)
    with torch.no_grad():
        variance = 1 / (loadings.square().sum(0) / noise + 1)
        vae.encoder.log_variance.copy_(variance.log())
        vae.encoder.mean.weight.copy_(variance.unsqueeze(1) * loadings.T / noise)
        vae.encoder.mean.bias.copy_(-vae.encoder.mean.weight @ offset)


@pytest.mark.parametrize("name", ["sticking_the_landing", "doubly_reparameterised"])
def test_at_the_exact_posterior_path_derivatives_have_no_noise(name, vae, data):
    _at_the_exact_posterior(vae)
    (found,) = _estimates(name, vae, data, 1, 3)
    noisy = _estimates("pathwise" if name in OF_ELBO else "importance_weighted", vae, data, 1, 3)[0]
    for parameter in ("encoder.mean.weight", "encoder.mean.bias", "encoder.log_variance"):
        assert float(found[parameter].abs().max()) < 1e-9
        assert float(noisy[parameter].abs().max()) > 1e-3


def _spread(name, vae, minibatch, n_samples):
    draws = torch.stack([each["encoder.mean.weight"] for each in _estimates(name, vae, minibatch, 60, n_samples)])
    return float(draws.var(0).sum() / draws.mean(0).square().sum()) ** 0.5


def test_the_baseline_and_the_pathwise_gradient_take_noise_away():
    vae, minibatch = one_dimensional_vae(), make_minibatch(6, 5, dtype=torch.float64)
    plain, baseline, pathwise = (
        _spread(name, vae, minibatch, 5) for name in ("score_function", "score_function_with_baseline", "pathwise")
    )
    assert plain > 2 * baseline
    assert baseline > 1.2 * pathwise


def test_the_share_of_noise_grows_with_the_samples_unless_doubly_reparameterised():
    # Wider than the exact posterior, so that importance weights are bounded.
    vae, minibatch = one_dimensional_vae(log_variance=0.5), make_minibatch(6, 5, dtype=torch.float64)
    assert _spread("importance_weighted", vae, minibatch, 200) > 2 * _spread("importance_weighted", vae, minibatch, 2)
    assert _spread("doubly_reparameterised", vae, minibatch, 200) < _spread("doubly_reparameterised", vae, minibatch, 2)
