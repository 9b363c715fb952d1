"""The variational autoencoder of genes and accessible chromatin (multiome)."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from anndata import AnnData
from jaxtyping import Int
from typing_extensions import override

from scvae_ext.data import CellSource, Registry, setup_anndata
from scvae_ext.likelihoods import GeneLikelihood
from scvae_ext.models.building import FIXED_OPTIONS, build_vae, refuse_beside_modalities
from scvae_ext.models.mixins import (
    AccessibilityMixin,
    ComparisonMixin,
    DifferentialAccessibilityMixin,
    ExpressionMixin,
    LatentMixin,
    ReferenceMixin,
    SamplingMixin,
    ScoresMixin,
)
from scvae_ext.models.options import reject_unknown
from scvae_ext.modules import VAE, LatentDistribution, PriorKind
from scvae_ext.nn import BatchRepresentation, DispersionKind
from scvae_ext.nn.precision import single_precision

__all__ = ["MultiomeVAE"]


class MultiomeVAE(
    LatentMixin,
    ExpressionMixin,
    AccessibilityMixin,
    ScoresMixin,
    SamplingMixin,
    ComparisonMixin,
    DifferentialAccessibilityMixin,
    ReferenceMixin,
):
    r"""Variational autoencoder of counts of genes and of accessible chromatin, in one latent space.

    .. math::
        z_n \sim \mathcal N(0, I), \qquad x_{ng} \mid z_n \sim \operatorname{NB}(\ell_n \rho_{ng}, \theta_g), \qquad
        a_{np} \mid z_n \sim \operatorname{Bernoulli}(1 - e^{-d_n \lambda_{np}})

    Genes are as in :class:`SCVAE`. Whether a peak is accessible is whether at least one of a Poisson number of
    fragments was found, whose mean is the depth of the cell (its number of accessible peaks over the mean) times the
    rate of the peak in this state. In some batches genes alone may have been measured: accessibility is then predicted.
    Every cell needs counts of genes.

    Methods that it shares with :class:`SCVAE` are about genes, and scores about both. Intervals, counterfactuals, new
    cells and most diagnostics are those of genes alone: train an :class:`SCVAE` for them.

    Source: for one latent space of both Ashuach, Gabitto, Koodli, Saldi, Jordan and Yosef, Nature Methods 20, 1222
    (2023); the link is that of a Poisson number of fragments, as Martens, Fischer, Yépez, Theis and Gagneur, Nature
    Methods 21, 28 (2024), model counts of them.

    Parameters
    ----------
    adata
        AnnData that :meth:`setup_anndata` was called on.
    n_hidden, n_latent, n_layers, dropout_rate, dispersion, latent_distribution, encode_covariates, batch_representation
        As for :class:`SCVAE`. The encoder always sees the peaks.
    gene_likelihood
        ``"nb"``, ``"zinb"`` or ``"poisson"``.
    prior, n_prior_components
        ``"standard"`` normal, or a learned ``"mixture"`` of so many Gaussians.
    seed
        Seed of the initial weights.

    Raises
    ------
    TypeError, ValueError
        If an option is unknown or its value not valid, the counts are not counts, or no peaks were set up.

    Examples
    --------
    >>> import numpy as np
    >>> import scvae_ext as sv
    >>> adata = sv.datasets.synthetic_counts(n_cells=200, n_genes=50)
    >>> adata.obsm["accessibility"] = np.random.default_rng(0).binomial(1, 0.3, (200, 40))
    >>> sv.MultiomeVAE.setup_anndata(adata, accessibility_obsm_key="accessibility")
    >>> model = sv.MultiomeVAE(adata, n_latent=5)
    >>> model.train(max_epochs=2, enable_progress_bar=False)
    >>> model.get_latent_representation().shape, model.get_accessibility().shape
    ((200, 5), (200, 40))
    """

    reads = frozenset({"peaks"})

    def __init__(
        self,
        adata: AnnData,
        n_hidden: int = 128,
        n_latent: int = 20,
        n_layers: int = 1,
        dropout_rate: float = 0.1,
        dispersion: DispersionKind = "gene",
        gene_likelihood: GeneLikelihood = "nb",
        latent_distribution: LatentDistribution = "normal",
        *,
        encode_covariates: bool = False,
        batch_representation: BatchRepresentation = "one-hot",
        prior: PriorKind = "standard",
        n_prior_components: int | None = None,
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
            "latent_distribution": latent_distribution,
            "encode_covariates": encode_covariates,
            "batch_representation": batch_representation,
            "prior": prior,
            "n_prior_components": n_prior_components,
        }
        super().__init__(adata, options, seed)

    @override
    @classmethod
    def setup_anndata(
        cls,
        adata: AnnData,
        layer: str | None = None,
        batch_key: str | None = None,
        labels_key: str | None = None,
        size_factor_key: str | None = None,
        categorical_covariate_keys: Sequence[str] | None = None,
        continuous_covariate_keys: Sequence[str] | None = None,
        *,
        accessibility_obsm_key: str | None = None,
        peak_names_uns_key: str | None = None,
    ) -> None:
        """Say where counts of genes and accessible peaks are; validate them; write the registry into ``adata.uns``.

        Accessibility was not measured in a batch none of whose cells has an accessible peak.

        Parameters
        ----------
        adata
            Cells by genes, with raw counts. A view becomes an AnnData of its own.
        layer, batch_key, labels_key, size_factor_key, categorical_covariate_keys, continuous_covariate_keys
            As for :meth:`SCVAE.setup_anndata`.
        accessibility_obsm_key
            Key of ``adata.obsm`` with cells by peaks, sparse or dense: counts of fragments or insertions, of which all
            above zero mean accessible, or zeros and ones.
        peak_names_uns_key
            Key of ``adata.uns`` with the names of the peaks; those of the columns of a data frame, or numbers, where
            ``None``.

        Raises
        ------
        ValueError
            If a key is missing or its values cannot be used; the message names the key, the value and what to do.

        Warns
        -----
        UserWarning
            If accessibility was not measured in a batch, or a peak is accessible in no cell.
        """
        if accessibility_obsm_key is None:
            raise ValueError(
                "accessibility_obsm_key says where the peaks are, and is missing; adata.obsm has "
                f"{', '.join(map(repr, adata.obsm)) or 'none'}. Of an AnnData of genes and peaks together, make one of "
                "the genes, and put the matrix of the peaks into its obsm. For genes alone use SCVAE."
            )
        setup_anndata(
            adata,
            layer=layer,
            batch_key=batch_key,
            labels_key=labels_key,
            size_factor_key=size_factor_key,
            categorical_covariate_keys=categorical_covariate_keys,
            continuous_covariate_keys=continuous_covariate_keys,
            accessibility_obsm_key=accessibility_obsm_key,
            peak_names_uns_key=peak_names_uns_key,
        )

    @override
    def _make_module(self, registry: Registry, options: Mapping[str, Any]) -> VAE:
        if registry.peaks is None:
            raise ValueError(
                "No peaks were set up: call MultiomeVAE.setup_anndata(adata, accessibility_obsm_key=...), or use SCVAE "
                "for genes alone."
            )
        refuse_beside_modalities(options, "peaks")
        return build_vae(registry, {**FIXED_OPTIONS, **options})

    @override
    @single_precision()
    def _initialise(self, source: CellSource, train: Int[np.ndarray, "train"]) -> None:
        super()._initialise(source, train)
        if self._n_reference_batches is not None:
            return
        assert self.module.accessibility is not None
        assert source.peaks is not None
        known = source.covariates(train)
        self.module.accessibility.initialise(known["peaks"], known["batch"])
