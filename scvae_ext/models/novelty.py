"""Cells that a model draws with the total of a given one, and how probable they are under it."""

from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from scvae_ext.analysis import AggregatedPosterior, Novelty, rank_among, replicate_test
from scvae_ext.distributions import CountDistribution, sample_multinomial
from scvae_ext.minibatch import Minibatch, SparseCounts
from scvae_ext.models.cells import Cells
from scvae_ext.models.inference import latent_parameters
from scvae_ext.models.subsets import place_among, some_of_each
from scvae_ext.modules import VAE, LabelPrior
from scvae_ext.random_state import seeded

__all__ = ["elbo_of", "novelty_of_cells", "replicate_of", "without_labels"]


def novelty_of_cells(
    module: VAE,
    cells: Cells,
    known: Cells,
    own: Int[np.ndarray, "cells"],
    n_replicates: int,
    n_samples: int,
    num_cells_posterior: int | None,
    bandwidth: float,
    seed: int,
) -> Novelty:
    """Return how improbable cells are, by their counts and by their state.

    Parameters
    ----------
    module, cells
        Of what.
    known
        Cells that the model knows, all of their source; their states are those of replicates.
    own
        Position of each cell among them, where it is left out of the density, -1 where it is none of them.
    n_replicates
        Replicates of each cell.
    n_samples
        Samples of each ELBO.
    num_cells_posterior
        Known cells to go by, drawn at random where there are more; all where ``None``.
    bandwidth
        As for :meth:`~scvae_ext.analysis.AggregatedPosterior.log_density`.
    seed
        Of all draws.
    """
    one_group = np.zeros(len(known), dtype=np.int64)
    chosen = some_of_each(one_group, 1, num_cells_posterior, seed)
    own = place_among(chosen, len(known), own)
    known = replace(known, positions=known.positions[chosen])
    posterior = latent_parameters(module, known)
    mixture = AggregatedPosterior(*posterior, one_group[chosen], 1)
    among = mixture.log_density(*posterior, np.arange(len(known)), bandwidth)[:, 0]
    # Of the cells themselves it is known already; one of another AnnData may lack genes, or be of another batch.
    is_there = (own >= 0) & (cells.source is known.source)
    density = among[own]
    others = np.flatnonzero(~is_there)
    if len(others):
        rest = replace(cells, positions=cells.positions[others])
        density[others] = mixture.log_density(*latent_parameters(module, rest), own[others], bandwidth)[:, 0]
    elbo, log_total, of_replicates, log_totals = _scores(module, cells, known, n_replicates, n_samples, seed)
    expected, z, p = replicate_test(elbo, log_total, of_replicates, log_totals)
    names = cells.source.obs_names[cells.positions]
    # A known cell is ranked among the others.
    n_ranks = np.where(own >= 0, len(among), len(among) + 1)
    latent_p = (rank_among(density, among) * (len(among) + 1) - (own >= 0)) / n_ranks
    return Novelty(elbo, expected, z, p, density, latent_p, names)


def _scores(
    module: VAE, cells: Cells, known: Cells, n_replicates: int, n_samples: int, seed: int
) -> tuple[
    Float[np.ndarray, "cells"],
    Float[np.ndarray, "cells"],
    Float[np.ndarray, "replicates cells"],
    Float[np.ndarray, "replicates cells"],
]:
    """Return the ELBO and the log total of each cell and of its replicates."""
    loc, scale = _states(module, known)
    elbo, log_total = np.empty(len(cells)), np.empty(len(cells))
    of_replicates, log_totals = np.empty((n_replicates, len(cells))), np.empty((n_replicates, len(cells)))
    with seeded(seed):  # torch's distributions draw from the default generator alone
        for rows, minibatch in cells:
            minibatch = without_labels(module, minibatch)
            elbo[rows] = elbo_of(module, minibatch, n_samples)
            log_total[rows] = minibatch.library_size.log().cpu().numpy()
            for replicate in range(n_replicates):
                parent = torch.randint(len(loc), (minibatch.n_cells,), device=loc.device)
                drawn = replicate_of(module, minibatch, torch.normal(loc[parent], scale[parent]))
                of_replicates[replicate, rows] = elbo_of(module, drawn, n_samples)
                log_totals[replicate, rows] = drawn.library_size.log().cpu().numpy()
    return elbo, log_total, of_replicates, log_totals


