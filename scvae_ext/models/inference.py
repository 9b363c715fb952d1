"""What getters compute, minibatch by minibatch, from a trained module and a source of cells."""

import math
from collections.abc import Sequence

import numpy as np
import scipy.sparse as sp
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.distributions import Normal

from scvae_ext.minibatch import Minibatch
from scvae_ext.models.cells import Cells, shared_noise, target_batches
from scvae_ext.modules import VAE
from scvae_ext.random_state import seeded

__all__ = [
    "draw_latent",
    "elbo_terms",
    "expected_depth",
    "latent_mean",
    "latent_parameters",
    "library_size",
    "likelihood_parameters",
    "marginal_log_likelihood",
    "normalized_expression",
    "predictive_samples",
    "residual_factors",
]


def latent_mean(module: VAE, cells: Cells, n_samples: int, seed: int) -> Float[np.ndarray, "cells latent"]:
    """Return the posterior mean of each cell, in closed form for a Gaussian and by samples on the simplex.

    Parameters
    ----------
    module, cells
        Of what.
    n_samples, seed
        For the simplex.
    """
    latent = np.empty((len(cells), module.n_latent), dtype=np.float32)
    noise = shared_noise(n_samples, module.encoder.mean.out_features, seed, cells.device)
    is_gaussian = module.latent_distribution == "normal"
    for rows, minibatch in cells.many_at_once() if is_gaussian else cells:
        qz = module.encode(minibatch).qz
        mean = module.to_latent(qz.loc) if is_gaussian else module.to_latent(_at(qz, noise)).mean(0)
        latent[rows] = mean.cpu().numpy()
    return latent


def residual_factors(
    module: VAE, cells: Cells, places: Sequence[int], n_factors: int
) -> Float[np.ndarray, "cells residual"]:
    """Return the posterior mean of each cell's residual factors, zero for those that the module does without.

    Parameters
    ----------
    module, cells
        Of what.
    places
        Positions among all factors of those that the module has.
    n_factors
        Number of all factors.
    """
    factors = np.zeros((len(cells), n_factors), dtype=np.float32)
    for rows, minibatch in cells:
        factors[rows, places] = module.encode(minibatch).qz.loc[:, module.n_latent :].cpu().numpy()
    return factors


