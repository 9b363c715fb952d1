"""What the other genes of a cell say about the expected count of each gene."""

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float, Int
from torch import Tensor

from scvae_ext.diagnostics._optimised_posterior import (
    evaluating_with_gradients,
    noise_of_samples,
    noise_of_steps,
    optimised,
    samples_at,
)
from scvae_ext.distributions import CountDistribution
from scvae_ext.likelihoods import NegativeBinomialLikelihood, ZeroInflatedNegativeBinomialLikelihood
from scvae_ext.minibatch import Minibatch
from scvae_ext.models import SCVAE
from scvae_ext.models.cells import Cells

__all__ = ["GenePredictions", "leave_one_gene_out"]

# A cell may owe all its counts to one gene; without them its depth would be zero.
SMALLEST_DEPTH = 0.5
LARGEST_SHARE = 0.999


@dataclass(frozen=True)
class GenePredictions:
    """Counts, and a Gaussian of the log of each expected count that has not seen that count.

    Parameters
    ----------
    counts
        Cells by genes.
    log_mean, deviation
        Mean and standard deviation of the log of the expected count, inflation included.
    log_theta
        The model's log inverse dispersion, a row a category of cells.
    category
        Of each cell.
    """

    counts: sp.csr_matrix
    log_mean: Float[np.ndarray, "cells genes"]
    deviation: Float[np.ndarray, "cells genes"]
    log_theta: Float[np.ndarray, "categories genes"]
    category: Int[np.ndarray, "cells"]


def leave_one_gene_out(
    model: SCVAE,
    cells: Cells,
    *,
    n_samples: int,
    n_optimisation_steps: int,
    seed: int,
) -> GenePredictions:
    r"""Return the posterior of each log expected count given the cell's other genes.

    Samples :math:`z_k` of the cell's own best Gaussian posterior, as :func:`~scvae_ext.diagnostics.evidence` finds it,
    get the weights :math:`1 / p(x_g \mid z_k)`, which take out what gene g itself said. An observed library size is
    taken without the counts of gene g, too: :math:`m_g = (\ell - x_g)\,\rho_g / (1 - \rho_g)`.

    Parameters
    ----------
    model
        A trained model of counts.
    cells
        The cells.
    n_samples
        Samples of each cell.
    n_optimisation_steps
        Gradient steps for each cell's own posterior.
    seed
        Seed of the samples.
    """
    module = model.module
    of_samples, of_steps = (np.random.default_rng(child) for child in np.random.SeedSequence(seed).spawn(2))
    step_noise = noise_of_steps(module, n_optimisation_steps, of_steps, cells.device)
    log_mean = np.empty((len(cells), cells.source.n_genes), dtype=np.float32)
    deviation = np.empty_like(log_mean)
    category = np.zeros(len(cells), dtype=np.int64)
    log_theta, kind = _dispersion(model)
    with evaluating_with_gradients(module):
        for rows, minibatch in cells:
            noise = noise_of_samples(module, minibatch.n_cells, n_samples, of_samples, cells.device)
            posterior = optimised(module, minibatch, module.encode(minibatch), step_noise)
            latent, log_library = samples_at(posterior, noise)
            px = module.decode(latent, minibatch, log_library)
            assert isinstance(px, CountDistribution)
            mean = px.mean if log_library is not None or minibatch.size_factor is not None else _others(px, minibatch)
            mean, spread = _without_own_gene(mean.log(), px.log_prob_sparse(minibatch.counts))
            log_mean[rows], deviation[rows] = mean.cpu().numpy(), spread.cpu().numpy()
            if kind in ("gene-batch", "gene-label"):
                category[rows] = (minibatch.batch if kind == "gene-batch" else minibatch.label).cpu().numpy()
    return GenePredictions(cells.source.read(cells.positions), log_mean, deviation, log_theta, category)


def _dispersion(model: SCVAE) -> tuple[Float[np.ndarray, "categories genes"], str]:
    """Return the log inverse dispersions, and what they belong to."""
    likelihood = model.module.likelihood
    base = likelihood.base if isinstance(likelihood, ZeroInflatedNegativeBinomialLikelihood) else likelihood
    assert isinstance(base, NegativeBinomialLikelihood)
    values = base.dispersion.log_value.detach().cpu().double().numpy()
    return np.atleast_2d(values), base.dispersion.kind


def _others(px: CountDistribution, minibatch: Minibatch) -> Float[Tensor, "samples cells genes"]:
    """Return expected counts for the depth that the cell has without the gene's own counts."""
    depth = minibatch.library_size.unsqueeze(-1)
    share = (px.mean / depth).clamp_max(LARGEST_SHARE)
    return (depth - minibatch.counts.dense()).clamp_min(SMALLEST_DEPTH) * share / (1 - share)


def _without_own_gene(
    log_mean: Float[Tensor, "samples cells genes"], log_prob: Float[Tensor, "samples cells genes"]
) -> tuple[Float[Tensor, "cells genes"], Float[Tensor, "cells genes"]]:
    """Return mean and standard deviation over samples weighted by one over the probability of the gene's own count."""
    weights = (-log_prob).softmax(0)
    mean = (weights * log_mean).sum(0)
    left = (1 - weights.square().sum(0)).clamp_min(1e-6)
    return mean, ((weights * (log_mean - mean).square()).sum(0) / left).sqrt()
