"""Probabilistic PCA, where evidence, posterior and optimum have closed forms, in the parts of the package."""

import numpy as np
import torch
from torch import nn
from torch.distributions import Normal

from scvae_ext.likelihoods import Likelihood
from scvae_ext.modules import Posterior, Trainable, VAEOutput, elbo


class LinearGaussianLikelihood(Likelihood[Normal]):
    """x given z is normal about W z + b; the hidden layer is z itself."""

    def __init__(self, n_hidden, n_genes):
        super().__init__(n_hidden, n_genes, "gene", 1, 1, True)
        self.linear = nn.Linear(n_hidden, n_genes)
        self.log_scale = nn.Parameter(torch.zeros(()))

    def initialise(self, statistics):
        raise NotImplementedError

    def forward(self, hidden, depth, batch, label):
        return Normal(self.linear(hidden), self.log_scale.exp())

    def expression(self, hidden):
        return self.linear(hidden)

    def parameters_by_name(self, px):
        return {"mean": px.loc}

    def reconstruction(self, px, minibatch):
        return px.log_prob(minibatch.counts.dense()).sum(-1)


class LinearGaussian(Trainable):
    """Linear encoder and decoder, one variance of the posterior for all cells."""

    monitor = "elbo"
    monitor_mode = "max"

    def __init__(self, n_genes, n_latent):
        super().__init__()
        self.likelihood = LinearGaussianLikelihood(n_latent, n_genes)
        self.encoder = nn.Linear(n_genes, n_latent)
        self.log_scale = nn.Parameter(torch.zeros(n_latent))

    def output(self, minibatch, noise):
        mean = self.encoder(minibatch.counts.dense())
        qz = Normal(mean, self.log_scale.exp().expand_as(mean))
        latent = qz.loc + qz.scale * noise
        px = self.likelihood(latent, minibatch.library_size, minibatch.batch, minibatch.label)
        return VAEOutput(Posterior(qz, None), latent, None, px)

    def objective(self, minibatch, generator=None):
        noise = torch.randn(minibatch.n_cells, len(self.log_scale), generator=generator)
        return elbo(self.output(minibatch, noise), self.likelihood, minibatch)


def quadrature(n_latent, n_cells):
    """Noise at which the mean of a quadratic function equals its Gaussian expectation."""
    points = n_latent**0.5 * torch.cat([torch.eye(n_latent), -torch.eye(n_latent)])
    return points.double().unsqueeze(1).expand(-1, n_cells, -1)


def best_log_likelihood(x, n_latent):
    """Mean log-likelihood of probabilistic PCA at its maximum (Tipping and Bishop 1999, equations 5 and 8)."""
    n_genes = x.shape[1]
    eigenvalues = np.linalg.eigvalsh(np.cov(x.T, bias=True))[::-1]
    noise = eigenvalues[n_latent:].mean()
    log_determinant = np.log(eigenvalues[:n_latent]).sum() + (n_genes - n_latent) * np.log(noise)
    return -0.5 * (n_genes * np.log(2 * np.pi) + log_determinant + n_genes)


def simulate(n_cells, n_genes, n_latent, seed=0):
    """Draw from the model, with an offset that keeps every value positive."""
    generator = np.random.default_rng(seed)
    loadings = generator.normal(0, 1, (n_genes, n_latent))
    latent = generator.normal(0, 1, (n_cells, n_latent))
    return 20 + latent @ loadings.T + 0.5 * generator.normal(0, 1, (n_cells, n_genes))
