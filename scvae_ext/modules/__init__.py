"""Generative models: networks and likelihood composed, and the bound that trains them."""

from scvae_ext.modules.accessibility import AccessibilityModality
from scvae_ext.modules.autoencoder import DeterministicAutoencoder
from scvae_ext.modules.bounds import (
    Bound,
    ImportanceWeightedBound,
    SampledElbo,
    held_fixed,
    trainable_bound,
)
from scvae_ext.modules.dependence import batch_dependence
from scvae_ext.modules.elbo import elbo, log_importance_weights
from scvae_ext.modules.hand_derived import HandDerivedElbo
from scvae_ext.modules.kept_reference import KeptReference
from scvae_ext.modules.label_prior import LabelPrior
from scvae_ext.modules.modality import Modality
from scvae_ext.modules.networks import DecoderKind, LatentDistribution, Networks
from scvae_ext.modules.new_batches import copy_reference
from scvae_ext.modules.objectives import BatchPenalised, FreeBitsElbo, FreeLocation, ImportanceWeighted, LabelWeighted
from scvae_ext.modules.outputs import Elbo, Objective, Posterior, SquaredError, VAEOutput
from scvae_ext.modules.prior import LearnedPrior, MixturePrior, PriorKind, VampPrior
from scvae_ext.modules.proteins import ProteinModality
from scvae_ext.modules.residual import copy_weights
from scvae_ext.modules.start_new_batches import start_new_batches
from scvae_ext.modules.surrogates import SURROGATES, GradientEstimator
from scvae_ext.modules.trainable import Trainable
from scvae_ext.modules.vae import VAE

__all__ = [
    "SURROGATES",
    "VAE",
    "AccessibilityModality",
    "BatchPenalised",
    "Bound",
    "DecoderKind",
    "DeterministicAutoencoder",
    "Elbo",
    "FreeBitsElbo",
    "FreeLocation",
    "GradientEstimator",
    "HandDerivedElbo",
    "ImportanceWeighted",
    "ImportanceWeightedBound",
    "KeptReference",
    "LabelPrior",
    "LabelWeighted",
    "LatentDistribution",
    "LearnedPrior",
    "MixturePrior",
    "Modality",
    "Networks",
    "Objective",
    "Posterior",
    "PriorKind",
    "ProteinModality",
    "SampledElbo",
    "SquaredError",
    "Trainable",
    "VAEOutput",
    "VampPrior",
    "batch_dependence",
    "copy_reference",
    "copy_weights",
    "elbo",
    "held_fixed",
    "log_importance_weights",
    "start_new_batches",
    "trainable_bound",
]
