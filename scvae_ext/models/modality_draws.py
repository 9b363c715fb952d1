"""Draws of proteins and of accessible peaks from a trained model, as analyses of groups take them."""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from scvae_ext.analysis import PosteriorDraws
from scvae_ext.minibatch import SparseCounts
from scvae_ext.models.cells import Cells, shared_noise
from scvae_ext.models.protein_inference import weighted_batches
from scvae_ext.modules import VAE

__all__ = ["peak_draws", "protein_draws"]

# Steps to the depth of a cell; three suffice but for cells of nearly all peaks.
N_NEWTON = 6


def protein_draws(
    module: VAE, cells: Cells, batches: Sequence[int], n_samples: int, seed: int, *, per_background: bool
) -> Iterator[PosteriorDraws]:
    r"""Yield draws of the proteins of each cell.

    Counts have the mean :math:`\beta_p (\pi_p + (1 - \pi_p) \alpha_p)`. Of that the background :math:`\beta_p` is the
    depth and the rest the expression, or all of it is the expression.

    Parameters
    ----------
    module, cells, batches, n_samples, seed
        As for :func:`~scvae_ext.models.posterior_draws.posterior_draws`. A protein is decoded with those batches in
        which it was measured, or with all in which it was, where there are none.
    per_background
        Whether expression is in units of background.
    """
    modality = module.proteins
    assert modality is not None
    noise = shared_noise(n_samples, module.encoder.mean.out_features, seed, cells.device)
    for rows, minibatch in cells.limited(n_samples * modality.n_proteins):
        qz = module.encode(minibatch).qz
        sample = qz.loc + qz.scale * noise

        px = modality.decode(module.decode_hidden(sample, minibatch), minibatch.batch)
        # One depth for all draws of a cell; what draws differ by is theirs.
        depth = px.first.mean.mean(0) if per_background else torch.ones_like(px.mean[0])
        mean, variance = px.mean.mean(0), px.variance.mean(0)
        measured = modality.measured[minibatch.batch]
        expression = torch.zeros_like(px.mean)
        for batch, weight in weighted_batches(modality.measured, minibatch, batches):
            own = batch is minibatch.batch
            there = px if own else modality.decode(module.decode_hidden(sample, minibatch, batch), batch)
            expression += weight * (there.mean / there.first.mean if per_background else there.mean)
        assert minibatch.proteins is not None
        yield PosteriorDraws(
            rows,
            expression,
            px.mean / depth,
            SparseCounts.from_dense(minibatch.proteins * measured),
            depth,
            mean.square() / (variance - mean).clamp_min(torch.finfo(mean.dtype).tiny),
            measured,
        )


def peak_draws(
    module: VAE, cells: Cells, batches: Sequence[int], n_samples: int, seed: int
) -> Iterator[PosteriorDraws]:
    r"""Yield draws of the probability of each peak to be found accessible: at the mean depth, and at that of the cell.

    The depth of a cell is the one at which the model expects as many accessible peaks as were found,
    :math:`\sum_p (1 - e^{-d_n \lambda_{np}}) = n_n`. The number of peaks itself, which depth is taken for in training,
    rises less than depth where peaks are found in most cells.

    Parameters
    ----------
    module, cells, batches, n_samples, seed
        As for :func:`protein_draws`; all cells of batches in which accessibility was measured.
    """
    modality = module.accessibility
    assert modality is not None
    noise = shared_noise(n_samples, module.encoder.mean.out_features, seed, cells.device)
    for rows, minibatch in cells.limited(n_samples * modality.n_peaks):
        qz = module.encode(minibatch).qz
        sample = qz.loc + qz.scale * noise

        one = torch.ones_like(minibatch.library_size)

        def log_rate(batch: Tensor) -> Tensor:
            rate: Tensor = modality.likelihood(module.decode_hidden(sample, minibatch, batch), one)  # noqa: B023
            return rate

        observed = log_rate(minibatch.batch)
        assert minibatch.peaks is not None
        fitted = _probability(observed + _matching_log_depth(observed, minibatch.peaks.n_accessible).unsqueeze(-1))
        expression = torch.zeros_like(fitted)
        for batch, weight in weighted_batches(modality.measured.unsqueeze(-1), minibatch, batches):
            expression += weight * _probability(observed if batch is minibatch.batch else log_rate(batch))
        accessible = SparseCounts.of_peaks(minibatch.peaks)
        accessible = accessible.with_values(accessible.values.to(fitted.dtype))
        yield PosteriorDraws(rows, expression, fitted, accessible, one.unsqueeze(-1), None)


def _probability(log_rate: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    return -torch.expm1(-log_rate.exp())


def _matching_log_depth(
    log_rate: Float[Tensor, "samples cells peaks"], n_accessible: Float[Tensor, "cells"]
) -> Float[Tensor, "samples cells"]:
    """Return the log of the factor on the rates of each cell at which its expected number of peaks is the observed."""
    # Neither none nor all of the peaks is the expectation of any depth.
    observed = n_accessible.clamp(0.5, log_rate.shape[-1] - 0.5)
    log_depth = torch.log(observed / _probability(log_rate).sum(-1))
    for _ in range(N_NEWTON):
        rate = (log_rate + log_depth.unsqueeze(-1)).exp()
        probability = -torch.expm1(-rate)
        slope = (rate * (1 - probability)).sum(-1)
        log_depth = log_depth + ((observed - probability.sum(-1)) / slope).clamp(-1.0, 1.0)
    return log_depth
