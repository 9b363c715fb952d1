"""Where cells lie in the latent space."""

from functools import partial
from pathlib import Path

import numpy as np
from anndata import AnnData
from jaxtyping import Float

from scvae_ext.models import inference
from scvae_ext.models.cells import evaluating
from scvae_ext.models.mixins.base import VAEModel
from scvae_ext.models.options import whole_number
from scvae_ext.models.pieces import Pieces
from scvae_ext.models.query import CellSelection

__all__ = ["LatentMixin"]


class LatentMixin(VAEModel):
    """Where cells lie in the latent space."""

    def get_latent_representation(
        self,
        adata: AnnData | None = None,
        indices: CellSelection | None = None,
        give_mean: bool = True,
        mc_samples: int = 100,
        batch_size: int | None = None,
        return_dist: bool = False,
        *,
        n_samples: int | None = None,
        seed: int = 0,
        fill_missing_genes: bool = False,
        key_added: str | None = "X_scvae",
        write_subset: bool = False,
        out: str | Path | None = None,
        overwrite: bool = False,
    ) -> Float[np.ndarray, "*samples cells latent"] | tuple[np.ndarray, np.ndarray] | Path:
        r"""Return where each cell lies in the latent space: the mean of :math:`q(z \mid x)`, or samples.

        Parameters
        ----------
        adata
            AnnData to embed, matched by gene name; the model's own where ``None``.
        indices
            Cells: positions, a boolean mask or names; all where ``None``. The result has their order.
        give_mean
            Whether to return the posterior mean rather than one sample.
        mc_samples
            Samples for the mean on the simplex (``latent_distribution="ln"``); the Gaussian mean needs none.
        batch_size
            Cells encoded at once.
        return_dist
            Whether to return mean and variance of the Gaussian posterior instead; writes nothing.
        n_samples
            Number of samples on a leading axis, with ``give_mean=False``; these are not written. Samples depend on
            ``batch_size`` and on the cells asked for.
        seed
            Seed of samples.
        fill_missing_genes
            Whether genes that ``adata`` lacks count as zero, with a warning, rather than raise.
        key_added
            Key of ``adata.obsm``; ``None`` writes nothing.
        write_subset
            Whether to write also where only some cells were asked for; the others get NaN.
        out
            Path of an AnnData to write instead, ending in ``.h5ad`` or ``.zarr``, some cells at a time: the annotation
            of the cells in ``obs``, the posterior means in ``obsm[key_added]``. ``adata`` is left as it is.
        overwrite
            Whether a file that is there may be replaced.

        Returns
        -------
        numpy.ndarray
            Of shape (cells, n_latent), also in ``adata.obsm[key_added]``, float32; with ``out`` its path.

        Raises
        ------
        RuntimeError
            If the model has not been trained.
        ValueError
            If cells, genes or categories do not fit; the message names them.
        FileExistsError, OSError
            If ``out`` exists, or cannot be written; then nothing is left of it.
        """
        if give_mean and n_samples is not None:
            raise ValueError(f"n_samples={n_samples!r} needs give_mean=False: the mean is one value a cell.")
        if out is None:
            self._require_free("obsm", key_added)
        adata, cells = self._cells(adata, indices, batch_size, fill_missing_genes)
        seed = whole_number("seed", seed, least=0)
        arguments = {"give_mean": give_mean, "mc_samples": mc_samples, "seed": seed}
        if give_mean and not return_dist:
            compute = partial(inference.latent_mean, n_samples=whole_number("mc_samples", mc_samples), seed=seed)
            pieces = Pieces(self.module, cells, compute, self.module.n_latent)
            if out is not None:
                slot = ("obsm", key_added or self.latent_key)
                return self._write_out(out, overwrite, adata, pieces, [], slot, arguments)
            latent = pieces.in_memory()
        elif out is not None:
            raise ValueError("out=... takes the posterior mean alone: leave out give_mean=False and return_dist=True.")
        else:
            with evaluating(self.module):
                if return_dist:
                    return inference.latent_parameters(self.module, cells)
                latent = inference.draw_latent(
                    self.module, cells, whole_number("n_samples", 1 if n_samples is None else n_samples), seed
                )
            if n_samples is not None:
                return latent
            latent = latent[0]
        self._write(adata, "obsm", key_added, latent, cells, write_subset, arguments)
        return latent

    def get_latent_library_size(
        self,
        adata: AnnData | None = None,
        indices: CellSelection | None = None,
        batch_size: int | None = None,
        *,
        fill_missing_genes: bool = False,
    ) -> Float[np.ndarray, "cells"]:
        """Return the posterior mean of each cell's library size in counts, or its observed total.

        Parameters
        ----------
        adata, indices, batch_size, fill_missing_genes
            As for :meth:`get_latent_representation`.
        """
        _, cells = self._cells(adata, indices, batch_size, fill_missing_genes)
        with evaluating(self.module):
            return inference.library_size(self.module, cells)
