"""What users hold: models with ``train()``, getters, and results written into the AnnData."""

from scvae_ext.models.autoencoder import Autoencoder
from scvae_ext.models.cite import CiteVAE
from scvae_ext.models.multiome import MultiomeVAE
from scvae_ext.models.scvae import SCVAE
from scvae_ext.models.semi_supervised import SemiSupervisedVAE

__all__ = ["SCVAE", "Autoencoder", "CiteVAE", "MultiomeVAE", "SemiSupervisedVAE"]
