"""Intervals of normalized expression: what the posterior says, and a refit on simulated counts that calibrates it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from anndata import AnnData
from jaxtyping import Float, Int
from torch import Tensor

from scvae_ext.analysis import IntervalCalibration, calibrate_intervals
from scvae_ext.data import Registry
from scvae_ext.likelihoods import NormalLikelihood
from scvae_ext.minibatch import Minibatch
from scvae_ext.models.cells import Cells, target_batches
from scvae_ext.models.inference import expected_depth
from scvae_ext.modules import VAE
from scvae_ext.random_state import seeded

__all__ = [
    "Replicate",
    "Targets",
    "expression_interval",
    "in_batches",
    "measured_calibration",
    "refuse_without_counts",
    "simulate_replicate",
]

Targets: TypeAlias = Callable[[Minibatch], Sequence[Minibatch]]
"""Gives the cells in each of the settings that their expression is averaged over."""

ATTEMPTS = 100
# Errors that quantiles are taken of: 32 MB in single precision, and at least so many cells.
MAX_ERRORS = 2**23
FEWEST_CELLS = 200


@dataclass(frozen=True, eq=False)
class Replicate:
    """A model refitted to counts that were simulated from another, whose truth is therefore known.

    Parameters
    ----------
    weights, simulated_from
        Fingerprints of the model and of its cells, from which it was simulated.
    module
        The refitted module.
    cells
        The simulated cells.
    latent
        The states that they were simulated from.
    mean_counts
        Mean simulated count per cell of each gene.
    """

    weights: str
    simulated_from: str
    module: VAE
    cells: Cells
    latent: Float[np.ndarray, "cells latent"]
    mean_counts: Float[np.ndarray, "genes"]

    def on(self, device: torch.device) -> "Replicate":
        """Return it on the device of the model, which may have been moved since; its module is moved, not copied.

        Parameters
        ----------
        device
            The device.
        """
        if self.cells.device == device:
            return self
        self.module.to(device)
        return replace(self, cells=replace(self.cells, device=device))


def in_batches(batches: Sequence[int]) -> Targets:
    """Return what gives cells in each of some batches, or as they were observed where there are none.

    Parameters
    ----------
    batches
        Positions of the batches.
    """

    def targets(minibatch: Minibatch) -> Sequence[Minibatch]:
        changed = target_batches(minibatch, batches)
        return [minibatch if batch is None else replace(minibatch, batch=batch) for batch in changed]

    return targets


def refuse_without_counts(module: VAE) -> None:
    """Raise where cells cannot be simulated, or expression can be exactly zero, so that it has no logarithm.

    Parameters
    ----------
    module
        The module.

    Raises
    ------
    ValueError
        If its likelihood is one of log-normalised values, or there are values beside genes, which are not simulated.
    """
    if module.modalities:
        raise ValueError(
            "This simulates counts of genes and encodes them, and the model encodes "
            f"{module.modalities[0].name} as well: train an SCVAE on the genes for it."
        )
    if isinstance(module.likelihood, NormalLikelihood):
        raise ValueError(
            'This needs a likelihood of counts, gene_likelihood="nb", "zinb" or "poisson": the model has "normal".'
        )


def expression_interval(
    module: VAE,
    cells: Cells,
    targets: Targets,
    genes: Int[np.ndarray, "chosen"] | None,
    depth: float | Literal["latent"],
    calibration: IntervalCalibration,
    level: float,
    shift: Float[np.ndarray, "cells state"] | None = None,
) -> tuple[Float[np.ndarray, "cells chosen"], Float[np.ndarray, "cells chosen"], Float[np.ndarray, "cells chosen"]]:
    """Return lower end, median and upper end of the interval of each cell's expression.

    Parameters
    ----------
    module, cells, targets
        Of what, in which settings.
    genes
        Positions of the genes, or ``None`` for all.
    depth
        Total that a cell's expression is scaled to, or ``"latent"`` for its own library size.
    calibration, level
        How wide.
    shift
        What is added to the state of each cell.
    """
    n_genes = cells.source.n_genes if genes is None else len(genes)
    lower, median, upper = (np.empty((len(cells), n_genes), dtype=np.float32) for _ in range(3))
    columns = None if genes is None else torch.from_numpy(genes).to(cells.device)
    for rows, minibatch, middle, spread in _log_expression(module, cells, targets, columns, shift):
        half = calibration.half_width(spread.cpu().numpy(), level, genes)
        if depth == "latent":
            library = module.encode(minibatch).log_library
            middle += expected_depth(module, minibatch, library).log().unsqueeze(-1)
        else:
            middle += float(np.log(depth))
        centre = middle.cpu().numpy()
        lower[rows], median[rows], upper[rows] = np.exp(centre - half), np.exp(centre), np.exp(centre + half)
    return lower, median, upper


def simulate_replicate(
    module: VAE, cells: Cells, registry: Registry, obs: pd.DataFrame, seed: int
) -> tuple[AnnData, Float[np.ndarray, "cells latent"]]:
    """Draw a latent state from each cell's posterior and counts from the likelihood there.

    A cell that would be left without any count is drawn again.

    Parameters
    ----------
    module, cells
        Of what; all cells of their source, in order.
    registry
        Names of genes and of the columns that are set up again.
    obs
        The columns of these cells.
    seed
        Seed of the draws.

    Returns
    -------
    tuple
        The simulated counts with the columns of ``obs`` that the registry names, and the latent states.

    Raises
    ------
    ValueError
        If a cell gets no counts time and again.
    """
    keys = [registry.batch_key, registry.labels_key, registry.size_factor_key]
    keys += [factor.key for factor in registry.categorical_covariates]
    keys += [quantity.key for quantity in registry.continuous_covariates]
    latent = np.empty((len(cells), module.encoder.mean.out_features), dtype=np.float32)
    counts: list[sp.csr_matrix] = []
    with seeded(seed):  # torch's distributions draw from the default generator alone
        for rows, minibatch in cells:
            posterior = module.encode(minibatch)
            sample = torch.normal(posterior.qz.loc, posterior.qz.scale)
            library = posterior.log_library
            log_library = None if library is None else torch.normal(library.loc, library.scale)
            px = module.decode(sample, minibatch, log_library)
            drawn = px.sample()
            for _ in range(ATTEMPTS):
                empty = drawn.sum(1) == 0
                if not empty.any():
                    break
                drawn[empty] = px.sample()[empty]
            else:
                raise ValueError("The model gives some cells no counts at all: leave cells with few counts out.")
            latent[rows] = sample.cpu().numpy()
            counts.append(sp.csr_matrix(drawn.cpu().numpy()))
    # New cells may lack the column of labels where the model has no use for it.
    columns = obs[list(dict.fromkeys(key for key in keys if key is not None and key in obs))].copy()
    matrix = sp.vstack(counts, format="csr")
    replicate = AnnData(matrix, obs=columns, var=pd.DataFrame(index=list(registry.var_names)))
    if registry.layer is not None:
        replicate.layers[registry.layer] = matrix
    return replicate, latent


def measured_calibration(module: VAE, replicate: Replicate, targets: Targets, seed: int = 0) -> IntervalCalibration:
    """Compare what a refitted model says with the expression that its counts were simulated from.

    Parameters
    ----------
    module
        What they were simulated from.
    replicate
        What was fitted to them.
    targets
        Settings to compare expression in.
    seed
        Seed of the choice of cells, where there are too many.
    """
    n_genes = len(replicate.mean_counts)
    every = replicate.cells
    n_cells = min(len(every), max(FEWEST_CELLS, MAX_ERRORS // n_genes))
    chosen = np.sort(np.random.default_rng(seed).choice(len(every), n_cells, replace=False))
    some = replace(every, positions=every.positions[chosen])
    error, spread = np.empty((n_cells, n_genes), dtype=np.float32), np.empty((n_cells, n_genes), dtype=np.float32)
    for rows, minibatch, middle, sd in _log_expression(replicate.module, some, targets, None):
        state = torch.from_numpy(replicate.latent[chosen[rows]]).to(every.device)
        middle -= _log_mean(module, state, targets(minibatch), None)
        error[rows], spread[rows] = middle.cpu().numpy(), sd.cpu().numpy()
    return calibrate_intervals(error, spread, replicate.mean_counts)


def _log_expression(
    module: VAE,
    cells: Cells,
    targets: Targets,
    columns: Tensor | None,
    shift: Float[np.ndarray, "cells state"] | None = None,
) -> Iterator[tuple[slice, Minibatch, Float[Tensor, "cells chosen"], Float[Tensor, "cells chosen"]]]:
    r"""Yield log expression at the mean of the posterior, and its standard deviation under the posterior.

    The variance is :math:`\sum_d \frac14 (\log\rho(\mu + \sigma_d) - \log\rho(\mu - \sigma_d))^2` over the latent
    dimensions, which needs two decodes for each of them, and no random numbers.
    """
    for rows, minibatch in cells:
        qz, settings = module.encode(minibatch).qz, targets(minibatch)
        centre = qz.loc if shift is None else qz.loc + torch.from_numpy(shift[rows]).to(cells.device)
        middle = _log_mean(module, centre, settings, columns)
        variance = torch.zeros_like(middle)
        for dimension in range(qz.loc.shape[1]):
            step = torch.zeros_like(qz.loc)
            step[:, dimension] = qz.scale[:, dimension]
            above = _log_mean(module, centre + step, settings, columns)
            variance += (above - _log_mean(module, centre - step, settings, columns)).square_().mul_(0.25)
        yield rows, minibatch, middle, variance.sqrt_()


def _log_mean(
    module: VAE, sample: Tensor, settings: Sequence[Minibatch], columns: Tensor | None
) -> Float[Tensor, "cells chosen"]:
    """Return the logarithm of expression, averaged over settings; of what underflows, that of the smallest number."""
    total = module.likelihood.expression(module.decode_hidden(sample, settings[0]))
    for setting in settings[1:]:
        total = total + module.likelihood.expression(module.decode_hidden(sample, setting))
    total = total if columns is None else total[:, columns]
    return (total / len(settings)).clamp_min(torch.finfo(total.dtype).tiny).log()
