"""Denoised proteins, and whether a cell has a protein at all."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
from anndata import AnnData
from jaxtyping import Float

from scvae_ext.models import protein_inference
from scvae_ext.models.cells import evaluating
from scvae_ext.models.mixins.base import VAEModel
from scvae_ext.models.options import true_or_false, whole_number
from scvae_ext.models.query import CellSelection, select_genes, select_options

__all__ = ["ProteinMixin"]


class ProteinMixin(VAEModel):
    """Denoised proteins, and whether a cell has a protein at all."""

    @property
    def protein_names(self) -> list[str]:
        """Names of the proteins, in the order of results."""
        return [] if self.registry.proteins is None else list(self.registry.proteins.names)

    @property
    def proteins_measured(self) -> pd.DataFrame:
        """For each batch (rows) whether each protein was measured in it."""
        panel = self.registry.proteins
        assert panel is not None
        batches = self.registry.batch_categories or ("all cells",)
        return pd.DataFrame(np.array(panel.measured), index=pd.Index(batches), columns=list(panel.names))

    def get_protein_expression(
        self,
        adata: AnnData | None = None,
        indices: CellSelection | None = None,
        transform_batch: str | Sequence[str] | None = None,
        protein_list: Sequence[str] | None = None,
        n_samples: int = 10,
        batch_size: int | None = None,
        *,
        include_background: bool = False,
        given: Literal["state", "counts"] = "state",
        seed: int = 0,
        fill_missing_genes: bool = False,
        key_added: str | None = "scvae_protein",
        write_subset: bool = False,
    ) -> pd.DataFrame:
        r"""Return denoised counts of proteins, :math:`\mathbb E_{q(z \mid x, y)}[(1 - \pi_p) \alpha_p \beta_p]`.

        What is left out is background :math:`\pi_p \beta_p`, antibody that is there without the protein. Samples are
        shared between cells as for :meth:`get_normalized_expression`, so that the result is deterministic.

        A protein that was not measured in a cell's batch is predicted as the batches in which it was would have it,
        averaged over them; so is one that was not measured in any of ``transform_batch``.

        Parameters
        ----------
        adata, indices, batch_size, fill_missing_genes, write_subset
            As for :meth:`get_latent_representation`.
        transform_batch
            Batch to express all cells in, several to average over, or ``None`` for the observed one.
        protein_list
            Proteins to return, in this order; all where ``None``.
        n_samples, seed
            Samples of the posterior, and their seed.
        include_background
            Whether to return expected counts, :math:`\pi_p \beta_p + (1 - \pi_p) \alpha_p \beta_p`.
        given
            ``"state"`` for what cells in this latent state have, or ``"counts"`` for what this cell has, by its state
            and its own count where that was measured: the foreground by its probability given the count, and the mean
            of each component :math:`\mu` times :math:`(\theta + y) / (\theta + \mu)`, as for
            :meth:`get_normalized_expression`.
        key_added
            Key of ``adata.obsm``, a data frame; ``None`` writes nothing.

        Returns
        -------
        pandas.DataFrame
            Of cells by proteins, float32, in counts; also in ``adata.obsm[key_added]``.

        Raises
        ------
        RuntimeError, ValueError
            As for :meth:`get_latent_representation`, and if a protein or a batch is unknown.
        """
        arguments = {
            "include_background": true_or_false("include_background", include_background),
            "given_counts": _is_given_counts(given, transform_batch),
        }
        return self._of_proteins(
            protein_inference.protein_expression,
            arguments,
            (adata, indices, batch_size, fill_missing_genes),
            transform_batch,
            protein_list,
            n_samples,
            seed,
            key_added,
            write_subset,
        )

    def get_protein_foreground_probability(
        self,
        adata: AnnData | None = None,
        indices: CellSelection | None = None,
        transform_batch: str | Sequence[str] | None = None,
        protein_list: Sequence[str] | None = None,
        n_samples: int = 10,
        batch_size: int | None = None,
        *,
        given: Literal["state", "counts"] = "counts",
        seed: int = 0,
        fill_missing_genes: bool = False,
        key_added: str | None = "scvae_protein_foreground",
        write_subset: bool = False,
    ) -> pd.DataFrame:
        r"""Return the probability that what was counted of a protein is not background alone.

        Given counts it is

        .. math:: \mathbb E_{q(z \mid x, y)}\left[\frac{(1 - \pi_p)\, p_f(y_p)}{\pi_p\, p_b(y_p) + (1 - \pi_p)\,
                  p_f(y_p)}\right]

        with background :math:`p_b` and foreground :math:`p_f`; given the state :math:`\mathbb E[1 - \pi_p]`.

        Parameters
        ----------
        adata, indices, batch_size, fill_missing_genes, write_subset
            As for :meth:`get_latent_representation`.
        transform_batch, protein_list, n_samples, seed
            As for :meth:`get_protein_expression`.
        given
            ``"counts"`` for this cell, by its state and its count of the protein where that was measured, or
            ``"state"`` for cells in this latent state, as totalVI has it.
        key_added
            Key of ``adata.obsm``, a data frame; ``None`` writes nothing.

        Returns
        -------
        pandas.DataFrame
            Of cells by proteins, float32; also in ``adata.obsm[key_added]``.

        Raises
        ------
        RuntimeError, ValueError
            As for :meth:`get_protein_expression`.
        """
        return self._of_proteins(
            protein_inference.foreground_probability,
            {"given_counts": _is_given_counts(given, transform_batch)},
            (adata, indices, batch_size, fill_missing_genes),
            transform_batch,
            protein_list,
            n_samples,
            seed,
            key_added,
            write_subset,
        )

    def posterior_predictive_proteins(
        self,
        adata: AnnData | None = None,
        indices: CellSelection | None = None,
        n_samples: int = 1,
        batch_size: int | None = None,
        *,
        seed: int = 0,
        fill_missing_genes: bool = False,
    ) -> Float[np.ndarray, "samples cells proteins"]:
        r"""Return counts of proteins drawn from :math:`\int p(y' \mid z)\,q(z \mid x, y)\,dz`, background included.

        Each cell is in its own batch. A protein that was not measured there is drawn as in one of the batches in which
        it was, chosen anew for each draw, so that its mean is that of :meth:`get_protein_expression`.

        Parameters
        ----------
        adata, indices, batch_size, fill_missing_genes
            As for :meth:`get_latent_representation`.
        n_samples, seed
            Number of draws of each cell, and their seed.

        Returns
        -------
        numpy.ndarray
            Whole numbers in float32, of shape (n_samples, cells, proteins), in the order of :attr:`protein_names`.
        """
        _, cells = self._cells(adata, indices, batch_size, fill_missing_genes)
        with evaluating(self.module):
            n_samples = whole_number("n_samples", n_samples)
            return protein_inference.protein_samples(self.module, cells, n_samples, whole_number("seed", seed, least=0))

    def _of_proteins(
        self,
        compute: Callable[..., Float[np.ndarray, "cells proteins"]],
        arguments: dict[str, Any],
        asked: tuple[AnnData | None, CellSelection | None, int | None, bool],
        transform_batch: str | Sequence[str] | None,
        protein_list: Sequence[str] | None,
        n_samples: int,
        seed: int,
        key: str | None,
        write_subset: bool,
    ) -> pd.DataFrame:
        """Compute a figure of proteins, write it, and return it as a data frame."""
        self._require_free("obsm", key)
        adata, cells = self._cells(*asked)
        batch_names = self.registry.batch_categories
        batches = select_options("transform_batch", transform_batch, batch_names, self.registry.batch_key)
        chosen = select_genes(protein_list, self.protein_names, argument="protein_list", what="protein")
        proteins = np.arange(len(self.protein_names)) if chosen is None else chosen
        numbers = {"n_samples": whole_number("n_samples", n_samples), "seed": whole_number("seed", seed, least=0)}
        with evaluating(self.module):
            values = compute(self.module, cells, batches, **numbers, **arguments)[:, proteins]
        names = [self.protein_names[protein] for protein in proteins]
        record = {**arguments, **numbers, "transform_batch": [batch_names[batch] for batch in batches] or None}
        self._write(adata, "obsm", key, values, cells, write_subset, record, names)
        return pd.DataFrame(values, index=cells.source.obs_names[cells.positions], columns=names)


def _is_given_counts(given: str, transform_batch: object) -> bool:
    """Check what a figure is conditional on."""
    if given not in ("state", "counts"):
        raise ValueError(f'given={given!r} is not known: use "counts" or "state".')
    if given == "counts" and transform_batch is not None:
        raise ValueError(
            f"transform_batch={transform_batch!r} asks for another batch than the one in which proteins were counted: "
            'leave it out, or pass given="state".'
        )
    return given == "counts"
