"""Where what belongs to new batches starts, from what was observed of their cells and what is expected of them."""

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor

from scvae_ext.minibatch import Minibatch, SparseCounts
from scvae_ext.modules.kept_reference import SHIFT_STD, shifts_of_new_batches
from scvae_ext.modules.vae import VAE

__all__ = ["start_new_batches"]


@torch.no_grad()
def start_new_batches(vae: VAE, minibatches: Iterable[Minibatch], n_reference: int) -> None:
    r"""Start what new batches add to the log mean of each gene from counts observed and expected.

    .. math:: \delta_{gs} = \log \frac{\sum_{n \in s} x_{ng} + \sigma^{-2}}{\sum_{n \in s} \mu_{ng} + \sigma^{-2}}

    with the means :math:`\mu` that the decoder expects without them, at the posterior mean of each cell, and the
    standard deviation :math:`\sigma` of their prior: for Poisson counts, the log of the posterior mean under a gamma
    prior of mean one and variance :math:`\sigma^2`. The background of a protein is multiplied by the same ratio. A peak
    starts where the share of its cells, had they all one probability, would be the expected one times that ratio.
    Nothing is done to genes whose values are log-normalised and no counts, nor to what was not measured.

    Parameters
    ----------
    vae
        A VAE after :func:`~scvae_ext.modules.copy_reference`.
    minibatches
        Training cells.
    n_reference
        Number of batches that are not new.
    """
    n_new = vae.covariates.n_batches - n_reference
    shifts = shifts_of_new_batches(vae, n_reference)
    for values, start in shifts:
        values.copy_(start)
    cells, genes, proteins, peaks = (_Totals() for _ in range(4))
    for given in minibatches:
        minibatch = given.to(shifts[0][0].device)
        posterior = vae.encode(minibatch)
        hidden = vae.decode_hidden(posterior.qz.loc, minibatch)
        of_batch = vae.covariates.last_batches(minibatch.batch, n_new).T
        one = torch.ones_like(of_batch[:1].T)
        cells.add(of_batch, one, one)
        if vae.likelihood.for_counts:
            depth = vae.depth(minibatch, None if posterior.log_library is None else posterior.log_library.loc)
            mean = vae.likelihood(hidden, depth, minibatch.batch, minibatch.label).mean
            genes.add(of_batch, minibatch.counts.dense(), mean)
        if vae.proteins is not None and minibatch.proteins is not None:
            measured = vae.proteins.measured[minibatch.batch]
            mean = vae.proteins.decode(hidden, minibatch.batch).mean
            proteins.add(of_batch, minibatch.proteins * measured, mean * measured)
        if vae.accessibility is not None and minibatch.peaks is not None:
            # None is accessible where they were not measured.
            measured = vae.accessibility.measured[minibatch.batch].unsqueeze(-1)
            rate = vae.accessibility.likelihood(hidden, vae.accessibility.depth(minibatch)).exp()
            peaks.add(of_batch, SparseCounts.of_peaks(minibatch.peaks).dense(), -torch.expm1(-rate) * measured)
    if vae.likelihood.for_counts:
        shifts[0][0].add_(genes.log_ratio().T)
    if vae.proteins is not None:
        vae.proteins.likelihood.log_background[n_reference:].add_(proteins.log_ratio())
    if vae.accessibility is not None:
        shifts[1][0].add_(_log_rate_ratio(peaks, cells.observed).T)


class _Totals:
    """Sums over the cells of each new batch of what was observed of features and of what is expected."""

    def __init__(self) -> None:
        self.observed: Tensor = torch.zeros(())
        self.expected: Tensor = torch.zeros(())

    def add(
        self,
        of_batch: Float[Tensor, "new cells"],
        observed: Float[Tensor, "cells features"],
        expected: Float[Tensor, "cells features"],
    ) -> None:
        self.observed = self.observed.to(of_batch.device) + (of_batch @ observed).double()
        self.expected = self.expected.to(of_batch.device) + (of_batch @ expected).double()

    def log_ratio(self) -> Float[Tensor, "new features"]:
        prior_counts = SHIFT_STD**-2
        return ((self.observed + prior_counts) / (self.expected + prior_counts)).log()


def _log_rate_ratio(peaks: _Totals, n_cells: Float[Tensor, "new 1"]) -> Float[Tensor, "new peaks"]:
    """Return the log of the ratio of rates that turn the expected share of accessible cells into the observed one."""
    n_cells = n_cells.clamp_min(1)
    tiny = 0.5 / n_cells
    expected = (peaks.expected / n_cells).clamp_min(1e-9).minimum(1 - tiny)
    observed = (expected * peaks.log_ratio().exp()).minimum(1 - tiny)
    return (torch.log1p(-observed) / torch.log1p(-expected)).log()
