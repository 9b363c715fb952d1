"""Training: the plan, the Lightning module and the one function that runs it."""

from scvae_ext.train.errors import TrainingDivergedError
from scvae_ext.train.plan import TrainingPlan

__all__ = ["TrainingDivergedError", "TrainingPlan"]
