"""What all parts of the variational autoencoder of counts have in common."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from anndata import AnnData
from jaxtyping import Float, Int

from scvae_ext.models.base import BaseModel
from scvae_ext.models.cells import Cells
from scvae_ext.models.intervals import Replicate
from scvae_ext.models.residual import FactorTest
from scvae_ext.modules import VAE

__all__ = ["VAEModel"]


class VAEModel(BaseModel):
    """A model whose module is a VAE, and what its mixins share."""

    module: VAE
    _replicate: Replicate | None = None
    _residual_test: FactorTest | None = None

    @property
    def _residual_rank(self) -> int:
        # Models saved before there were residual factors have no such option.
        return int(self._options.get("residual_rank", 0))

    def _gene_names(self, genes: Int[np.ndarray, "chosen"] | None) -> list[str]:
        names = self.registry.var_names
        return list(names) if genes is None else [names[gene] for gene in genes]

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
        for name, values in columns.items():
            of_column = None if key is None else f"{key}_{name}"
            self._write(adata, "obs", of_column, values, cells, write_subset, arguments)
