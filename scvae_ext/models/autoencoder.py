"""The deterministic autoencoder, the baseline that the probabilistic model is judged by."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from anndata.compat import DaskArray
from jaxtyping import Float
from typing_extensions import override

from scvae_ext.data import CellSource, Registry
from scvae_ext.models.autoencoder_inference import autoencoder_expression, autoencoder_latent
from scvae_ext.models.base import BaseModel
from scvae_ext.models.cells import evaluating
from scvae_ext.models.options import positive_number, reject_unknown
from scvae_ext.models.pieces import Pieces
from scvae_ext.models.query import CellSelection, GeneSelection, select_genes, select_options
from scvae_ext.models.results import expression_slot
from scvae_ext.modules import DeterministicAutoencoder
from scvae_ext.nn.precision import single_precision
from scvae_ext.train import TrainingPlan

__all__ = ["Autoencoder"]


class Autoencoder(BaseModel):
    r"""Autoencoder of log-normalised values with the networks of :class:`SCVAE` and a latent point a cell.

    .. math:: \min_{\phi,\theta}\ \sum_{n,g} \{y_{ng} - g_\theta(f_\phi(x_n), s_n)_g\}^2, \qquad
              y_{ng} = \log(1 + 10^4 x_{ng} / \ell_n)

    It has no prior, no likelihood and no uncertainty, so that there is no ELBO and nothing to sample.

    Parameters
    ----------
    adata
        AnnData that :meth:`setup_anndata` was called on.
    n_hidden, n_latent, n_layers, dropout_rate, seed
        As for :class:`SCVAE`.

    Raises
    ------
    TypeError, ValueError
        If an option is unknown or its value not valid.
    """

    latent_key = "X_autoencoder"
    module: DeterministicAutoencoder

    def __init__(
        self,
        adata: AnnData,
        n_hidden: int = 128,
        n_latent: int = 10,
        n_layers: int = 1,
        dropout_rate: float = 0.1,
        *,
        seed: int = 0,
        **unknown: Any,
    ) -> None:
        reject_unknown(type(self), unknown)
        options = {"n_hidden": n_hidden, "n_latent": n_latent, "n_layers": n_layers, "dropout_rate": dropout_rate}
        super().__init__(adata, options, seed)

    @override
    @single_precision()
    def _make_module(self, registry: Registry, options: Mapping[str, Any]) -> DeterministicAutoencoder:
        return DeterministicAutoencoder(
            registry.n_genes,
            n_batches=registry.n_batches,
            n_categories=registry.n_categories_per_covariate,
            n_continuous=registry.n_continuous_covariates,
            use_size_factor=registry.size_factor_key is not None,
            **options,
        )

    @override
    def _require_valid(self, source: CellSource) -> None:
        """Take any values that alignment lets pass: squared errors need no counts."""

    @override
    def _trainable(self, plan: TrainingPlan) -> DeterministicAutoencoder:
        for name, value, default in (
            ("objective", plan.objective, "elbo"),
            ("n_samples", plan.n_samples, 1),
            ("free_bits", plan.free_bits, 0.0),
            ("batch_penalty", plan.batch_penalty, 0.0),
        ):
            if value != default:
                raise ValueError(f"Autoencoder minimises a squared error, which {name}={value!r} has no meaning for.")
        return self.module

    def get_latent_representation(
        self,
        adata: AnnData | None = None,
        indices: CellSelection | None = None,
        batch_size: int | None = None,
        *,
        fill_missing_genes: bool = False,
        key_added: str | None = "X_autoencoder",
        write_subset: bool = False,
        out: str | Path | None = None,
        overwrite: bool = False,
    ) -> Float[np.ndarray, "cells latent"] | Path:
        """Return the latent point of each cell, also in ``adata.obsm[key_added]``.

        Parameters
        ----------
        adata, indices, batch_size, fill_missing_genes, key_added, write_subset, out, overwrite
            As for :meth:`SCVAE.get_latent_representation`.
        """
        adata, cells = self._cells(adata, indices, batch_size, fill_missing_genes)
        pieces = Pieces(self.module, cells, autoencoder_latent, self.module.latent.out_features)
        if out is not None:
            return self._write_out(out, overwrite, adata, pieces, [], ("obsm", key_added or self.latent_key), {})
        self._require_free("obsm", key_added)
        latent = pieces.in_memory()
        self._write(adata, "obsm", key_added, latent, cells, write_subset, {})
        return latent

    def get_normalized_expression(
        self,
        adata: AnnData | None = None,
        indices: CellSelection | None = None,
        transform_batch: str | Sequence[str] | None = None,
        gene_list: GeneSelection | None = None,
        library_size: float = 1.0,
        batch_size: int | None = None,
        return_numpy: bool = False,
        *,
        fill_missing_genes: bool = False,
        key_added: str | None = "autoencoder_normalized",
        write_subset: bool = False,
        out: str | Path | None = None,
        overwrite: bool = False,
    ) -> pd.DataFrame | Float[np.ndarray, "cells chosen"] | DaskArray | Path:
        """Return reconstructed expression: predictions taken back from the log, none below zero.

        Parameters
        ----------
        adata, indices, transform_batch, gene_list, library_size, batch_size, return_numpy
            As for :meth:`SCVAE.get_normalized_expression`.
        fill_missing_genes, key_added, write_subset, out, overwrite
            As there.
        """
        adata, cells = self._cells(adata, indices, batch_size, fill_missing_genes)
        batches = select_options(
            "transform_batch", transform_batch, self.registry.batch_categories, self.registry.batch_key
        )
        genes = select_genes(gene_list, self.registry.var_names)
        library_size = positive_number("library_size", library_size)
        names = self._gene_names(genes)
        compute = partial(autoencoder_expression, batches=batches, genes=genes, library_size=library_size)
        pieces = Pieces(self.module, cells, compute, len(names))
        arguments = {
            "transform_batch": [self.registry.batch_categories[batch] for batch in batches] or None,
            "gene_list": None if genes is None else names,
            "library_size": library_size,
        }
        if out is not None:
            return self._write_out(out, overwrite, adata, pieces, names, None, arguments)
        self._require_free(expression_slot(adata, names), key_added)
        expression = pieces.dask_array() if pieces.is_lazy else pieces.in_memory()
        self._write_expression(adata, key_added, expression, names, cells, write_subset, arguments)
        if return_numpy or pieces.is_lazy:
            return expression
        return pd.DataFrame(expression, index=cells.source.obs_names[cells.positions], columns=names)

    def get_reconstruction_error(
        self,
        adata: AnnData | None = None,
        indices: CellSelection | None = None,
        batch_size: int | None = None,
        return_mean: bool = True,
        *,
        fill_missing_genes: bool = False,
    ) -> float | Float[np.ndarray, "cells"]:
        """Return the mean squared error of log-normalised values over genes; lower is better.

        Parameters
        ----------
        adata, indices, batch_size, return_mean, fill_missing_genes
            As for :meth:`SCVAE.get_reconstruction_error`.
        """
        _, cells = self._cells(adata, indices, batch_size, fill_missing_genes)
        errors = np.empty(len(cells))
        with evaluating(self.module):
            for rows, minibatch in cells:
                errors[rows] = self.module.objective(minibatch).mse.cpu().numpy()
        return float(errors.mean()) if return_mean else errors
