"""The variational autoencoder of single-cell counts."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from jaxtyping import Float, Int
from typing_extensions import override

from scvae_ext.data import CellSource, Registry
from scvae_ext.likelihoods import COUNT_LIKELIHOODS, GeneLikelihood
from scvae_ext.models import inference
from scvae_ext.models.base import BaseModel
from scvae_ext.models.options import positive_number, reject_unknown, true_or_false, whole_number
from scvae_ext.models.query import (
    CellSelection,
    GeneSelection,
    select_genes,
    select_options,
)
from scvae_ext.modules import VAE, LatentDistribution
from scvae_ext.nn import BatchRepresentation, DispersionKind, Normalisation

__all__ = ["SCVAE"]

Normalised = Literal["encoder", "decoder", "none", "both"]


class SCVAE(BaseModel):
    r"""Variational autoencoder of counts, with the batch as a covariate of the decoder.

    .. math::
        z_n \sim \mathcal N(0, I), \qquad \rho_n = \operatorname{decoder}(z_n, s_n), \qquad
        x_{ng} \mid z_n \sim \operatorname{NB}(\ell_n \rho_{ng}, \theta_g)

    Source: Kingma and Welling, ICLR 2014; for counts Lopez et al., Nature Methods 15, 1053 (2018).

    Parameters
    ----------
    adata
        AnnData that :meth:`setup_anndata` was called on.
    n_hidden, n_latent, n_layers
        Units of a hidden layer, latent dimensions, hidden layers of encoder and of decoder.
    dropout_rate
        Dropout of the encoder.
    dispersion
        Whether an inverse dispersion belongs to a ``"gene"``, ``"gene-batch"``, ``"gene-label"`` or ``"gene-cell"``.
    gene_likelihood
        ``"nb"``, ``"zinb"``, ``"poisson"``, or ``"normal"`` for log-normalised values.
    latent_distribution
        ``"normal"``, or ``"ln"`` for a latent point on the simplex.
    use_observed_lib_size
        Whether a cell's library size is its total count, or a latent variable with a log-normal prior by batch.
    encode_covariates
        Whether the encoder sees batch and covariates.
    deeply_inject_covariates
        Whether every layer sees them, or only the first.
    batch_representation
        ``"one-hot"`` or ``"embedding"``.
    use_batch_norm, use_layer_norm
        Which networks normalise activations so: ``"encoder"``, ``"decoder"``, ``"both"`` or ``"none"``.
    seed
        Seed of the initial weights.

    Raises
    ------
    TypeError, ValueError
        If an option is unknown or its value not valid, or the counts are not counts.

    Examples
    --------
    >>> import scvae_ext as sv
    >>> adata = sv.datasets.synthetic_counts(n_cells=200, n_genes=50)
    >>> sv.SCVAE.setup_anndata(adata)
    >>> model = sv.SCVAE(adata, n_latent=5)
    >>> model.train(max_epochs=2, enable_progress_bar=False)
    >>> model.get_latent_representation().shape
    (200, 5)
    """

    latent_key = "X_scvae"
    expression_key = "scvae_normalized"
    module: VAE

    def __init__(
        self,
        adata: AnnData,
        n_hidden: int = 128,
        n_latent: int = 10,
        n_layers: int = 1,
        dropout_rate: float = 0.1,
        dispersion: DispersionKind = "gene",
        gene_likelihood: GeneLikelihood = "nb",
        use_observed_lib_size: bool = True,
        latent_distribution: LatentDistribution = "normal",
        *,
        encode_covariates: bool = False,
        deeply_inject_covariates: bool = True,
        batch_representation: BatchRepresentation = "one-hot",
        use_batch_norm: Normalised = "both",
        use_layer_norm: Normalised = "none",
        seed: int = 0,
        **unknown: Any,
    ) -> None:
        reject_unknown(type(self), unknown)
        options = {
            "n_hidden": n_hidden,
            "n_latent": n_latent,
            "n_layers": n_layers,
            "dropout_rate": dropout_rate,
            "dispersion": dispersion,
            "gene_likelihood": gene_likelihood,
            "use_observed_lib_size": use_observed_lib_size,
            "latent_distribution": latent_distribution,
            "encode_covariates": encode_covariates,
            "deeply_inject_covariates": deeply_inject_covariates,
            "batch_representation": batch_representation,
            "use_batch_norm": use_batch_norm,
            "use_layer_norm": use_layer_norm,
        }
        super().__init__(adata, options, seed)

    @override
    def _make_module(self, registry: Registry, options: Mapping[str, Any]) -> VAE:
        for name in ("use_observed_lib_size", "encode_covariates", "deeply_inject_covariates"):
            true_or_false(name, options[name])
        if registry.size_factor_key is not None and not options["use_observed_lib_size"]:
            raise ValueError(
                f"use_observed_lib_size=False asks for a latent library size, but size_factor_key="
                f"{registry.size_factor_key!r} takes its place: leave one of the two out."
            )
        if options["gene_likelihood"] == "normal" and not options["use_observed_lib_size"]:
            raise ValueError(
                'use_observed_lib_size=False has no meaning for gene_likelihood="normal", whose values are normalised '
                "by the observed library size: leave it at True."
            )
        own = ("use_batch_norm", "use_layer_norm")
        module = VAE(
            registry.n_genes,
            n_batches=registry.n_batches,
            n_labels=registry.n_labels,
            n_categories=registry.n_categories_per_covariate,
            n_continuous=registry.n_continuous_covariates,
            use_size_factor=registry.size_factor_key is not None,
            encoder_normalisation=_normalisation(options, "encoder"),
            decoder_normalisation=_normalisation(options, "decoder"),
            **{name: value for name, value in options.items() if name not in own},
        )
        if options["gene_likelihood"] in COUNT_LIKELIHOODS:
            registry.require_counts(options["gene_likelihood"])
        return module

    @override
    def _initialise(self, source: CellSource, train: Int[np.ndarray, "train"]) -> None:
        super()._initialise(source, train)
        self.module.initialise_library(source.library_size[train], source.batch[train])

    @override
    def _require_valid(self, source: CellSource) -> None:
        if self._options["gene_likelihood"] in COUNT_LIKELIHOODS:
            source.require_counts(self._options["gene_likelihood"])

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
    ) -> Float[np.ndarray, "*samples cells latent"] | tuple[np.ndarray, np.ndarray]:
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

        Returns
        -------
        numpy.ndarray
            Of shape (cells, n_latent), also in ``adata.obsm[key_added]``, float32.

        Raises
        ------
        RuntimeError
            If the model has not been trained.
        ValueError
            If cells, genes or categories do not fit; the message names them.
        """
        if give_mean and n_samples is not None:
            raise ValueError(f"n_samples={n_samples!r} needs give_mean=False: the mean is one value a cell.")
        adata, cells = self._cells(adata, indices, batch_size, fill_missing_genes)
        with inference.evaluating(self.module):
            if return_dist:
                return inference.latent_parameters(self.module, cells)
            if not give_mean:
                latent = inference.draw_latent(
                    self.module, cells, whole_number("n_samples", 1 if n_samples is None else n_samples), seed
                )
                if n_samples is not None:
                    return latent
                latent = latent[0]
            else:
                latent = inference.latent_mean(self.module, cells, whole_number("mc_samples", mc_samples), seed)
        arguments = {"give_mean": give_mean, "mc_samples": mc_samples, "seed": seed}
        self._write(adata, "obsm", key_added, latent, cells, write_subset, arguments)
        return latent

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
        seed: int = 0,
        fill_missing_genes: bool = False,
        key_added: str | None = "scvae_normalized",
        write_subset: bool = False,
    ) -> pd.DataFrame | Float[np.ndarray, "*samples cells chosen"]:
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
        key_added
            Key of ``adata.layers``, or of ``adata.obsm`` (a data frame) where only some genes are asked for; ``None``
            writes nothing.

        Returns
        -------
        pandas.DataFrame or numpy.ndarray
            Of shape (cells, genes), float32; also in ``adata.layers[key_added]``.

        Raises
        ------
        RuntimeError, ValueError
            As for :meth:`get_latent_representation`.
        """
        adata, cells = self._cells(adata, indices, batch_size, fill_missing_genes)
        batches = select_options(
            "transform_batch", transform_batch, self.registry.batch_categories, self.registry.batch_key
        )
        genes = select_genes(gene_list, self.registry.var_names)
        depth = "latent" if library_size == "latent" else positive_number("library_size", library_size)
        with inference.evaluating(self.module):
            expression = inference.normalized_expression(
                self.module,
                cells,
                batches,
                genes,
                depth,
                whole_number("n_samples", n_samples),
                seed,
                average=return_mean,
            )
        if not return_mean:
            return expression
        names = (
            [self.registry.var_names[gene] for gene in genes] if genes is not None else list(self.registry.var_names)
        )
        arguments = {
            "transform_batch": [self.registry.batch_categories[batch] for batch in batches] or None,
            "gene_list": None if genes is None else names,
            "library_size": depth,
            "n_samples": n_samples,
            "seed": seed,
        }
        self._write_expression(adata, key_added, expression, names, cells, write_subset, arguments)
        if return_numpy:
            return expression
        return pd.DataFrame(expression, index=cells.source.obs_names[cells.positions], columns=names)

    def get_elbo(
        self,
        adata: AnnData | None = None,
        indices: CellSelection | None = None,
        batch_size: int | None = None,
        return_mean: bool = True,
        *,
        n_samples: int = 10,
        seed: int = 0,
        fill_missing_genes: bool = False,
    ) -> float | Float[np.ndarray, "cells"]:
        r"""Return the evidence lower bound in nats per cell; higher is better.

        .. math:: \mathcal L(x) = \mathbb E_{q(z \mid x)}[\log p(x \mid z)] - \operatorname{KL}(q(z \mid x) \,\|\, p(z))

        Parameters
        ----------
        adata, indices, batch_size, fill_missing_genes
            As for :meth:`get_latent_representation`.
        return_mean
            Whether to return the mean over cells rather than a value a cell.
        n_samples, seed
            Samples of the expectation, and their seed. The draws depend on ``batch_size`` and on the cells asked for.
        """
        return self._mean_term("elbo", adata, indices, batch_size, n_samples, seed, fill_missing_genes, return_mean)

    def get_reconstruction_error(
        self,
        adata: AnnData | None = None,
        indices: CellSelection | None = None,
        batch_size: int | None = None,
        return_mean: bool = True,
        *,
        n_samples: int = 10,
        seed: int = 0,
        fill_missing_genes: bool = False,
    ) -> float | Float[np.ndarray, "cells"]:
        r"""Return :math:`-\mathbb E_{q(z \mid x)}[\log p(x \mid z)]` in nats per cell; lower is better.

        Parameters
        ----------
        adata, indices, batch_size, return_mean, n_samples, seed, fill_missing_genes
            As for :meth:`get_elbo`.
        """
        return -self._mean_term(
            "reconstruction", adata, indices, batch_size, n_samples, seed, fill_missing_genes, return_mean
        )

    def get_marginal_ll(
        self,
        adata: AnnData | None = None,
        indices: CellSelection | None = None,
        n_mc_samples: int = 1000,
        batch_size: int | None = None,
        return_mean: bool = True,
        *,
        seed: int = 0,
        fill_missing_genes: bool = False,
    ) -> float | Float[np.ndarray, "cells"]:
        r"""Return the evidence :math:`\log p(x)` in nats per cell, by importance sampling from the encoder.

        .. math:: \log p(x) \approx \log \frac1K \sum_{k=1}^K \frac{p(x \mid z_k)\,p(z_k)}{q(z_k \mid x)},
                  \qquad z_k \sim q(z \mid x)

        The estimate is a lower bound in expectation, which tightens as K grows. Source: Burda, Grosse and
        Salakhutdinov, ICLR 2016.

        Parameters
        ----------
        adata, indices, batch_size, return_mean, seed, fill_missing_genes
            As for :meth:`get_elbo`.
        n_mc_samples
            K, the number of samples of each cell.
        """
        _, cells = self._cells(adata, indices, batch_size, fill_missing_genes)
        with inference.evaluating(self.module):
            n_samples = whole_number("n_mc_samples", n_mc_samples)
            evidence = inference.marginal_log_likelihood(self.module, cells, n_samples, seed)
        return float(evidence.mean()) if return_mean else evidence

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
            Samples of the posterior that parameters are averaged over; one is the posterior mean.

        Returns
        -------
        dict
            ``"mean"`` (counts; log-normalised values for ``"normal"``); ``"dispersions"`` (inverse dispersions) for
            ``"nb"`` and ``"zinb"``; ``"dropout"`` (probability of an extra zero) for ``"zinb"``; ``"scale"``
            (standard deviation) for ``"normal"``. Each of shape (cells, genes).
        """
        _, cells = self._cells(adata, indices, batch_size, fill_missing_genes)
        with inference.evaluating(self.module):
            return inference.likelihood_parameters(self.module, cells, whole_number("n_samples", n_samples), seed)

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
        with inference.evaluating(self.module):
            return inference.library_size(self.module, cells)

    def posterior_predictive_sample(
        self,
        adata: AnnData | None = None,
        indices: CellSelection | None = None,
        n_samples: int = 1,
        gene_list: GeneSelection | None = None,
        batch_size: int | None = None,
        *,
        seed: int = 0,
        fill_missing_genes: bool = False,
    ) -> sp.csr_matrix | list[sp.csr_matrix]:
        r"""Return counts drawn from :math:`\int p(x' \mid z)\,q(z \mid x)\,dz`.

        Parameters
        ----------
        adata, indices, batch_size, fill_missing_genes
            As for :meth:`get_latent_representation`.
        n_samples
            Number of draws of each cell.
        gene_list
            Genes to return, in this order; all where ``None``.
        seed
            Seed of the draws.

        Returns
        -------
        scipy.sparse.csr_matrix or list
            Cells by genes, whole numbers; a list of matrices where ``n_samples`` is above one. For ``"normal"`` the
            draws are taken back from the log and rounded.
        """
        _, cells = self._cells(adata, indices, batch_size, fill_missing_genes)
        genes = select_genes(gene_list, self.registry.var_names)
        with inference.evaluating(self.module):
            draws = inference.predictive_samples(self.module, cells, genes, whole_number("n_samples", n_samples), seed)
        return draws[0] if n_samples == 1 else draws

    def _mean_term(
        self,
        term: str,
        adata: AnnData | None,
        indices: CellSelection | None,
        batch_size: int | None,
        n_samples: int,
        seed: int,
        fill_missing_genes: bool,
        return_mean: bool,
    ) -> float | Float[np.ndarray, "cells"]:
        _, cells = self._cells(adata, indices, batch_size, fill_missing_genes)
        with inference.evaluating(self.module):
            values = inference.elbo_terms(self.module, cells, whole_number("n_samples", n_samples), seed)[term]
        return float(values.mean()) if return_mean else values


def _normalisation(options: Mapping[str, Any], network: str) -> Normalisation:
    """Resolve the two options of scvi-tools into one for a network."""
    chosen: list[Normalisation] = []
    for kind in get_args(Normalisation)[:2]:
        value = options[f"use_{kind}_norm"]
        if value not in ("encoder", "decoder", "none", "both"):
            raise ValueError(f'use_{kind}_norm={value!r} is not known: use "encoder", "decoder", "both" or "none".')
        if value in (network, "both"):
            chosen.append(kind)
    if len(chosen) == 2:
        raise ValueError(
            f"use_batch_norm={options['use_batch_norm']!r} and use_layer_norm={options['use_layer_norm']!r} both "
            f'normalise the {network}: set one of them to "none".'
        )
    return chosen[0] if chosen else "none"
