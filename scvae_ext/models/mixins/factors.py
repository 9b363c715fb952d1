"""Getters of what is linear in a model: residual factors, and loadings of a linear decoder."""

from functools import partial

import numpy as np
import pandas as pd
from anndata import AnnData
from jaxtyping import Float
from torch import Tensor

from scvae_ext.models import inference
from scvae_ext.models.mixins.base import VAEModel
from scvae_ext.models.pieces import Pieces
from scvae_ext.models.query import CellSelection
from scvae_ext.models.results import write_gene_result

__all__ = ["FactorsMixin"]


class FactorsMixin(VAEModel):
    """Residual factors and their test, and loadings."""

    def get_residual_factors(
        self,
        adata: AnnData | None = None,
        indices: CellSelection | None = None,
        batch_size: int | None = None,
        *,
        fill_missing_genes: bool = False,
        key_added: str | None = "X_scvae_residual",
        write_subset: bool = False,
    ) -> Float[np.ndarray, "cells residual"]:
        """Return the posterior mean of each cell's residual factors u, also in ``adata.obsm[key_added]``.

        Parameters
        ----------
        adata, indices, batch_size, fill_missing_genes, write_subset
            As for :meth:`get_latent_representation`.
        key_added
            Key of ``adata.obsm``; ``None`` writes nothing.

        Returns
        -------
        numpy.ndarray
            Of shape (cells, residual_rank), float32; zero, the mean of the prior, for a factor that is not active.

        Raises
        ------
        RuntimeError
            If the model has not been trained.
        ValueError
            If it has no residual factors, or as for :meth:`get_latent_representation`.
        """
        self._require_free("obsm", key_added)
        adata, cells = self._cells(adata, indices, batch_size, fill_missing_genes)
        self._require_residual()
        compute = partial(inference.residual_factors, places=self._active_factors, n_factors=self._residual_rank)
        factors = Pieces(self.module, cells, compute, self._residual_rank).in_memory()
        self._write(adata, "obsm", key_added, factors, cells, write_subset, {})
        return factors

    def get_residual_loadings(self, *, key_added: str | None = "scvae_residual_loadings") -> pd.DataFrame:
        """Return by how much each residual factor moves the log mean of each gene, in nats a standard deviation.

        Where expression sums to one over the genes of a cell, only differences between genes matter, and the mean of
        each factor over genes is taken off. Factors come in no order, and their signs are free. Weight decay shrinks
        loadings, and the spread of the factors makes up for it in part: compare genes within a factor, not magnitudes.

        Parameters
        ----------
        key_added
            Key of ``varm`` of the model's AnnData, where it has one; ``None`` writes nothing.

        Returns
        -------
        pandas.DataFrame
            Of genes by residual factors, float32; also in ``adata.varm[key_added]``, as an array. Zero for a factor
            that is not active.

        Raises
        ------
        RuntimeError
            If the model has not been trained.
        ValueError
            If it has no residual factors.
        """
        self._require_trained()
        self._require_residual()
        active = self.module.residual_loadings
        loadings = active.new_zeros(len(active), self._residual_rank)
        loadings[:, self._active_factors] = active
        return self._write_loadings(loadings, "residual", key_added)

    @property
    def residual_factor_test(self) -> pd.DataFrame:
        r"""What held-out cells say about each residual factor, and which are active.

        A row for each factor: ``gain``, what the evidence of a cell loses without it, in nats, with its
        ``standard_error`` over cells, and ``active``, whether it was kept, which it is where the gain is above two
        standard errors. The row ``"together"`` has the gain of all such factors over the model that was trained without
        any, which has to be above two standard errors as well; it is missing where no factor has a gain of its own.
        Evidence is estimated from 50 samples of the encoder's posterior for each of the validation cells, of which
        2,000 are drawn where there are more. A factor that is not active has no loadings and no place in the posterior:
        it costs nothing. Where no cells were held out, all are active, and gains are missing.

        Raises
        ------
        RuntimeError
            If the model has not been trained, or training was interrupted before factors were added.
        ValueError
            If it was built without residual factors, or saved before they were tested.
        """
        self._require_trained()
        self._require_residual()
        if self._residual_test is None:
            if self.module.residual_rank:
                raise ValueError(
                    "The model was saved by a version that did not test residual factors: all of them are active."
                )
            raise RuntimeError("Training was interrupted before residual factors were added: call model.train() again.")
        return self._residual_test.to_frame()

    @property
    def _active_factors(self) -> list[int]:
        if self._residual_test is None:
            return list(range(self.module.residual_rank))
        return [factor for factor, is_active in enumerate(self._residual_test.active) if is_active]

    def get_loadings(self, *, key_added: str | None = "scvae_loadings") -> pd.DataFrame:
        r"""Return by how much each latent dimension moves the log mean of each gene, in nats a unit of z.

        .. math:: \log \rho_g(z, s) = b_g + \sum_d W_{gd} z_d + \dots - \log \sum_{g'} e^{\dots}

        W is identified up to a constant a dimension, since expression sums to one: the mean over genes is taken off
        (not for ``"normal"``, where W moves the log-normalised value, nor with size factors, where expression is
        softplus of the logit and moves like its logarithm for small rates alone). Dimensions come in no order, with
        free signs; their span is what data determine best. With ``latent_distribution="ln"`` z is the point of the
        simplex, so that only differences between dimensions matter. Source: Svensson et al., Bioinformatics 36, 3418
        (2020).

        Parameters
        ----------
        key_added
            Key of ``varm`` of the model's AnnData, where it has one; ``None`` writes nothing.

        Returns
        -------
        pandas.DataFrame
            Of genes by latent dimensions (``Z_0``, ...), float32; also in ``adata.varm[key_added]``, as an array.

        Raises
        ------
        RuntimeError
            If the model has not been trained.
        ValueError
            If its decoder is not linear.
        """
        self._require_trained()
        loadings = self.module.loadings
        if loadings is None:
            raise ValueError(
                'get_loadings needs a linear decoder, and this model has none: build an SCVAE with decoder="linear", '
                "and train it."
            )
        return self._write_loadings(loadings, "Z", key_added)

    def _write_loadings(self, loadings: Float[Tensor, "genes factors"], prefix: str, key: str | None) -> pd.DataFrame:
        """Return loadings as a data frame, centred where only differences between genes matter, and write them."""
        values = loadings.detach().float().cpu().numpy()
        if self.registry.size_factor_key is None and self._options["gene_likelihood"] != "normal":
            values = values - values.mean(axis=0)
        names = pd.Index(self.registry.var_names)
        frame = pd.DataFrame(values, index=names, columns=[f"{prefix}_{i}" for i in range(values.shape[1])])
        if key is not None and self._adata is not None:
            write_gene_result(self._adata, key, frame, self._provenance({}))
        return frame

    def _require_residual(self) -> None:
        if not self._residual_rank:
            raise ValueError(
                "The model has no residual factors: build an SCVAE with residual_rank=1 or more, and train it."
            )
