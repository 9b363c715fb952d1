"""What getters of proteins compute, minibatch by minibatch, from a trained module and a source of cells."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from scvae_ext.distributions import Mixture
from scvae_ext.likelihoods import expected_rate_ratio
from scvae_ext.minibatch import Minibatch, SparseCounts
from scvae_ext.models.cells import Cells, shared_noise
from scvae_ext.modules import VAE, ProteinModality
from scvae_ext.random_state import seeded

__all__ = ["foreground_probability", "protein_expression", "protein_samples", "weighted_batches"]


def protein_expression(
    module: VAE,
    cells: Cells,
    batches: Sequence[int],
    n_samples: int,
    seed: int,
    *,
    include_background: bool,
    given_counts: bool,
) -> Float[np.ndarray, "cells proteins"]:
    """Return expected counts of the foreground, or of background and foreground together.

    Parameters
    ----------
    module, cells
        Of what.
    batches
        Batches to decode with, averaged over; the observed ones where empty. A protein is decoded with those among them
        in which it was measured, or with all in which it was, where there are none.
    n_samples, seed
        Samples of the posterior, and their seed.
    include_background
        Whether to add what binds everywhere.
    given_counts
        Whether given the count as well, where it was measured, or given the state alone.
    """
    modality = _proteins_of(module)

    def expected(px: Mixture, minibatch: Minibatch) -> Tensor:
        of_state = px.mean if include_background else (1 - px.first_probability) * px.second.mean
        if not given_counts or minibatch.proteins is None:
            return of_state
        seen = minibatch.proteins
        of_first, of_second = (part.mean * expected_rate_ratio(part, seen) for part in (px.first, px.second))
        second = torch.sigmoid(-px.first_logits_given(SparseCounts.from_dense(seen)))
        of_count = second * of_second + (1 - second) * of_first * include_background
        return torch.where(modality.measured[minibatch.batch], of_count, of_state)

    return _averaged(module, cells, batches, n_samples, seed, expected)


def foreground_probability(
    module: VAE, cells: Cells, batches: Sequence[int], n_samples: int, seed: int, *, given_counts: bool
) -> Float[np.ndarray, "cells proteins"]:
    """Return the probability that the count of a protein is from its foreground.

    Parameters
    ----------
    module, cells, batches, n_samples, seed
        As for :func:`protein_expression`.
    given_counts
        Whether given the count as well, where it was measured, or given the state alone.
    """
    modality = _proteins_of(module)

    def probability(px: Mixture, minibatch: Minibatch) -> Tensor:
        of_state = 1 - px.first_probability
        if not given_counts or minibatch.proteins is None:
            return of_state
        of_count = torch.sigmoid(-px.first_logits_given(SparseCounts.from_dense(minibatch.proteins)))
        return torch.where(modality.measured[minibatch.batch], of_count, of_state)

    return _averaged(module, cells, batches, n_samples, seed, probability)


def protein_samples(
    module: VAE, cells: Cells, n_samples: int, seed: int
) -> Float[np.ndarray, "samples cells proteins"]:
    """Return counts drawn from the posterior predictive distribution, in the batch of each cell.

    Where a protein was not measured in that batch nothing is known of it there, and each draw is in one of the batches
    in which it was measured, by chance.

    Parameters
    ----------
    module, cells, n_samples, seed
        Of what, how many, and their seed.
    """
    modality = _proteins_of(module)
    draws = np.empty((n_samples, len(cells), modality.n_proteins), dtype=np.float32)
    with seeded(seed):  # torch's distributions draw from the default generator alone
        for rows, minibatch in cells:
            qz = module.encode(minibatch).qz
            for of_sample in draws:
                latent = torch.normal(qz.loc, qz.scale)
                chosen = _drawn_batches(modality.measured, minibatch.batch)
                counts = torch.zeros(chosen.shape, device=chosen.device)
                others = torch.unique(chosen[chosen != minibatch.batch.unsqueeze(-1)])
                for batch in (minibatch.batch, *(other.expand_as(minibatch.batch) for other in others)):
                    px = modality.decode(module.decode_hidden(latent, minibatch, batch), batch)
                    counts = torch.where(chosen == batch.unsqueeze(-1), px.sample(), counts)
                of_sample[rows] = counts.cpu().numpy()
    return draws


def _averaged(
    module: VAE,
    cells: Cells,
    batches: Sequence[int],
    n_samples: int,
    seed: int,
    value: Callable[[Mixture, Minibatch], Tensor],
) -> Float[np.ndarray, "cells proteins"]:
    """Average a figure of the distribution of each protein over samples and batches."""
    modality = _proteins_of(module)
    result = np.empty((len(cells), modality.n_proteins), dtype=np.float32)
    noise = shared_noise(n_samples, module.encoder.mean.out_features, seed, cells.device)
    for rows, minibatch in cells:
        qz = module.encode(minibatch).qz
        total = qz.loc.new_zeros(minibatch.n_cells, modality.n_proteins)
        for one in noise:
            sample = qz.loc + qz.scale * one
            for batch, weight in weighted_batches(modality.measured, minibatch, batches):
                px = modality.decode(module.decode_hidden(sample, minibatch, batch), batch)
                total += weight * value(px, minibatch)
        result[rows] = (total / len(noise)).cpu().numpy()
    return result


def weighted_batches(
    measured: Bool[Tensor, "batches features"], minibatch: Minibatch, batches: Sequence[int]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches to decode the cells with, and the weight that each has for each cell and feature.

    Parameters
    ----------
    measured
        For each batch, whether each feature was measured in it.
    minibatch
        The cells.
    batches
        Batches asked for; the observed ones where empty.
    """
    n_batches = len(measured)
    if not batches and bool(measured[minibatch.batch].all()):
        yield minibatch.batch, torch.ones((), device=measured.device)
        return
    if batches:
        wanted = torch.zeros(minibatch.n_cells, n_batches, device=measured.device)
        wanted[:, list(batches)] = 1
    else:
        wanted = torch.nn.functional.one_hot(minibatch.batch, n_batches).float()
    weights = wanted.unsqueeze(-1) * measured
    weights = torch.where(weights.sum(1, keepdim=True) > 0, weights, measured.float())
    weights = weights / weights.sum(1, keepdim=True)
    for batch in range(n_batches):
        if bool(weights[:, batch].any()):
            yield torch.full_like(minibatch.batch, batch), weights[:, batch]


def _drawn_batches(
    measured: Bool[Tensor, "batches proteins"], batch: Int[Tensor, "cells"]
) -> Int[Tensor, "cells proteins"]:
    """Return a batch in which each protein was measured: that of the cell, or one by chance.

    Proteins that were measured in the same batches get the same one in a cell, as if it were a cell of that batch.
    """
    if bool(measured[batch].all()):
        return batch.unsqueeze(-1).expand(-1, measured.shape[1])
    order = torch.rand(len(batch), len(measured), device=batch.device)
    order.scatter_(1, batch.unsqueeze(-1), 1.0)
    return torch.where(measured, order.unsqueeze(-1), -1.0).argmax(1)


def _proteins_of(module: VAE) -> ProteinModality:
    assert module.proteins is not None
    return module.proteins