def latent_parameters(module: VAE, cells: Cells) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and variance of the Gaussian posterior of each cell's z, of shape (cells, latent) each.

    Parameters
    ----------
    module, cells
        Of what.
    """
    mean = np.empty((len(cells), module.n_latent), dtype=np.float32)
    variance = np.empty_like(mean)
    for rows, minibatch in cells:
        qz = module.encode(minibatch).qz
        mean[rows] = qz.loc[:, : module.n_latent].cpu().numpy()
        variance[rows] = qz.scale[:, : module.n_latent].square().cpu().numpy()
    return mean, variance


def draw_latent(module: VAE, cells: Cells, n_samples: int, seed: int) -> Float[np.ndarray, "samples cells latent"]:
    """Return independent samples of each cell's posterior.

    Parameters
    ----------
    module, cells, n_samples, seed
        Of what, how many, and their seed.
    """
    generator = torch.Generator(cells.device).manual_seed(seed)
    draws = np.empty((n_samples, len(cells), module.n_latent), dtype=np.float32)
    for rows, minibatch in cells:
        qz = module.encode(minibatch).qz
        noise = torch.randn(n_samples, *qz.loc.shape, generator=generator, device=cells.device)
        draws[:, rows] = module.to_latent(_at(qz, noise)).cpu().numpy()
    return draws


def library_size(module: VAE, cells: Cells) -> Float[np.ndarray, "cells"]:
    """Return the posterior mean of each cell's library size, or the observed one, in counts.

    Parameters
    ----------
    module, cells
        Of what.
    """
    sizes = np.empty(len(cells), dtype=np.float32)
    for rows, minibatch in cells:
        sizes[rows] = _library(minibatch, module.encode(minibatch).log_library).cpu().numpy()
    return sizes


def normalized_expression(
    module: VAE,
    cells: Cells,
    batches: Sequence[int],
    genes: Int[np.ndarray, "chosen"] | None,
    depth: float | str,
    n_samples: int,
    seed: int,
    *,
    average: bool = True,
) -> Float[np.ndarray, "*samples cells chosen"]:
    """Return expected expression of each cell and gene under its posterior.

    The encoder runs once a cell, whatever the number of samples and of batches.

    Parameters
    ----------
    module, cells
        Of what.
    batches
        Batches to decode with, averaged over; the observed ones where empty.
    genes
        Positions of the genes, or ``None`` for all.
    depth
        Total that a cell's expression is scaled to, or ``"latent"`` for its own library size.
    n_samples, seed
        Samples of the posterior; ``average`` takes their mean.
    average
        Whether samples are averaged, or returned on the first axis and then independent between cells.
    """
    n_genes = cells.source.n_genes if genes is None else len(genes)
    shape = (len(cells), n_genes) if average else (n_samples, len(cells), n_genes)
    expression = np.empty(shape, dtype=np.float32)
    n_latent = module.encoder.mean.out_features
    noise = shared_noise(n_samples, n_latent, seed, cells.device)
    generator = torch.Generator(cells.device).manual_seed(seed)
    columns = None if genes is None else torch.from_numpy(genes).to(cells.device)
    on_host = cells.device.type == "cpu"
    for rows, minibatch in cells.many_at_once() if average else cells:
        posterior = module.encode(minibatch)
        targets = target_batches(minibatch, batches)
        scale = (
            expected_depth(module, minibatch, posterior.log_library)
            if depth == "latent"
            else torch.full((minibatch.n_cells,), float(depth), device=cells.device)
        ) / (len(targets) * (n_samples if average else 1))
        if not average:
            shape_of_noise = (n_samples, minibatch.n_cells, n_latent)
            noise = torch.randn(shape_of_noise, generator=generator, device=cells.device)
        results = expression[rows][np.newaxis] if average else expression[:, rows]
        # Sums of samples go to one place, single ones to places of their own.
        parts = [noise] if average else noise.split(1)
        for result, part in zip(map(torch.from_numpy, results), parts, strict=True):
            into = result if on_host else torch.empty_like(result, device=cells.device)
            add = False
            for at_once in part.split(cells.samples_at_once(minibatch.n_cells, len(part))):
                sample = _at(posterior.qz, at_once)
                for target in targets:
                    hidden = module.decode_hidden(sample, minibatch, target)
                    module.mean_head.write_expression(hidden, scale, columns, into, add=add)
                    add = True
            if not on_host:
                result.copy_(into)
    return expression


def elbo_terms(module: VAE, cells: Cells, n_samples: int, seed: int) -> dict[str, Float[np.ndarray, "cells"]]:
    """Return the ELBO of each cell and its terms, averaged over samples, in nats.

    Parameters
    ----------
    module, cells, n_samples, seed
        Of what, from how many samples, and their seed.
    """
    generator = torch.Generator(cells.device).manual_seed(seed)
    result: dict[str, np.ndarray] = {}
    for rows, minibatch in cells:
        for n_at_once in cells.samples_at_once(minibatch.n_cells, n_samples):
            for name, term in module.elbo(minibatch, n_at_once, generator).terms().items():
                values = result.setdefault(name, np.zeros(len(cells)))
                total = term.double().expand(n_at_once, -1).sum(0)
                values[rows] += total.cpu().numpy() / n_samples
    return result


def marginal_log_likelihood(module: VAE, cells: Cells, n_samples: int, seed: int) -> Float[np.ndarray, "cells"]:
    """Return an importance-sampling estimate of each cell's evidence, in nats.

    Parameters
    ----------
    module, cells, n_samples, seed
        Of what, from how many samples, and their seed.
    """
    generator = torch.Generator(cells.device).manual_seed(seed)
    evidence = np.empty(len(cells))
    for rows, minibatch in cells:
        parts = [
            module.log_importance_weights(minibatch, n_at_once, generator)
            for n_at_once in cells.samples_at_once(minibatch.n_cells, n_samples)
        ]
        weights = torch.cat(parts).double()
        evidence[rows] = (weights.logsumexp(0) - math.log(n_samples)).cpu().numpy()
    return evidence


def likelihood_parameters(
    module: VAE, cells: Cells, n_samples: int, seed: int
) -> dict[str, Float[np.ndarray, "cells genes"]]:
    """Return the parameters of the likelihood of each cell and gene, averaged over samples of the posterior.

    Parameters
    ----------
    module, cells, n_samples, seed
        Of what, from how many samples, and their seed.
    """
    noise = shared_noise(n_samples, module.encoder.mean.out_features, seed, cells.device)
    result: dict[str, np.ndarray] = {}
    for rows, minibatch in cells:
        posterior = module.encode(minibatch)
        # State and library size are independent in the posterior: the mean of their product has the mean of either.
        library = posterior.log_library
        log_library = None if library is None else _library(minibatch, library).log()
        for one in noise:
            px = module.decode(_at(posterior.qz, one), minibatch, log_library)
            for name, value in module.likelihood.parameters_by_name(px).items():
                full = value.expand(minibatch.n_cells, cells.source.n_genes)
                array = result.setdefault(name, np.zeros((len(cells), cells.source.n_genes), dtype=np.float32))
                array[rows] += (full / n_samples).cpu().numpy()
    return result


def predictive_samples(
    module: VAE, cells: Cells, genes: Int[np.ndarray, "chosen"] | None, n_samples: int, seed: int
) -> list[sp.csr_matrix]:
    """Return counts drawn from the posterior predictive distribution, a sparse matrix a sample.

    Parameters
    ----------
    module, cells, genes, n_samples, seed
        Of what, how many, and their seed.
    """
    samples: list[list[sp.csr_matrix]] = [[] for _ in range(n_samples)]
    with seeded(seed):  # torch's distributions draw from the default generator alone
        for _, minibatch in cells:
            posterior = module.encode(minibatch)
            for of_sample in samples:
                latent = torch.normal(posterior.qz.loc, posterior.qz.scale)
                q_library = posterior.log_library
                log_library = None if q_library is None else torch.normal(q_library.loc, q_library.scale)
                px = module.decode(latent, minibatch, log_library)
                counts = module.likelihood.draw_counts(px, module.depth(minibatch, log_library))
                counts = counts if genes is None else counts[:, torch.from_numpy(genes)]
                of_sample.append(sp.csr_matrix(counts.cpu().numpy()))
    return [sp.vstack(of_sample, format="csr") for of_sample in samples]


def _at(qz: Normal, noise: Tensor) -> Tensor:
    return qz.loc + qz.scale * noise


def expected_depth(module: VAE, minibatch: Minibatch, log_library: Normal | None) -> Float[Tensor, "cells"]:
    """Return what expression is multiplied with: size factor, or posterior mean of the library size.

    Parameters
    ----------
    module, minibatch
        Of what.
    log_library
        Posterior of the log library size, where it is latent.
    """
    return module.depth(minibatch, None) if log_library is None else _library(minibatch, log_library)


def _library(minibatch: Minibatch, log_library: Normal | None) -> Float[Tensor, "cells"]:
    """Return the mean of the log-normal posterior of the library size, or what was observed."""
    if log_library is None:
        return minibatch.library_size
    return torch.exp(log_library.loc + 0.5 * log_library.scale.square())
