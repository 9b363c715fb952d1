"""Denoised expression, its intervals, the parameters of the likelihood, and correlations of genes."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from anndata import AnnData
from anndata.compat import DaskArray
from jaxtyping import Float

from scvae_ext.analysis import ExpressionInterval, interval_level
from scvae_ext.models import inference
from scvae_ext.models.cells import evaluating
from scvae_ext.models.correlation import CorrelationType, gene_correlation
from scvae_ext.models.given_counts import expression_given_counts
from scvae_ext.models.intervals import expression_interval, in_batches, measured_calibration
from scvae_ext.models.mixins.intervals import ENDS, IntervalMixin
from scvae_ext.models.options import positive_number, true_or_false, whole_number
from scvae_ext.models.pieces import Compute, Pieces
from scvae_ext.models.query import CellSelection, GeneSelection, select_genes, select_options
from scvae_ext.models.results import expression_slot, write_gene_pairs

__all__ = ["ExpressionMixin"]


class ExpressionMixin(IntervalMixin):
    """Denoised expression, its intervals, the parameters of the likelihood, and correlations of genes."""

    def get_normalized_expression(
        self,
        adata: AnnData | None = None,
        indices: CellSelection | None = None,
        transform_batch: str | Sequence[str] | None = None,
        gene_list: GeneSelection | None = None,
        library_size: float | Literal["latent"] = 1.0,
        n_samples: int = 10,
        batch_size: int | None = None,
        return_mean: bool = True,
        return_numpy: bool = False,
        *,
        given: Literal["state", "counts"] = "state",
        interval: float | None = None,
        seed: int = 0,
        fill_missing_genes: bool = False,
        key_added: str | None = "scvae_normalized",
        write_subset: bool = False,
        out: str | Path | None = None,
        overwrite: bool = False,
    ) -> pd.DataFrame | ExpressionInterval | Float[np.ndarray, "*samples cells chosen"] | DaskArray | Path:
        r"""Return denoised expression, the posterior mean :math:`\ell\,\mathbb E_{q(z \mid x)}[\rho_g(z, s)]`.

        The expectation is over ``n_samples`` draws of standard normal noise, in pairs of opposite sign and the same for
        all cells, so that the result is deterministic and does not depend on the order or the selection of cells. A
        single draw, and the odd one of an odd number, is zero: the mean of the posterior.

        Parameters
        ----------
        adata, indices, batch_size, fill_missing_genes, write_subset
            As for :meth:`get_latent_representation`.
        transform_batch
            Batch to express all cells in, several to average over, or ``None`` for the observed one.
        gene_list
            Genes to return, in this order; all where ``None``. Their values are those that they have among all genes.
        library_size
            What the values of a cell sum to over all genes, or ``"latent"`` for the cell's own library size in counts.
            With size factors the values are rates times this number, or times the size factor, and their sum is free.
        n_samples, seed
            Samples of the posterior, and their seed.
        return_mean
            Whether samples are averaged, or returned on a leading axis. The latter are independent draws for each cell,
            which depend on ``batch_size`` and on the cells asked for, and are not written.
        return_numpy
            Whether to return an array rather than a data frame of cells by genes.
        given
            ``"state"`` for what cells in this latent state express, or ``"counts"`` for what this cell does, by its
            state and its own counts: :math:`\mathbb E[\rho_g(z) u_g \mid x]` with :math:`u_g` what makes counts
            overdispersed, :math:`u_g \sim \operatorname{Gamma}(\theta_g, \theta_g)`, so that
            :math:`\mathbb E[u_g \mid x, z] = (\theta_g + x_g) / (\theta_g + \ell \rho_g)`, scaled to the same sum (as
            SAVER does; Huang et al., Nature Methods 15, 539 (2018)). It is closer to the cell, and keeps more of its
            noise; u is carried over to other batches.
        interval
            Level of intervals to return instead, 0.9 for 90 %, as wide as :meth:`calibrate_intervals` finds they must
            be: the first call after a training trains a second model. They need neither samples nor a seed.
        key_added
            Key of ``adata.layers``, or of ``adata.obsm`` (a data frame) where only some genes are asked for; ``None``
            writes nothing. Intervals go to three of them, with ``_lower``, ``_median`` and ``_upper`` appended.
        out, overwrite
            As for :meth:`get_latent_representation`; the values are in ``X``, which
            ``anndata.read_h5ad(out, backed="r")`` leaves on disk.

        Returns
        -------
        pandas.DataFrame or numpy.ndarray
            Of shape (cells, genes), float32; also in ``adata.layers[key_added]``. For a lazy AnnData, whose counts are
            a Dask array, a Dask array that computes when it is asked to. With ``out`` its path. With ``interval`` an
            :class:`~scvae_ext.analysis.ExpressionInterval` of three such arrays, in memory.

        Raises
        ------
        RuntimeError, ValueError, FileExistsError, OSError
            As for :meth:`get_latent_representation`.
        """
        adata, cells = self._cells(adata, indices, batch_size, fill_missing_genes)
        batches = select_options(
            "transform_batch", transform_batch, self.registry.batch_categories, self.registry.batch_key
        )
        genes = select_genes(gene_list, self.registry.var_names)
        depth: float | Literal["latent"] = (
            "latent" if library_size == "latent" else positive_number("library_size", library_size)
        )
        if given not in ("state", "counts"):
            raise ValueError(f'given={given!r} is not known: use "state" or "counts".')
        if given == "counts" and (interval is not None or not return_mean):
            raise ValueError(
                'given="counts" is a mean over samples: leave out interval=... and return_mean=False, which are of the '
                'expression of a state, given="state".'
            )
        if given == "counts" and not self.module.likelihood.for_counts:
            raise ValueError(
                'given="counts" needs a likelihood of counts, and gene_likelihood="normal" is none: build the model '
                'with "nb", "zinb" or "poisson", or leave given at "state".'
            )
        if interval is not None:
            if not return_mean or return_numpy or out is not None:
                raise ValueError(
                    "interval=... returns median and ends of the intervals as one result in memory: leave return_mean, "
                    "return_numpy and out as they are, or leave interval out."
                )
            chosen = self._gene_names(genes)
            self._require_free(expression_slot(adata, chosen), key_added, *ENDS)
            record = {"transform_batch": [self.registry.batch_categories[batch] for batch in batches] or None}
            level, targets, replicate = interval_level(interval), in_batches(batches), self._refitted()
            with evaluating(self.module):
                calibration = measured_calibration(self.module, replicate, targets)
                ends = expression_interval(self.module, cells, targets, genes, depth, calibration, level)
            self._write_ends(adata, key_added, ends, chosen, cells, write_subset, record | {"interval": level})
            return ExpressionInterval(*ends, level, cells.source.obs_names[cells.positions], pd.Index(chosen))
        n_draws, seed = whole_number("n_samples", n_samples), whole_number("seed", seed, least=0)
        compute: Compute
        if given == "counts":
            compute = partial(
                expression_given_counts, batches=batches, genes=genes, depth=depth, n_samples=n_draws, seed=seed
            )
        else:
            compute = partial(
                inference.normalized_expression,
                batches=batches,
                genes=genes,
                depth=depth,
                n_samples=n_draws,
                seed=seed,
                average=return_mean,
            )
        if not return_mean:
            if out is not None:
                raise ValueError("out=... takes the mean over samples alone: leave out return_mean=False.")
            with evaluating(self.module):
                return compute(self.module, cells)
        names = self._gene_names(genes)
        arguments = {
            "transform_batch": [self.registry.batch_categories[batch] for batch in batches] or None,
            "gene_list": None if genes is None else names,
            "library_size": depth,
            "n_samples": n_samples,
            "seed": seed,
            "given": given,
        }
        pieces = Pieces(self.module, cells, compute, len(names))
        if out is not None:
            return self._write_out(out, overwrite, adata, pieces, names, None, arguments)
        self._require_free(expression_slot(adata, names), key_added)
        expression = pieces.dask_array() if pieces.is_lazy else pieces.in_memory()
        self._write_expression(adata, key_added, expression, names, cells, write_subset, arguments)
        if return_numpy or pieces.is_lazy:
            return expression
        return pd.DataFrame(expression, index=cells.source.obs_names[cells.positions], columns=names)

    def get_likelihood_parameters(
        self,
        adata: AnnData | None = None,
        indices: CellSelection | None = None,
        n_samples: int = 1,
        batch_size: int | None = None,
        *,
        seed: int = 0,
        fill_missing_genes: bool = False,
    ) -> dict[str, Float[np.ndarray, "cells genes"]]:
        """Return the parameters of the likelihood of each cell and gene.

        Parameters
        ----------
        adata, indices, batch_size, fill_missing_genes
            As for :meth:`get_latent_representation`.
        n_samples, seed
            Samples of the posterior of the state that parameters are averaged over; one is its mean. A latent library
            size is at its posterior mean.

        Returns
        -------
        dict
            ``"mean"`` (counts; log-normalised values for ``"normal"``); ``"dispersions"`` (inverse dispersions) for
            ``"nb"`` and ``"zinb"``; ``"dropout"`` (probability of an extra zero) for ``"zinb"``; ``"scale"``
            (standard deviation) for ``"normal"``. Each of shape (cells, genes).
        """
        _, cells = self._cells(adata, indices, batch_size, fill_missing_genes)
        n_samples, seed = whole_number("n_samples", n_samples), whole_number("seed", seed, least=0)
        with evaluating(self.module):
            return inference.likelihood_parameters(self.module, cells, n_samples, seed)

    def get_feature_correlation_matrix(
        self,
        adata: AnnData | None = None,
        indices: CellSelection | None = None,
        n_samples: int = 10,
        batch_size: int | None = None,
        rna_size_factor: float = 1000,
        transform_batch: str | Sequence[str] | None = None,
        correlation_type: CorrelationType = "spearman",
        *,
        gene_list: GeneSelection | None = None,
        predictive: bool = False,
        seed: int = 0,
        fill_missing_genes: bool = False,
        key_added: str | None = "scvae_correlation",
    ) -> pd.DataFrame:
        r"""Return how expression of genes correlates over cells and draws of their posterior, :math:`\rho_g(z_n)`.

        All denoised expression is a function of few latent dimensions, so that denoising makes correlations larger, and
        gives genes a correlation that have none (Andrews and Hemberg, F1000Research 7, 1740 (2018)): use it to rank
        pairs, not to test them. ``predictive=True`` correlates counts drawn from the model at equal depth, which have
        the noise of counting again. Memory does not grow with cells times genes times draws.

        Parameters
        ----------
        adata, indices, batch_size, fill_missing_genes
            As for :meth:`get_latent_representation`.
        n_samples, seed
            Draws of each cell, and their seed.
        rna_size_factor
            Total that expression is scaled to, in counts; the depth of counts with ``predictive=True``. With size
            factors it takes the place of the factor.
        transform_batch
            Batch to express all cells in, several to average correlations over, or ``None`` for the observed one, whose
            differences between batches then are part of the correlation.
        correlation_type
            ``"spearman"``, from ranks in at most 2,049 intervals a gene (draws of one interval count as ties), or
            ``"pearson"`` of log(1 + expression).
        gene_list
            Genes, in this order; all where ``None``.
        predictive
            Whether to correlate counts drawn from the model.
        key_added
            Key of ``adata.varp``, where all genes are asked for; ``None`` writes nothing.

        Returns
        -------
        pandas.DataFrame
            Genes by genes, float64, not a number for a gene that does not vary; also in ``adata.varp[key_added]``.

        Raises
        ------
        ValueError
            If cells, genes, batches or the type of correlation do not exist; the message lists what does.
        """
        adata, cells = self._cells(adata, indices, batch_size, fill_missing_genes)
        genes = select_genes(gene_list, self.registry.var_names)
        batches = select_options(
            "transform_batch", transform_batch, self.registry.batch_categories, self.registry.batch_key
        )
        options: dict[str, Any] = {
            "correlation_type": correlation_type,
            "rna_size_factor": positive_number("rna_size_factor", rna_size_factor),
            "n_samples": whole_number("n_samples", n_samples),
            "seed": whole_number("seed", seed, least=0),
            "predictive": true_or_false("predictive", predictive),
        }
        with evaluating(self.module):
            values = gene_correlation(self.module, cells, batches, genes, **options)
        names = self._gene_names(genes)
        frame = pd.DataFrame(values, index=names, columns=names)
        if key_added is not None and genes is None:
            names_of_batches = [self.registry.batch_categories[batch] for batch in batches] or None
            record = {**options, "transform_batch": names_of_batches, "n_cells": len(cells)}
            write_gene_pairs(adata, key_added, frame, self._provenance(record))
        return frame
