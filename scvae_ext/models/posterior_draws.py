"""Draws of normalized expression from a trained model, as analyses take them."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from scvae_ext.analysis import PosteriorDraws
from scvae_ext.likelihoods import NegativeBinomialLikelihood, ZeroInflatedNegativeBinomialLikelihood
from scvae_ext.minibatch import Minibatch, SparseCounts
from scvae_ext.models.cells import Cells, shared_noise, target_batches
from scvae_ext.models.other_genes import OtherGenes
from scvae_ext.modules import VAE

__all__ = ["posterior_draws"]


def posterior_draws(
    module: VAE,
    cells: Cells,
    batches: Sequence[int],
    n_samples: int,
    seed: int,
    *,
    independent: bool = False,
    others: OtherGenes | None = None,
) -> Iterator[PosteriorDraws]:
    """Yield draws of expression of each cell; the encoder runs once a cell, the decoder once a draw and batch.

    To be used inside :func:`~scvae_ext.models.cells.evaluating`.

    Parameters
    ----------
    module, cells
        Of what.
    batches
        Batches to average expression over; the observed ones where empty.
    n_samples, seed
        Number of draws of each cell, and their seed.
    independent
        Whether cells get noise of their own, or all the same, which comes in pairs of opposite sign and is none for a
        single draw: the mean of the posterior.
    others
        Genes to add that the model does not have.
    """
    n_latent = module.encoder.mean.out_features
    noise = shared_noise(n_samples, n_latent, seed, cells.device)
    generator = torch.Generator(cells.device).manual_seed(seed)
    n_genes = cells.source.n_genes + (0 if others is None else len(others.names))
    for rows, minibatch in cells.limited(n_samples * n_genes):
        posterior = module.encode(minibatch)
        if independent:
            shape = (n_samples, minibatch.n_cells, n_latent)
            noise = torch.randn(shape, generator=generator, device=cells.device)
        sample = posterior.qz.loc + posterior.qz.scale * noise
        hidden = module.decode_hidden(sample, minibatch)
        fitted = _expression(module, hidden, others)
        expression = fitted
        if batches:
            targets = target_batches(minibatch, batches)
            expression = _expression(module, module.decode_hidden(sample, minibatch, targets[0]), others)
            for target in targets[1:]:
                expression += _expression(module, module.decode_hidden(sample, minibatch, target), others)
            expression /= len(targets)
        library = posterior.log_library
        # The logarithm of its posterior mean.
        log_library = None if library is None else library.loc + 0.5 * library.scale.square()
        depth = module.depth(minibatch, log_library).unsqueeze(-1)
        counts, theta = minibatch.counts, _inverse_dispersion(module, hidden.mean(0), minibatch)
        if others is not None:
            counts = _side_by_side(counts, others.read(cells.positions[rows], cells.device))
            own = fitted.new_full((1, cells.source.n_genes), torch.inf) if theta is None else theta
            theta = torch.cat([own, others.inverse_dispersion.expand(len(own), -1)], dim=-1)
        yield PosteriorDraws(rows, expression, fitted, counts, depth, theta)


def _expression(module: VAE, hidden: Tensor, others: OtherGenes | None) -> Tensor:
    expression: Tensor = module.likelihood.expression(hidden)
    # A mean of log-normalised values may be below zero, and is then none at all, of which there are no ratios.
    expression = expression.clamp_min(torch.finfo(expression.dtype).tiny)
    return expression if others is None else torch.cat([expression, others.head(hidden)], dim=-1)


def _side_by_side(left: SparseCounts, right: SparseCounts) -> SparseCounts:
    """Put the genes of two matrices of the same cells beside each other."""
    cell_index = torch.cat([left.cell_index, right.cell_index])
    order = torch.argsort(cell_index, stable=True)
    return SparseCounts(
        torch.cat([left.values, right.values])[order],
        cell_index[order],
        torch.cat([left.gene_index, right.gene_index + left.n_genes])[order],
        left.n_cells,
        left.n_genes + right.n_genes,
    )


def _inverse_dispersion(module: VAE, hidden: Tensor, minibatch: Minibatch) -> Tensor | None:
    likelihood = module.likelihood
    if isinstance(likelihood, ZeroInflatedNegativeBinomialLikelihood):
        likelihood = likelihood.base
    if not isinstance(likelihood, NegativeBinomialLikelihood):
        return None
    theta: Tensor = likelihood.dispersion(hidden, minibatch.batch, minibatch.label)
    return theta if theta.ndim == 2 else theta.unsqueeze(0)
