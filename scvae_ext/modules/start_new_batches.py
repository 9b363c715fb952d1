"""Where what belongs to new batches starts, from what was observed of their cells and what is expected of them."""

from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from scvae_ext.minibatch import Minibatch, SparseCounts
from scvae_ext.modules.kept_reference import SHIFT_STD, shifts_of_batches
from scvae_ext.modules.vae import VAE
from scvae_ext.types import CellIndices

__all__ = ["start_new_batches"]


@torch.no_grad()
def start_new_batches(
    vae: VAE,
    cells: Iterable[tuple[Minibatch, CellIndices]],
    batches: Sequence[int],
    n_reference: int,
    n_groups: int = 1,
) -> None:
    r"""Start what new batches add to the log mean of each gene from counts observed and expected.

    .. math:: \delta_{gs} = \log \frac{\sum_{n \in s} x_{ng} + \sigma^{-2}}{\sum_{n \in s} \mu_{ng} + \sigma^{-2}}

    with the means :math:`\mu` that the decoder expects without them, at the posterior mean of each cell, and the
    standard deviation :math:`\sigma` of their prior: for Poisson counts, the log of the posterior mean under a gamma
    prior of mean one and variance :math:`\sigma^2`. The background of a protein is multiplied by the same ratio. A peak
    starts where the share of its cells, had they all one probability, would be the expected one times that ratio.
    Nothing is done to genes whose values are log-normalised and no counts, nor to what was not measured.

    With several groups of cells, the log ratio is the median over groups, weighted by expected counts: it is that of
    most cells, and not of a group that has what the others lack.

    Parameters
    ----------
    vae
        A VAE after :func:`~scvae_ext.modules.copy_reference`.
    cells
        Training cells, each minibatch with the group of its cells.
    batches
        The new batches to start.
    n_reference
        Number of batches that are not new.
    n_groups
        Number of groups.
    """
    shifts = shifts_of_batches(vae, batches, n_reference)
    for each in shifts:
        each.set(each.start)
    if vae.proteins is not None:
        # As it was copied, whatever an earlier start has made of it.
        background = vae.proteins.likelihood.log_background
        background[list(batches)] = background[:n_reference].mean(0)
    device = shifts[0].weight.device
    wanted = torch.tensor(list(batches), device=device)
    n_cells, genes, proteins, peaks = (_Totals(n_groups) for _ in range(4))
    for given, group in cells:
        minibatch = given.to(device)
        posterior = vae.encode(minibatch)
        hidden = vae.decode_hidden(posterior.qz.loc, minibatch)
        code = (minibatch.batch == wanted.unsqueeze(1)).long().argmax(0) * n_groups + group.to(device)
        rows = torch.nn.functional.one_hot(code, len(wanted) * n_groups).T * torch.isin(minibatch.batch, wanted)
        rows = rows.to(hidden.dtype)
        one = torch.ones_like(rows[:1].T)
        n_cells.add(rows, one, one)
        if vae.likelihood.for_counts:
            depth = vae.depth(minibatch, None if posterior.log_library is None else posterior.log_library.loc)
            mean = vae.likelihood(hidden, depth, minibatch.batch, minibatch.label).mean
            genes.add(rows, minibatch.counts.dense(), mean)
        if vae.proteins is not None and minibatch.proteins is not None:
            measured = vae.proteins.measured[minibatch.batch]
            mean = vae.proteins.decode(hidden, minibatch.batch).mean
            proteins.add(rows, minibatch.proteins * measured, mean * measured)
        if vae.accessibility is not None and minibatch.peaks is not None:
            # None is accessible where they were not measured.
            measured = vae.accessibility.measured[minibatch.batch].unsqueeze(-1)
            rate = vae.accessibility.likelihood(hidden, vae.accessibility.depth(minibatch)).exp()
            peaks.add(rows, SparseCounts.of_peaks(minibatch.peaks).dense(), -torch.expm1(-rate) * measured)
    if vae.likelihood.for_counts:
        shifts[0].set(shifts[0].start + genes.log_ratio().T)
    if vae.proteins is not None:
        background = vae.proteins.likelihood.log_background
        background[wanted] += proteins.log_ratio().to(background.dtype)
    if vae.accessibility is not None:
        shifts[1].set(shifts[1].start + _log_rate_ratio(peaks, n_cells.of_batches()[0]).T)


class _Totals:
    """Sums over the cells of each batch and group of what was observed of features and of what is expected."""

    def __init__(self, n_groups: int) -> None:
        self.n_groups = n_groups
        self.observed: Tensor = torch.zeros(())
        self.expected: Tensor = torch.zeros(())

    def add(
        self,
        rows: Float[Tensor, "rows cells"],
        observed: Float[Tensor, "cells features"],
        expected: Float[Tensor, "cells features"],
    ) -> None:
        self.observed = self.observed.to(rows.device) + (rows @ observed).double()
        self.expected = self.expected.to(rows.device) + (rows @ expected).double()

    def of_batches(self) -> tuple[Float[Tensor, "new features"], Float[Tensor, "new features"]]:
        observed, expected = (
            total.unflatten(0, (-1, self.n_groups)).sum(1) for total in (self.observed, self.expected)
        )
        return observed, expected

    def log_ratio(self) -> Float[Tensor, "new features"]:
        prior_counts = SHIFT_STD**-2
        observed, expected = self.of_batches()
        if self.n_groups == 1:
            return ((observed + prior_counts) / (expected + prior_counts)).log()
        by_group = ((self.observed + 1) / (self.expected + 1)).log().unflatten(0, (-1, self.n_groups))
        median = _weighted_median(by_group, self.expected.unflatten(0, (-1, self.n_groups)))
        return median * expected / (expected + prior_counts)


def _weighted_median(
    values: Float[Tensor, "new groups features"], weights: Float[Tensor, "new groups features"]
) -> Float[Tensor, "new features"]:
    order = values.argsort(1)
    ranked, share = values.gather(1, order), weights.gather(1, order).cumsum(1)
    first: Int[Tensor, "new 1 features"] = (share >= share[:, -1:] / 2).long().argmax(1, keepdim=True)
    return ranked.gather(1, first).squeeze(1)


def _log_rate_ratio(peaks: _Totals, n_cells: Float[Tensor, "new 1"]) -> Float[Tensor, "new peaks"]:
    """Return the log of the ratio of rates that turn the expected share of accessible cells into the observed one."""
    n_cells = n_cells.clamp_min(1)
    most = 1 - 0.5 / n_cells
    expected = (peaks.of_batches()[1] / n_cells).clamp_min(1e-9).minimum(most)
    observed = (expected * peaks.log_ratio().exp()).minimum(most)
    return (torch.log1p(-observed) / torch.log1p(-expected)).log()
