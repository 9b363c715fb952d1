"""Correlations between genes of the residuals at states that are drawn from the posterior."""

import numpy as np
from jaxtyping import Float, Int

from scvae_ext.diagnostics._models import GeneVAE
from scvae_ext.diagnostics._most_counts import most_counts
from scvae_ext.diagnostics._posterior_states import draw_states
from scvae_ext.diagnostics._quantile_residuals import quantile_residuals
from scvae_ext.models.cells import Cells

__all__ = ["LEAST_CELLS", "LEAST_GENES", "residual_correlation", "testable_genes"]

# Below these the distribution of eigenvalues under independence, which holds for large numbers, is not relied on.
LEAST_CELLS = 50
LEAST_GENES = 2


def testable_genes(cells: Cells, n_genes: int) -> Int[np.ndarray, "chosen"]:
    """Return the positions of the genes with the most counts, ascending.

    Parameters
    ----------
    cells
        The cells.
    n_genes
        How many genes at most; those without counts are left out.

    Raises
    ------
    ValueError
        If cells or genes are too few, or a cell is asked for twice.
    """
    if len(cells) < LEAST_CELLS:
        raise ValueError(
            f"{len(cells)} cells are too few to tell a dependence between genes from chance: pass at least "
            f"{LEAST_CELLS}, for example by indices=..., or train with a larger validation_size."
        )
    if len(np.unique(cells.positions)) < len(cells):
        raise ValueError("Some cells were asked for more than once, which looks like dependence: pass each cell once.")
    chosen = most_counts(cells, n_genes)
    seen = np.zeros(cells.source.n_genes, dtype=bool)
    for _, minibatch in cells:
        seen[minibatch.counts.gene_index.cpu().numpy()] = True
    chosen = np.asarray(chosen[seen[chosen]])
    if len(chosen) < LEAST_GENES:
        raise ValueError(
            f"conditional_independence compares genes, and these cells have counts of {len(chosen)}: at least "
            f"{LEAST_GENES} are needed."
        )
    return chosen


def residual_correlation(
    model: GeneVAE, cells: Cells, chosen: Int[np.ndarray, "genes"], n_samples: int, n_steps: int, seed: int
) -> tuple[Float[np.ndarray, "genes genes"], Float[np.ndarray, "cells"]]:
    """Return the correlations of residuals, and the effective sample size of each cell's state.

    Cells are read in minibatches, so that memory is that of some matrices of genes by genes.

    Parameters
    ----------
    model, cells
        Of what.
    chosen
        Positions of the genes.
    n_samples, n_steps
        Samples of each cell that its state is drawn from, and gradient steps before.
    seed
        Seed of states and of the randomisation.
    """
    of_states, of_uniform = (int(child.generate_state(1)[0]) for child in np.random.SeedSequence(seed).spawn(2))
    rng = np.random.default_rng(of_uniform)
    total, products = np.zeros(len(chosen)), np.zeros((len(chosen), len(chosen)))
    effective = np.empty(len(cells))
    drawn = draw_states(model.module, cells, n_samples=n_samples, n_optimisation_steps=n_steps, seed=of_states)
    for rows, states in drawn:
        uniform = rng.random((states.minibatch.n_cells, cells.source.n_genes))
        residuals = quantile_residuals(model.module, states.px, states.minibatch, uniform)[:, chosen]
        total += residuals.sum(0)
        products += residuals.T @ residuals
        effective[rows] = states.effective_sample_size
    covariance = products - np.outer(total, total / len(cells))
    deviation = np.sqrt(np.diagonal(covariance))
    correlation = covariance / np.outer(deviation, deviation)
    np.fill_diagonal(correlation, 1.0)
    return correlation, effective
