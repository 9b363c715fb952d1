"""Draws from the exact posterior of each cell, rather than from the encoder's."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Distribution

from scvae_ext.diagnostics._optimised_posterior import (
    evaluating_with_gradients,
    log_weights,
    noise_of_samples,
    noise_of_steps,
    optimised,
    samples_at,
)
from scvae_ext.minibatch import Minibatch
from scvae_ext.models.cells import Cells
from scvae_ext.modules import VAE

__all__ = ["States", "draw_states"]


@dataclass(frozen=True)
class States:
    """One draw of the state of each cell of a minibatch.

    Parameters
    ----------
    minibatch
        The cells.
    px
        Likelihood at the draw.
    effective_sample_size
        Number of equally weighted draws that those to choose from are worth.
    """

    minibatch: Minibatch
    px: Distribution
    effective_sample_size: Float[np.ndarray, "cells"]


def draw_states(
    module: VAE, cells: Cells, *, n_samples: int, n_optimisation_steps: int, seed: int
) -> Iterator[tuple[slice, States]]:
    r"""Draw the state of each cell from its posterior, by sampling-importance-resampling.

    Of K samples of the cell's own best Gaussian, as :func:`~scvae_ext.diagnostics.evidence` finds it, one is taken with
    a probability in proportion to its importance weight :math:`p(x \mid z_k)\,p(z_k) / q^*(z_k)`. As K grows, it is
    a draw from :math:`p(z \mid x)`. Source: Rubin, Bayesian Statistics 3, 395 (1988).

    Parameters
    ----------
    module, cells
        Of what.
    n_samples
        K.
    n_optimisation_steps
        Gradient steps for each cell's own Gaussian.
    seed
        Seed of all draws, which do not depend on the size of minibatches.
    """
    of_samples, of_steps, of_choice = (np.random.default_rng(child) for child in np.random.SeedSequence(seed).spawn(3))
    step_noise = noise_of_steps(module, n_optimisation_steps, of_steps, cells.device)
    with evaluating_with_gradients(module):
        pz = module.pz()
        for rows, minibatch in cells:
            noise = noise_of_samples(module, minibatch.n_cells, n_samples, of_samples, cells.device)
            posterior = optimised(module, minibatch, module.encode(minibatch), step_noise)
            weights = log_weights(module, pz, cells, minibatch, posterior, noise).softmax(0)
            chosen = _choose(weights, of_choice)
            of_chosen = noise[chosen, torch.arange(minibatch.n_cells, device=chosen.device)]
            latent, log_library = samples_at(posterior, of_chosen)
            px = module.decode(latent, minibatch, log_library)
            effective = weights.square().sum(0).reciprocal().clamp(1.0, n_samples)
            yield rows, States(minibatch, px, effective.cpu().numpy())


def _choose(weights: Float[Tensor, "samples cells"], rng: np.random.Generator) -> Tensor:
    """Return for each cell the position of a sample, chosen in proportion to the weights."""
    thresholds = torch.from_numpy(rng.random(weights.shape[1])).to(weights.device)
    passed = (weights.cumsum(0) < thresholds).sum(0)
    # The last sum can be below one by rounding.
    return passed.clamp_max(len(weights) - 1)
