"""Mean and variance of an estimate of the gradient over many draws."""

import math
import time
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from scvae_ext.minibatch import Minibatch
from scvae_ext.modules import SURROGATES, VAE, GradientEstimator

__all__ = ["GradientMoments", "moments_of_gradient", "moments_of_group"]


@dataclass(frozen=True)
class GradientMoments:
    """Mean and variance of an estimate of each parameter's derivative."""

    mean: Float[Tensor, "parameters"]
    variance: Float[Tensor, "parameters"]
    n_estimates: int
    seconds: float


def moments_of_gradient(
    module: VAE, minibatch: Minibatch, estimator: GradientEstimator, n_samples: int, n_estimates: int, seed: int
) -> GradientMoments:
    """Return the moments by Welford's recursion, which holds no more than two copies of the parameters."""
    surrogate = SURROGATES[estimator][1]
    parameters = list(module.parameters())
    generator = torch.Generator(parameters[0].device).manual_seed(seed)
    mean = squares = torch.zeros((), dtype=torch.float64)
    start = time.perf_counter()
    for n in range(1, n_estimates + 1):
        value = surrogate(module, minibatch, n_samples, generator).mean()
        gradients = torch.autograd.grad(value, parameters, allow_unused=True, materialize_grads=True)
        gradient = torch.cat([part.flatten() for part in gradients]).cpu().double()
        deviation = gradient - mean
        mean = mean + deviation / n
        squares = squares + deviation * (gradient - mean)
    seconds = (time.perf_counter() - start) / n_estimates
    return GradientMoments(mean, squares / (n_estimates - 1), n_estimates, seconds)


def moments_of_group(
    found: GradientMoments, reference: GradientMoments, positions: Bool[np.ndarray, "parameters"]
) -> tuple[float, float, float, float]:
    """Return norm of the gradient, bias, its error, and variance of one group of parameters."""
    chosen = torch.from_numpy(positions)
    bias = (found.mean - reference.mean)[chosen].norm()
    variance, of_reference = (float(moments.variance[chosen].sum()) for moments in (found, reference))
    error = math.sqrt(variance / found.n_estimates + of_reference / reference.n_estimates)
    return float(reference.mean[chosen].norm()), float(bias), error, variance
