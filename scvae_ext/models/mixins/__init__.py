"""The methods of variational autoencoders of counts, by topic."""

from scvae_ext.models.mixins.accessibility import AccessibilityMixin
from scvae_ext.models.mixins.comparison import ComparisonMixin
from scvae_ext.models.mixins.counterfactual import CounterfactualMixin
from scvae_ext.models.mixins.differential_accessibility import DifferentialAccessibilityMixin
from scvae_ext.models.mixins.differential_proteins import DifferentialProteinMixin
from scvae_ext.models.mixins.expression import ExpressionMixin
from scvae_ext.models.mixins.factors import FactorsMixin
from scvae_ext.models.mixins.generation import GenerationMixin
from scvae_ext.models.mixins.labels import LabelMixin
from scvae_ext.models.mixins.latent import LatentMixin
from scvae_ext.models.mixins.proteins import ProteinMixin
from scvae_ext.models.mixins.reference import ReferenceMixin
from scvae_ext.models.mixins.sampling import SamplingMixin
from scvae_ext.models.mixins.scores import ScoresMixin
from scvae_ext.models.mixins.uncertainty import UncertaintyMixin

__all__ = [
    "AccessibilityMixin",
    "ComparisonMixin",
    "CounterfactualMixin",
    "DifferentialAccessibilityMixin",
    "DifferentialProteinMixin",
    "ExpressionMixin",
    "FactorsMixin",
    "GenerationMixin",
    "LabelMixin",
    "LatentMixin",
    "ProteinMixin",
    "ReferenceMixin",
    "SamplingMixin",
    "ScoresMixin",
    "UncertaintyMixin",
]