def _states(module: VAE, known: Cells) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of the posterior of each cell, residual factors included."""
    posteriors = [module.encode(minibatch).qz for _, minibatch in known]
    return torch.cat([qz.loc for qz in posteriors]), torch.cat([qz.scale for qz in posteriors])


def without_labels(module: VAE, minibatch: Minibatch) -> Minibatch:
    """Leave labels out that the model explains: they are those of the cells, and not of the states of replicates.

    Parameters
    ----------
    module, minibatch
        Of what.
    """
    if not isinstance(module.prior, LabelPrior):
        return minibatch
    return replace(minibatch, label=torch.full_like(minibatch.label, module.prior.n_labels))


def replicate_of(module: VAE, minibatch: Minibatch, sample: Tensor) -> Minibatch:
    r"""Draw counts at given states, with total count, batch and covariates of given cells.

    A cell whose library size is :math:`\ell` has Poisson counts of rates :math:`\ell \rho_g u_g`, with :math:`u_g` of
    mean one for what varies besides (gamma variables; zero for additional zeros), and a total T that deviates from
    :math:`\ell` with them. Of the library size no more is known than T. Given T and u, counts are multinomial with
    probabilities in proportion to :math:`\rho_g u_g`; and where any :math:`\log \ell` is as probable as any other, the
    probability of T is the same for all u,

    .. math:: \int \operatorname{Poisson}\Bigl(T \,\Big|\, \ell \sum_g \rho_g u_g\Bigr) \frac{d\ell}{\ell} = \frac1T,

    so that u given T is drawn as it is without. This is exact for Poisson counts, and an approximation as far as the
    log library sizes of cells are all but equal beside the scatter of :math:`\log \sum_g \rho_g u_g`, which falls
    with the number of genes.

    With a size factor the depth is known, and the total free: counts are drawn as the likelihood has them.

    Parameters
    ----------
    module, minibatch
        Of what.
    sample
        State of each cell.
    """
    log_library = None if module.library_encoder is None else minibatch.library_size.log()
    px = module.decode(sample, minibatch, log_library)
    assert isinstance(px, CountDistribution)
    if minibatch.size_factor is None:
        counts = sample_multinomial(minibatch.library_size, _possible_rate(px))
        return replace(minibatch, counts=SparseCounts.from_dense(counts))
    counts = px.sample()
    # A cell without counts has no library size; a single count is the least improbable that has one.
    empty = counts.sum(1) == 0
    counts[empty, minibatch.counts.dense()[empty].argmax(1)] = 1.0
    return replace(minibatch, counts=SparseCounts.from_dense(counts), library_size=counts.sum(1))


def _possible_rate(px: CountDistribution) -> Float[Tensor, "cells genes"]:
    """Draw rates, and put the expected ones in place of those of cells in which nothing is expressed."""
    rate = px.sample_rate()
    silent: Bool[Tensor, cells] = rate.sum(1) == 0
    return torch.where(silent.unsqueeze(1), px.mean, rate) if silent.any() else rate


def elbo_of(module: VAE, minibatch: Minibatch, n_samples: int) -> Float[np.ndarray, "cells"]:
    """Return the ELBO of each cell, in nats.

    Parameters
    ----------
    module, minibatch
        Of what.
    n_samples
        Number of samples of the posterior.
    """
    score: Float[np.ndarray, cells] = module.elbo(minibatch, n_samples).score().mean(0).double().cpu().numpy()
    return score
