"""The methods of the variational autoencoder of counts, by topic."""

from scvae_ext.models.mixins.comparison import ComparisonMixin
from scvae_ext.models.mixins.counterfactual import CounterfactualMixin
from scvae_ext.models.mixins.expression import ExpressionMixin
from scvae_ext.models.mixins.latent import LatentMixin
from scvae_ext.models.mixins.sampling import SamplingMixin
from scvae_ext.models.mixins.scores import ScoresMixin

__all__ = ["ComparisonMixin", "CounterfactualMixin", "ExpressionMixin", "LatentMixin", "SamplingMixin", "ScoresMixin"]
