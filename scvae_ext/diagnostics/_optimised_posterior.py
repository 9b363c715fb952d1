"""The Gaussian posterior of each cell that maximises its ELBO, and the importance weights of its samples.

Noise of samples comes cell after cell and that of steps is shared, so that neither depends on the minibatch.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Distribution, Normal

from scvae_ext.minibatch import Minibatch
from scvae_ext.models.cells import Cells
from scvae_ext.modules import VAE, Posterior, log_importance_weights
from scvae_ext.nn.precision import single_precision

__all__ = ["evaluating_with_gradients", "log_weights", "noise_of_samples", "noise_of_steps", "optimised", "samples_at"]

# Each step moves a mean by at most this many standard deviations of the encoder, and a log variance by this much.
STEP_SIZE = 0.1
# Gradients (nats a standard deviation) below this make small steps, lest rounding errors drive an optimum away.
GRADIENT_FLOOR = 0.1
# Pairs of opposite noise: the gradient of a Gaussian posterior's mean is then exact.
PAIRS_PER_STEP = 2


@contextmanager
def evaluating_with_gradients(module: nn.Module) -> Iterator[None]:
    """Switch dropout, batch statistics and gradients off; unlike in inference mode, they can be had again inside.

    Parameters
    ----------
    module
        The module.
    """
    training = module.training
    module.eval()
    try:
        with torch.no_grad(), single_precision():
            yield
    finally:
        module.train(training)


def noise_of_steps(
    module: VAE, n_steps: int, rng: np.random.Generator, device: torch.device
) -> Float[Tensor, "steps samples 1 axes"]:
    """Return standard normal noise for the steps of :func:`optimised`.

    Parameters
    ----------
    module
        The module.
    n_steps
        Number of steps.
    rng
        Source of randomness.
    device
        Where to put it.
    """
    half = rng.standard_normal((n_steps, PAIRS_PER_STEP, 1, _n_axes(module)), dtype=np.float32)
    return torch.from_numpy(np.concatenate([half, -half], axis=1)).to(device)


def noise_of_samples(
    module: VAE, n_cells: int, n_samples: int, rng: np.random.Generator, device: torch.device
) -> Float[Tensor, "samples cells axes"]:
    """Return standard normal noise for samples of the posterior of each cell.

    Parameters
    ----------
    module
        The module.
    n_cells, n_samples
        Numbers of cells and of samples of each.
    rng
        Source of randomness.
    device
        Where to put it.
    """
    numbers = rng.standard_normal((n_cells, n_samples, _n_axes(module)), dtype=np.float32)
    return torch.from_numpy(numbers).transpose(0, 1).to(device)


def samples_at(
    posterior: Posterior, noise: Float[Tensor, "*samples #cells axes"]
) -> tuple[Float[Tensor, "*samples cells state"], Float[Tensor, "*samples cells"] | None]:
    """Return the states, and the log library sizes where these are latent, that noise stands for.

    Parameters
    ----------
    posterior
        Posterior of each cell.
    noise
        Standard normal noise, that of the log library size on the last axis.
    """
    n_latent = posterior.qz.loc.shape[-1]
    latent: Tensor = posterior.qz.loc + posterior.qz.scale * noise[..., :n_latent]
    if posterior.log_library is None:
        return latent, None
    return latent, posterior.log_library.loc + posterior.log_library.scale * noise[..., n_latent]


def log_weights(
    module: VAE,
    pz: Distribution | None,
    cells: Cells,
    minibatch: Minibatch,
    posterior: Posterior,
    noise: Float[Tensor, "samples cells axes"],
) -> Float[Tensor, "samples cells"]:
    """Return log importance weights at all samples, as many at once as fit into memory, in double precision.

    Parameters
    ----------
    module, pz
        The module and its prior.
    cells, minibatch
        All cells, and those of the minibatch.
    posterior, noise
        What samples are drawn from, and their noise.
    """
    parts = noise.split(cells.samples_at_once(minibatch.n_cells, len(noise)))
    return torch.cat([_log_weights(module, pz, minibatch, posterior, posterior, part).double() for part in parts])


def optimised(
    module: VAE, minibatch: Minibatch, start: Posterior, noise: Float[Tensor, "steps samples 1 axes"]
) -> Posterior:
    """Return the diagonal Gaussian of each cell that maximises its ELBO, by Adam with steps that shrink to zero.

    Parameters
    ----------
    module, minibatch
        The module and the cells.
    start
        The posterior that the encoder gives.
    noise
        That of each step.
    """
    parts = [start.qz] if start.log_library is None else [start.qz, start.log_library]
    with torch.no_grad():
        pz = module.pz()
    # Shifts in standard deviations and changes of log variance, so that one size of step suits every dimension.
    shifts = [torch.zeros_like(part.loc, requires_grad=True) for part in parts]
    changes = [torch.zeros_like(part.loc, requires_grad=True) for part in parts]
    optimizer = torch.optim.Adam([*shifts, *changes], lr=STEP_SIZE, eps=GRADIENT_FLOOR)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(noise))
    for of_step in noise:
        with torch.enable_grad():
            moved = _moved(parts, shifts, changes)
            # The density is held fixed: its score has mean zero, and without it no noise is left at the optimum.
            density = _moved(parts, [shift.detach() for shift in shifts], [change.detach() for change in changes])
            loss = -_log_weights(module, pz, minibatch, moved, density, of_step).mean(0).sum()
            gradients = torch.autograd.grad(loss, [*shifts, *changes])
        for parameter, gradient in zip([*shifts, *changes], gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()
        scheduler.step()
    return _moved(parts, shifts, changes)


def _n_axes(module: VAE) -> int:
    return module.encoder.mean.out_features + (module.library_encoder is not None)


def _log_weights(
    module: VAE,
    pz: Distribution | None,
    minibatch: Minibatch,
    posterior: Posterior,
    density: Posterior,
    noise: Float[Tensor, "samples #cells axes"],
) -> Float[Tensor, "samples cells"]:
    """Return log importance weights at samples of one posterior, with the density of another."""
    output = module.output_at(density, *samples_at(posterior, noise), minibatch)
    return log_importance_weights(output, module.likelihood, minibatch, module.library_prior(minibatch), pz)


def _moved(parts: list[Normal], shifts: list[Tensor], changes: list[Tensor]) -> Posterior:
    normals = [
        Normal(part.loc + part.scale * shift, part.scale * torch.exp(0.5 * change), validate_args=False)
        for part, shift, change in zip(parts, shifts, changes, strict=True)
    ]
    return Posterior(normals[0], normals[1] if len(normals) > 1 else None)
