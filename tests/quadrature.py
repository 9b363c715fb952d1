"""A VAE of one latent dimension, and its bounds by numerical integration over the noise of every sample."""

import math

import numpy as np
import torch
from torch import nn
from torch.distributions import Normal

from scvae_ext.minibatch import Minibatch, SparseCounts
from scvae_ext.modules import VAE

N_NODES = 40


def repeat(minibatch, times):
    """Return a minibatch with copies of its cells, whose samples are independent repetitions."""
    names = ("library_size", "batch", "label", "categorical_covariates", "continuous_covariates")
    columns = [getattr(minibatch, name) for name in names]
    return Minibatch(
        SparseCounts.from_dense(minibatch.counts.dense().repeat(times, 1)),
        *(column.repeat(times, *[1] * (column.dim() - 1)) for column in columns),
    )


def nodes(n=N_NODES):
    """Points and log weights of Gauss-Hermite quadrature for a standard normal."""
    points, weights = np.polynomial.hermite_e.hermegauss(n)
    return torch.as_tensor(points), torch.as_tensor(np.log(weights / weights.sum()))


class SmoothDecoder(nn.Module):
    """A hidden layer without kinks, for which quadrature is exact."""

    def __init__(self, n_hidden):
        super().__init__()
        self.linear = nn.Linear(1, n_hidden)

    def forward(self, x, covariates):
        return torch.tanh(self.linear(x))


def one_dimensional_vae(n_genes=5, log_variance=-1.0, **options):
    """Make a VAE whose decoder depends on z, and whose encoder is wrong but not far off."""
    vae = VAE(n_genes, n_latent=1, n_hidden=8, gene_likelihood="poisson", **options)
    vae.decoder = SmoothDecoder(8)
    vae = vae.double().eval()
    with torch.no_grad():
        vae.likelihood.expression_head.linear.weight.mul_(3)
        vae.encoder.mean.weight.mul_(0.3)
        vae.encoder.log_variance.bias.fill_(log_variance)
    return vae


def log_prior(vae, z):
    """Log density of the prior from its parameters, component by component."""
    if vae.prior is None:
        return Normal(0.0, 1.0).log_prob(z)
    parts = vae.prior.components(vae.encoder)
    of_components = [
        weight + Normal(loc, scale).log_prob(z)
        for weight, loc, scale in zip(
            vae.prior.logits.log_softmax(0), parts.loc.unbind(0), parts.scale.unbind(0), strict=True
        )
    ]
    return torch.stack(of_components).logsumexp(0)


def terms(vae, minibatch, n=N_NODES):
    """Log p(x given z), log p(z) / q(z) and, where it is latent, the same of the library size, at all nodes."""
    points, log_weights = nodes(n)
    posterior = vae.encode(minibatch)
    z = posterior.qz.loc + posterior.qz.scale * points.view(-1, 1, 1)
    log_ratio = (log_prior(vae, z) - posterior.qz.log_prob(z)).squeeze(-1)
    values = minibatch.counts.dense()
    if posterior.log_library is None:
        return vae.decode(z, minibatch).log_prob(values).sum(-1), log_ratio, torch.zeros_like(log_ratio), log_weights
    log_library = posterior.log_library.loc + posterior.log_library.scale * points.view(-1, 1)
    prior = Normal(vae.library_log_means[minibatch.batch], vae.library_log_variances[minibatch.batch].sqrt())
    of_library = prior.log_prob(log_library) - posterior.log_library.log_prob(log_library)
    grid = z.unsqueeze(1).expand(-1, n, -1, -1)
    likelihood = vae.decode(grid, minibatch, log_library.expand(n, -1, -1)).log_prob(values).sum(-1)
    return (
        likelihood.flatten(0, 1),
        log_ratio.unsqueeze(1).expand(-1, n, -1).flatten(0, 1),
        of_library.expand(n, -1, -1).flatten(0, 1),
        (log_weights.view(-1, 1) + log_weights).flatten(),
    )


def exact_elbo(vae, minibatch):
    """Return the ELBO of each cell."""
    likelihood, ratio, of_library, log_weights = terms(vae, minibatch)
    return (log_weights.exp().view(-1, 1) * (likelihood + ratio + of_library)).sum(0)


def exact_iwae_of_two(vae, minibatch, beta=1.0, n=N_NODES):
    """Return the importance-weighted bound of each cell with two samples."""
    likelihood, ratio, of_library, log_weights = terms(vae, minibatch, n)
    weights = likelihood + beta * ratio + of_library
    pairs = torch.logaddexp(weights.unsqueeze(0), weights.unsqueeze(1)) - math.log(2)
    return torch.einsum("i,j,ijn->n", log_weights.exp(), log_weights.exp(), pairs)


def gradients(value, vae):
    """Return the derivative of the mean over cells by each parameter, flattened, by the parameter's name."""
    names, parameters = zip(*vae.named_parameters(), strict=True)
    found = torch.autograd.grad(value.mean(), parameters, allow_unused=True, materialize_grads=True)
    return {name: part.flatten() for name, part in zip(names, found, strict=True)}


def largest_deviation(estimates, exact):
    """Return the largest distance of a mean from its exact value, in standard errors."""
    worst = 0.0
    for name, value in exact.items():
        draws = torch.stack([estimate[name] for estimate in estimates])
        error = draws.std(0) / math.sqrt(len(draws))
        # Some derivatives are exact, and then no estimate has any noise.
        distance = (draws.mean(0) - value).abs()
        worst = max(worst, float((distance / (error + 1e-9)).max()))
    return worst
