"""What all parts of the variational autoencoder of counts have in common."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from anndata import AnnData
from jaxtyping import Float, Int
from typing_extensions import override

from scvae_ext.data import CellSource
from scvae_ext.likelihoods import COUNT_LIKELIHOODS
from scvae_ext.models.base import BaseModel
from scvae_ext.models.cells import Cells
from scvae_ext.models.intervals import Replicate
from scvae_ext.models.own_cells import own_positions
from scvae_ext.models.residual import FactorTest
from scvae_ext.modules import VAE, Trainable, trainable_bound
from scvae_ext.train import TrainingPlan

__all__ = ["VAEModel"]


class VAEModel(BaseModel):
    """A model whose module is a VAE, and what its mixins share."""

    latent_key = "X_scvae"
    module: VAE
    _replicate: Replicate | None = None
    _residual_test: FactorTest | None = None

    @property
    def _residual_rank(self) -> int:
        # Models saved before there were residual factors have no such option.
        return int(self._options.get("residual_rank", 0))

    @override
    def _initialise(self, source: CellSource, train: Int[np.ndarray, "train"]) -> None:
        super()._initialise(source, train)
        self.module.initialise_library(source.library_size[train], source.batch[train])
        if self.module.prior is not None:
            n_components = len(self.module.prior.logits)
            if n_components > len(train):
                raise ValueError(
                    f"n_prior_components={n_components} is more than the {len(train)} training cells: pass fewer."
                )
            chosen = np.random.default_rng(self.seed).choice(train, n_components, replace=False)
            self.module.initialise_prior(source.minibatch(np.sort(chosen)).to(self.device))

    @override
    def _trainable(self, plan: TrainingPlan) -> Trainable:
        if plan.batch_penalty and self.registry.n_batches < 2:
            raise ValueError(
                f"batch_penalty={plan.batch_penalty!r} needs at least two batches, and the model has one: pass "
                "batch_key=... to setup_anndata, or leave batch_penalty at 0."
            )
        if plan.batch_penalty and len(self._own_source().batch.unique()) < 2:
            raise ValueError(
                f"batch_penalty={plan.batch_penalty!r} needs at least two batches, and all cells to train on are of "
                "one: leave it at 0."
            )
        return trainable_bound(self.module, plan.objective, plan.n_samples, plan.free_bits, plan.batch_penalty)

    @override
    def _require_valid(self, source: CellSource) -> None:
        if self._options["gene_likelihood"] in COUNT_LIKELIHOODS:
            source.require_counts(self._options["gene_likelihood"])

    def _own_positions(self, adata: AnnData, cells: Cells, own: CellSource) -> Int[np.ndarray, "chosen"]:
        return own_positions(adata, cells, self.adata, own)

    def _write_columns(
        self,
        adata: AnnData,
        key: str | None,
        columns: Mapping[str, Float[np.ndarray, "cells"]],
        cells: Cells,
        write_subset: bool,
        arguments: Mapping[str, Any],
    ) -> None:
        """Write values of cells into columns of ``obs`` with a common prefix."""
        self._require_free("obs", key, *(f"_{name}" for name in columns))
        for name, values in columns.items():
            of_column = None if key is None else f"{key}_{name}"
            self._write(adata, "obs", of_column, values, cells, write_subset, arguments)
