"""New cells: latent states from the prior or from chosen cells, library sizes, and counts drawn from the decoder."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from anndata import AnnData
from jaxtyping import Float, Int
from torch import Tensor

from scvae_ext.analysis import LibrarySizes, fit_library_sizes
from scvae_ext.data import Registry
from scvae_ext.minibatch import Minibatch
from scvae_ext.models.cells import Cells
from scvae_ext.models.inference import draw_latent
from scvae_ext.models.intervals import ATTEMPTS
from scvae_ext.models.settings import Setting
from scvae_ext.modules import VAE, LabelPrior
from scvae_ext.random_state import seeded

__all__ = ["Depth", "Drawn", "SourceOfStates", "as_anndata", "draw_cells", "fitted_depth"]

SourceOfStates = Literal["prior", "cells"]


@dataclass(frozen=True)
class Depth:
    """Where library sizes of new cells come from.

    Parameters
    ----------
    kind
        ``"fitted"`` (or the model's own distribution, where it has one), ``"observed"``, those of the cells that
        covariates come from, or ``"given"``.
    fitted
        The fitted distribution.
    given
        A size for each new cell, in counts.
    """

    kind: Literal["fitted", "observed", "given"]
    fitted: LibrarySizes | None = None
    given: Float[np.ndarray, "cells"] | None = None


@dataclass(frozen=True, eq=False)
class Drawn:
    """New cells.

    Parameters
    ----------
    counts
        Their counts.
    latent
        The latent point that each was decoded from.
    depth
        Library size (with size factors, the factor) that each was decoded with.
    batch, label
        Position of each cell's batch and label.
    categorical, continuous
        Position of each cell's categories, and its standardised quantities.
    """

    counts: sp.csr_matrix
    latent: Float[np.ndarray, "cells latent"]
    depth: Float[np.ndarray, "cells"]
    batch: Int[np.ndarray, "cells"]
    label: Int[np.ndarray, "cells"]
    categorical: Int[np.ndarray, "cells categorical"]
    continuous: Float[np.ndarray, "cells continuous"]


def fitted_depth(module: VAE, cells: Cells, seed: int) -> LibrarySizes:
    """Fit a distribution of library sizes to cells, given their batch and a draw from their posterior.

    Parameters
    ----------
    module, cells
        The model and the cells.
    seed
        Seed of the draw and of the fit.
    """
    latent = draw_latent(module, cells, 1, seed)[0]
    source, positions = cells.source, cells.positions
    size, batch = source.library_size.numpy()[positions], source.batch.numpy()[positions]
    return fit_library_sizes(size, latent, batch.astype(np.int64), source.registry.n_batches, seed=seed)


def draw_cells(
    module: VAE, cells: Cells, like: SourceOfStates, setting: Setting | None, depth: Depth, seed: int
) -> Drawn:
    """Draw one new cell for each of the given ones, which lend it covariates, and with ``"cells"`` a latent state.

    A cell that would be left without any count is drawn again, state and all else as they were.

    Parameters
    ----------
    module
        The model.
    cells
        Cells to take covariates from; one may stand there many times.
    like
        ``"prior"`` or ``"cells"``.
    setting
        Covariates to set, after states were drawn.
    depth
        Where library sizes come from.
    seed
        Seed of all draws.

    Raises
    ------
    ValueError
        If a cell gets no counts time and again.
    """
    rng, parts = np.random.default_rng(seed), []
    with seeded(seed):  # torch's distributions draw from the default generator alone
        for rows, minibatch in cells:
            posterior = module.encode(minibatch) if like == "cells" else None
            if posterior is None:
                state = module.sample_prior(minibatch.n_cells)
                minibatch = _labelled(module, minibatch, state)
            else:
                state = torch.normal(posterior.qz.loc, posterior.qz.scale)
            minibatch = minibatch if setting is None else setting.apply(minibatch)
            latent = module.to_latent(state)
            log_library = None
            if depth.kind == "given":
                assert depth.given is not None
                minibatch = _with_library(minibatch, depth.given[rows])
            elif depth.kind == "fitted" and depth.fitted is not None:
                size = depth.fitted.sample(latent.cpu().numpy(), minibatch.batch.cpu().numpy(), rng)
                minibatch = _with_library(minibatch, size)
            elif depth.kind == "fitted":
                # A latent library size has a distribution of its own.
                q_library = module.library_prior(minibatch) if posterior is None else posterior.log_library
                log_library = None if q_library is None else torch.normal(q_library.loc, q_library.scale)
            if log_library is None and module.library_encoder is not None:
                log_library = minibatch.library_size.log()
            counts = _draw_counts(module, state, minibatch, log_library)
            parts.append(
                Drawn(
                    sp.csr_matrix(counts.cpu().numpy()),
                    latent.cpu().numpy(),
                    module.depth(minibatch, log_library).cpu().numpy(),
                    minibatch.batch.cpu().numpy(),
                    minibatch.label.cpu().numpy(),
                    minibatch.categorical_covariates.cpu().numpy(),
                    minibatch.continuous_covariates.cpu().numpy(),
                )
            )
    joined = [np.concatenate([getattr(part, name) for part in parts]) for name in list(vars(parts[0]))[1:]]
    return Drawn(sp.vstack([part.counts for part in parts], format="csr"), *joined)


def as_anndata(drawn: Drawn, registry: Registry, latent_key: str, sources: Mapping[str, Any]) -> AnnData:
    """Put new cells into an AnnData with the columns that the model was set up with.

    Parameters
    ----------
    drawn
        The cells.
    registry
        Names of genes, columns and categories.
    latent_key
        Key of ``obsm`` for the latent points.
    sources
        Further columns of ``obs``.
    """
    columns: dict[str, Any] = {}
    for key, codes, categories in (
        (registry.batch_key, drawn.batch, registry.batch_categories),
        (registry.labels_key, drawn.label, registry.label_categories),
        *(
            (each.key, drawn.categorical[:, i], each.categories)
            for i, each in enumerate(registry.categorical_covariates)
        ),
    ):
        if key is not None:
            columns[key] = pd.Categorical.from_codes(codes, categories=pd.Index(list(categories)))
    for i, quantity in enumerate(registry.continuous_covariates):
        columns[quantity.key] = quantity.mean + quantity.std * drawn.continuous[:, i].astype(np.float64)
    if registry.size_factor_key is not None:
        columns[registry.size_factor_key] = drawn.depth
    else:
        columns["scvae_library_size"] = drawn.depth
    columns |= dict(sources)
    generated = AnnData(
        drawn.counts,
        obs=pd.DataFrame(columns, index=[f"generated_{i}" for i in range(len(drawn.depth))]),
        var=pd.DataFrame(index=list(registry.var_names)),
        obsm={latent_key: drawn.latent},
    )
    if registry.layer is not None:
        generated.layers[registry.layer] = generated.X.copy()
    return generated


def _labelled(module: VAE, minibatch: Minibatch, state: Float[Tensor, "cells state"]) -> Minibatch:
    """Draw labels given states, where the model has them: those of the cells are labels of other states."""
    if not isinstance(module.prior, LabelPrior):
        return minibatch
    probabilities = module.prior.label_log_probs(state[:, : module.n_latent]).exp()
    return replace(minibatch, label=torch.multinomial(probabilities, 1).squeeze(1))


def _with_library(minibatch: Minibatch, size: Float[np.ndarray, "cells"]) -> Minibatch:
    observed = minibatch.library_size
    return replace(minibatch, library_size=torch.from_numpy(size).to(observed.device, observed.dtype))


def _draw_counts(
    module: VAE, state: Tensor, minibatch: Minibatch, log_library: Tensor | None
) -> Float[Tensor, "cells genes"]:
    px, depth = module.decode(state, minibatch, log_library), module.depth(minibatch, log_library)
    counts = module.likelihood.draw_counts(px, depth)
    for _ in range(ATTEMPTS):
        empty = counts.sum(1) == 0
        if not bool(empty.any()):
            return counts
        counts[empty] = module.likelihood.draw_counts(px, depth)[empty]
    raise ValueError(
        f"{int((counts.sum(1) == 0).sum())} of {len(counts)} new cells got no counts in {ATTEMPTS} attempts: pass a "
        "larger library_size."
    )
