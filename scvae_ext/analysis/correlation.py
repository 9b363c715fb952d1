"""Correlation of genes over draws that come some at a time."""

from collections.abc import Callable, Iterable, Iterator
from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["pearson_correlation", "spearman_correlation"]

Chunks: TypeAlias = Iterable[Float[Tensor, "draws genes"]]
# Intervals that ranks are told apart by, where there are more draws than that.
N_INTERVALS = 2048


def pearson_correlation(chunks: Chunks) -> Float[np.ndarray, "genes genes"]:
    r"""Return Pearson's correlation of genes over all draws of all chunks.

    Means and co-moments of chunks are merged exactly (Chan, Golub and LeVeque, 1983), in double precision:
    :math:`C_{ab} = C_a + C_b + \frac{n_a n_b}{n_a + n_b}\,\delta\delta^\top` with the difference :math:`\delta` of
    their means. Memory is that of a chunk and of genes times genes.

    Parameters
    ----------
    chunks
        Draws by genes.

    Returns
    -------
    numpy.ndarray
        Not a number for genes that do not vary.
    """
    n_draws, mean, comoment = 0, torch.zeros(()), torch.zeros(())
    for chunk in chunks:
        if not len(chunk):
            continue
        values = chunk.double()
        n_new, mean_new = len(values), values.mean(0)
        centred = values - mean_new
        delta = mean_new - mean
        weight = n_draws * n_new / (n_draws + n_new)
        comoment = comoment + centred.T @ centred + weight * torch.outer(delta, delta)
        mean = mean + delta * (n_new / (n_draws + n_new))
        n_draws += n_new
    if n_draws < 2:
        raise ValueError(f"A correlation needs two draws at least, and there are {n_draws}.")
    sd = comoment.diagonal().sqrt()
    # Rounding leaves a little variance to a gene that has none.
    sd = torch.where(sd > 1e-7 * mean.abs() * n_draws**0.5, sd, torch.nan)
    result = (comoment / sd / sd.unsqueeze(1)).clamp_(-1, 1)
    result.diagonal().copy_(torch.where(sd.isnan(), torch.nan, 1.0))
    correlation: np.ndarray = result.cpu().numpy()
    return correlation


def spearman_correlation(
    chunks: Callable[[], Chunks], sample: Chunks, n_intervals: int = N_INTERVALS
) -> Float[np.ndarray, "genes genes"]:
    r"""Return Spearman's rank correlation of genes over all draws of all chunks, in two passes over them.

    Ranks need all draws of a gene at once. In their place the first pass counts, for each gene, how many draws lie in
    each of ``n_intervals`` intervals between quantiles of a sample; the second correlates the mean ranks of these
    intervals. Draws within an interval count as ties. With the shares :math:`w` of draws that intervals hold and
    :math:`d^2 = \sum w^3` (about :math:`6 / n^2` for n intervals between values of a sample), that changes a
    correlation by :math:`2 d` at most (Cauchy-Schwarz), and where ranks depend on each other smoothly by no more than
    :math:`2 d^2` and chance, of about :math:`d / \sqrt{n_\text{draws}}`. Where ``sample`` holds all values and
    intervals one value each, the result is exact, ties included. Memory is that of a chunk, of genes times intervals
    and of genes times genes.

    Parameters
    ----------
    chunks
        Function that gives the draws, the same each time it is called.
    sample
        Some of the draws.
    n_intervals
        Number of intervals.
    """
    values = torch.cat(list(sample)).T.contiguous().sort(dim=1).values
    if values.shape[1] > n_intervals:
        at = torch.linspace(0, values.shape[1] - 1, n_intervals, device=values.device).round().long()
        values = values[:, at].contiguous()
    n_genes, n_edges = values.shape
    counts = torch.zeros(n_genes * (n_edges + 1), dtype=torch.float64, device=values.device)
    first = torch.arange(n_genes, device=values.device).unsqueeze(1) * (n_edges + 1)
    for chunk in chunks():
        place = first + _interval(values, chunk)
        counts += torch.bincount(place.flatten(), minlength=len(counts))
    counts = counts.view(n_genes, -1)
    # Mean rank of the draws of an interval; ranks are scaled so that their squares add up without loss.
    rank = (counts.cumsum(1) - 0.5 * counts) / counts.sum(1, keepdim=True) - 0.5

    def ranked() -> Iterator[Tensor]:
        for chunk in chunks():
            yield rank.gather(1, _interval(values, chunk)).T

    return pearson_correlation(ranked())


def _interval(edges: Float[Tensor, "genes edges"], chunk: Float[Tensor, "draws genes"]) -> Int[Tensor, "genes draws"]:
    """Return between which edges each draw lies, the upper one included."""
    return torch.searchsorted(edges, chunk.T.contiguous())
