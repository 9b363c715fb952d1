"""Counts drawn by numpy from a decoder that is known, and the SCVAE that has this decoder."""

import numpy as np
import torch
from anndata import AnnData
from torch import nn
from torch.distributions import Normal

from scvae_ext import SCVAE
from scvae_ext.distributions import NegativeBinomial, Poisson, ZeroInflated
from scvae_ext.likelihoods import Likelihood, make_likelihood
from scvae_ext.modules import Posterior


class Identity(nn.Module):
    def forward(self, x, covariates):
        return x


class KnownLikelihood(Likelihood):
    """Counts with mean s softplus(W z + b), s being the size factor; the hidden layer is z itself."""

    def __init__(self, known, likelihood):
        nn.Module.__init__(self)
        self.likelihood, self.theta, self.pi = likelihood, torch.tensor(known.theta), torch.tensor(known.pi)
        self.loadings, self.bias = torch.tensor(known.loadings).float(), torch.tensor(known.bias).float()

    def initialise(self, statistics):
        raise NotImplementedError

    def expression(self, hidden):
        return torch.nn.functional.softplus(hidden @ self.loadings.T + self.bias)

    def forward(self, hidden, depth, batch, label):
        mean = self.expression(hidden) * depth.unsqueeze(-1)
        if self.likelihood == "poisson":
            return Poisson(mean)
        base = NegativeBinomial(mean, self.theta.expand(len(self.bias)))
        return base if self.likelihood == "nb" else ZeroInflated(base, self.pi.logit().expand(len(self.bias)))

    def parameters_by_name(self, px):
        return {"mean": px.mean}

    def reconstruction(self, px, minibatch):
        return px.log_prob_sum(minibatch.counts)


class KnownModel:
    """Loadings W of genes by latent dimensions and offsets b; with ``"normal"``, W z + b are log-normalised values."""

    def __init__(self, bias, loadings=None, *, theta=2.0, pi=0.3, noise=0.5):
        self.bias = np.asarray(bias, dtype=float)
        self.loadings = np.zeros((len(self.bias), 1)) if loadings is None else np.asarray(loadings, dtype=float)
        self.theta, self.pi, self.noise = theta, pi, noise

    def simulate(self, likelihood, n_cells, seed=0, size_sd=0.3):
        """Draw cells; the size factors are theirs."""
        rng = np.random.default_rng(seed)
        size = np.exp(size_sd * rng.normal(size=n_cells))
        location = rng.normal(size=(n_cells, self.loadings.shape[1])) @ self.loadings.T + self.bias
        if likelihood == "normal":
            values = location + self.noise * rng.normal(size=location.shape)
            counts = np.rint(size[:, None] * np.expm1(np.maximum(values, 0)))
        else:
            mean = size[:, None] * np.log1p(np.exp(location))
            rate = mean if likelihood == "poisson" else mean * rng.gamma(self.theta, 1 / self.theta, mean.shape)
            counts = rng.poisson(rate)
            if likelihood == "zinb":
                counts[rng.random(counts.shape) < self.pi] = 0
        # Cells without counts cannot be set up; these models need no library size.
        counts[counts.sum(1) == 0, 0] = 1
        adata = AnnData(counts.astype(np.float32))
        adata.obs["size"] = size
        SCVAE.setup_anndata(adata, size_factor_key="size")
        return adata

    def model(self, adata, likelihood):
        """Build the model; its posterior is the prior, whatever the cell."""
        n_genes, n_latent = self.loadings.shape
        model = SCVAE(adata, gene_likelihood=likelihood, n_latent=n_latent)
        model.module.decoder = Identity()
        if likelihood == "normal":
            head = make_likelihood("normal", n_latent, n_genes, compositional=False)
            with torch.no_grad():
                head.location.linear.weight.copy_(torch.as_tensor(self.loadings))
                head.location.linear.bias.copy_(torch.as_tensor(self.bias))
                head.scale.log_value.fill_(np.log(self.noise))
        else:
            head = KnownLikelihood(self, likelihood)
        model.module.likelihood = head
        model.module.encode = lambda minibatch: Posterior(
            Normal(torch.zeros(minibatch.n_cells, n_latent), torch.ones(minibatch.n_cells, n_latent)), None
        )
        model.is_trained = True
        return model
