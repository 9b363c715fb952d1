import numpy as np
import pytest
import scipy.sparse as sp
import torch
from anndata import AnnData
from linear_gaussian import LinearGaussianLikelihood
from torch import nn
from torch.distributions import Normal

from scvae_ext import SCVAE


class Identity(nn.Module):
    def forward(self, x, covariates):
        return x


class LinearEncoder(nn.Module):
    """Posterior with a mean that is linear in the values, and one scale a dimension."""

    def __init__(self, weight, bias, scale):
        super().__init__()
        self.mean = nn.Linear(weight.shape[1], len(weight)).double()
        self.scale = torch.as_tensor(scale)
        with torch.no_grad():
            self.mean.weight.copy_(torch.as_tensor(weight))
            self.mean.bias.copy_(torch.as_tensor(bias))

    def forward(self, x, covariates):
        # Encoders see log(1 + x).
        mean = self.mean(torch.expm1(x.dense().double()))
        return Normal(mean, self.scale.expand_as(mean))


@pytest.fixture
def linear_model():
    """Make an SCVAE with x given z normal about W z + b, and a linear encoder."""

    def make(x, weight, bias, scale, *, loadings=None, offset=0.0, noise=1.0):
        adata = AnnData(np.asarray(x, dtype=np.float32))
        SCVAE.setup_anndata(adata)
        n_latent, n_genes = np.shape(weight)
        model = SCVAE(adata, gene_likelihood="normal", n_latent=n_latent)
        module = model.module
        module.encoder, module.decoder = LinearEncoder(np.asarray(weight), np.asarray(bias), scale), Identity()
        module.likelihood = LinearGaussianLikelihood(n_latent, n_genes).double()
        with torch.no_grad():
            module.likelihood.linear.weight.copy_(
                torch.as_tensor(np.zeros((n_genes, n_latent)) if loadings is None else loadings)
            )
            module.likelihood.linear.bias.fill_(offset)
            module.likelihood.log_scale.fill_(np.log(noise))
        model.is_trained = True
        return model

    return make


@pytest.fixture(scope="session")
def counts():
    """Three types of cells with so few counts that a grid resolves their posteriors."""
    rng = np.random.default_rng(0)
    shares = rng.dirichlet(np.ones(12), 3)[np.arange(150) % 3]
    adata = AnnData(sp.csr_matrix(rng.poisson(1 + 60 * shares).astype(np.float32)))
    SCVAE.setup_anndata(adata)
    return adata


@pytest.fixture(scope="session")
def trained(counts):
    """Train a small model, the same for all tests that ask for the same options."""
    cache = {}

    def train(n_latent=2, max_steps=150, plan_kwargs=None, **options):
        key = repr((n_latent, max_steps, plan_kwargs, options))
        if key not in cache:
            model = SCVAE(counts, n_hidden=16, n_latent=n_latent, **options)
            model.train(max_steps=max_steps, enable_progress_bar=False, plan_kwargs=plan_kwargs)
            cache[key] = model
        return cache[key]

    return train
