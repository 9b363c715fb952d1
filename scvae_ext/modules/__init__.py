"""Generative models: networks and likelihood composed, and the bound that trains them."""

from scvae_ext.modules.autoencoder import DeterministicAutoencoder
from scvae_ext.modules.elbo import elbo, log_importance_weights
from scvae_ext.modules.outputs import Elbo, Objective, Posterior, SquaredError, VAEOutput
from scvae_ext.modules.trainable import Trainable
from scvae_ext.modules.vae import VAE, LatentDistribution

__all__ = [
    "VAE",
    "DeterministicAutoencoder",
    "Elbo",
    "LatentDistribution",
    "Objective",
    "Posterior",
    "SquaredError",
    "Trainable",
    "VAEOutput",
    "elbo",
    "log_importance_weights",
]
