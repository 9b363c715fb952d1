"""What the training loop asks of a module."""

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor, nn

from scvae_ext.minibatch import Minibatch
from scvae_ext.modules.outputs import Objective

__all__ = ["Trainable"]


class Trainable(nn.Module, ABC):
    """A module with an objective; ``monitor`` and ``monitor_mode`` name the term by which weights are judged."""

    monitor: str
    monitor_mode: str

    def log_prior(self) -> Float[Tensor, ""] | None:
        """Return the log density of priors on parameters, in nats for all cells together, if there are any."""
        return None

    def keep_fixed(self) -> None:
        """Clear gradients of what is not trained; called between the backward pass and the update."""

    @abstractmethod
    def objective(self, minibatch: Minibatch, generator: torch.Generator | None = None) -> Objective:
        """Return the objective of each cell.

        Parameters
        ----------
        minibatch
            The cells.
        generator
            Source of randomness for samples; the default generator of torch where ``None``.
        """
