"""How accessible chromatin is."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from anndata import AnnData

from scvae_ext.models.accessibility_inference import accessibility
from scvae_ext.models.mixins.base import VAEModel
from scvae_ext.models.options import whole_number
from scvae_ext.models.pieces import Pieces
from scvae_ext.models.query import CellSelection, select_genes, select_options

__all__ = ["AccessibilityMixin"]


class AccessibilityMixin(VAEModel):
    """How accessible chromatin is."""

    @property
    def peak_names(self) -> list[str]:
        """Names of the peaks, in the order of results."""
        return [] if self.registry.peaks is None else list(self.registry.peaks.names)

    @property
    def accessibility_measured(self) -> pd.Series:
        """For each batch whether accessibility was measured in it."""
        peaks = self.registry.peaks
        assert peaks is not None
        batches = self.registry.batch_categories or ("all cells",)
        return pd.Series(np.array(peaks.measured), index=pd.Index(batches), name="measured")

    def get_accessibility(
        self,
        adata: AnnData | None = None,
        indices: CellSelection | None = None,
        transform_batch: str | Sequence[str] | None = None,
        peak_list: Sequence[str] | None = None,
        n_samples: int = 10,
        batch_size: int | None = None,
        *,
        depth: Literal["mean", "observed"] = "mean",
        seed: int = 0,
        fill_missing_genes: bool = False,
        key_added: str | None = "scvae_accessibility",
        write_subset: bool = False,
        out: str | Path | None = None,
        overwrite: bool = False,
    ) -> pd.DataFrame | Path:
        r"""Return the probability of each peak to be found accessible.

        .. math:: \mathbb E_{q(z \mid x, a)}[1 - e^{-d \lambda_p(z)}]

        Samples are shared between cells as for :meth:`get_normalized_expression`, so that the result is deterministic.
        Cells in whose batch accessibility was not measured get what the batches in which it was would have, by the
        state that their genes say they are in; so they do where it was not measured in any of ``transform_batch``.

        Parameters
        ----------
        adata, indices, batch_size, fill_missing_genes, write_subset
            As for :meth:`get_latent_representation`.
        transform_batch
            Batch to express all cells in, several to average over, or ``None`` for the observed one.
        peak_list
            Peaks to return, in this order; all where ``None``, which is a dense matrix of cells by peaks.
        n_samples, seed
            Samples of the posterior, and their seed.
        depth
            ``"mean"`` for all cells as if they had the mean number of accessible peaks, or ``"observed"``.
        key_added
            Key of ``adata.obsm``, an array with the columns of the result; ``None`` writes nothing.
        out, overwrite
            Path of an AnnData to write instead, some cells at a time, as for :meth:`get_normalized_expression`: the
            probabilities in ``X``, the peaks in ``var_names``.

        Returns
        -------
        pandas.DataFrame
            Of cells by peaks, float32, between 0 and 1; with ``out`` its path.

        Raises
        ------
        RuntimeError, ValueError
            As for :meth:`get_latent_representation`, and if a peak or a batch is unknown.
        """
        if depth not in ("mean", "observed"):
            raise ValueError(f'depth={depth!r} is not known: use "mean" or "observed".')
        if out is None:
            self._require_free("obsm", key_added)
        adata, cells = self._cells(adata, indices, batch_size, fill_missing_genes)
        batch_names = self.registry.batch_categories
        batches = select_options("transform_batch", transform_batch, batch_names, self.registry.batch_key)
        chosen = select_genes(peak_list, self.peak_names, argument="peak_list", what="peak")
        n_samples, seed = whole_number("n_samples", n_samples), whole_number("seed", seed, least=0)
        compute = partial(
            accessibility,
            batches=batches,
            chosen=chosen,
            n_samples=n_samples,
            seed=seed,
            observed_depth=depth == "observed",
        )
        names = self.peak_names if chosen is None else [self.peak_names[peak] for peak in chosen]
        pieces = Pieces(self.module, cells, compute, len(names))
        record = {
            "n_samples": n_samples,
            "seed": seed,
            "depth": depth,
            "transform_batch": [batch_names[batch] for batch in batches] or None,
            "n_peaks": len(names),
        }
        if out is not None:
            return self._write_out(out, overwrite, adata, pieces, names, None, record)
        values = np.asarray(pieces.in_memory())
        self._write(adata, "obsm", key_added, values, cells, write_subset, record)
        return pd.DataFrame(values, index=cells.source.obs_names[cells.positions], columns=names)
