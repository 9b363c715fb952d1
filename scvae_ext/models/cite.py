"""The variational autoencoder of genes and surface proteins (CITE-seq)."""

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
    ComparisonMixin,
    DifferentialProteinMixin,
    ExpressionMixin,
    LatentMixin,
    ProteinMixin,
    ReferenceMixin,
    SamplingMixin,
    ScoresMixin,
)
from scvae_ext.models.options import reject_unknown
from scvae_ext.modules import VAE, LatentDistribution, PriorKind
from scvae_ext.nn import BatchRepresentation, DispersionKind
from scvae_ext.nn.precision import single_precision

__all__ = ["CiteVAE"]


class CiteVAE(
    LatentMixin,
    ExpressionMixin,
    ProteinMixin,
    ScoresMixin,
    SamplingMixin,
    ComparisonMixin,
    DifferentialProteinMixin,
    ReferenceMixin,
):
    r"""Variational autoencoder of counts of genes and of surface proteins, in one latent space.

    .. math::
        z_n &\sim \mathcal N(0, I), \qquad x_{ng} \mid z_n \sim \operatorname{NB}(\ell_n \rho_{ng}, \theta_g) \\
        y_{np} \mid z_n &\sim \pi_{np} \operatorname{NB}(\beta_{np}, \theta^b_p) +
        (1 - \pi_{np}) \operatorname{NB}(\alpha_{np} \beta_{np}, \theta^f_p)

    Genes are as in :class:`SCVAE`. The count of a protein is background, antibody that binds everywhere, or foreground,
    which is more (:math:`\alpha > 1`); background depends on batch and protein, and by a common factor on the cell.
    Batches may have been stained with different panels: the likelihood is that of
    what was measured, and what was not is predicted.

    Methods that it shares with :class:`SCVAE` are about genes, and scores about both. Intervals, counterfactuals, new
    cells and most diagnostics are those of genes alone: train an :class:`SCVAE` for them.

    Source: for the mixture Gayoso, Steier et al., Nature Methods 18, 272 (2021), where background is a latent variable
    of its own.

    Parameters
    ----------
    adata
        AnnData that :meth:`setup_anndata` was called on.
    n_hidden, n_latent, n_layers, dropout_rate, dispersion, latent_distribution, encode_covariates, batch_representation
        As for :class:`SCVAE`. The encoder always sees the proteins.
    gene_likelihood
        ``"nb"``, ``"zinb"`` or ``"poisson"``.
    prior, n_prior_components
        ``"standard"`` normal, or a learned ``"mixture"`` of so many Gaussians.
    seed
        Seed of the initial weights.

    Raises
    ------
    TypeError, ValueError
        If an option is unknown or its value not valid, the counts are not counts, or no proteins were set up.

    Examples
    --------
    >>> import numpy as np
    >>> import scvae_ext as sv
    >>> adata = sv.datasets.synthetic_counts(n_cells=200, n_genes=50)
    >>> adata.obsm["protein"] = np.random.default_rng(0).poisson(5, (200, 3))
    >>> sv.CiteVAE.setup_anndata(adata, protein_expression_obsm_key="protein")
    >>> model = sv.CiteVAE(adata, n_latent=5)
    >>> model.train(max_epochs=2, enable_progress_bar=False)
    >>> model.get_latent_representation().shape, model.get_protein_expression().shape
    ((200, 5), (200, 3))
    """

    reads = frozenset({"proteins"})

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
        protein_expression_obsm_key: str | None = None,
        protein_names_uns_key: str | None = None,
    ) -> None:
        """Say where counts of genes and proteins are; validate them; write the registry into ``adata.uns``.

        A protein was not measured in a batch where all its values there are missing (NaN), or all are zero while it has
        counts in another batch.

        Parameters
        ----------
        adata
            Cells by genes, with raw counts. A view becomes an AnnData of its own.
        layer, batch_key, labels_key, size_factor_key, categorical_covariate_keys, continuous_covariate_keys
            As for :meth:`SCVAE.setup_anndata`.
        protein_expression_obsm_key
            Key of ``adata.obsm`` with raw counts of proteins: a data frame, whose columns name them, or an array.
        protein_names_uns_key
            Key of ``adata.uns`` with the names of the columns of an array; numbers where ``None``.

        Raises
        ------
        ValueError
            If a key is missing or its values cannot be used; the message names the key, the value and what to do.

        Warns
        -----
        UserWarning
            If a protein was not measured in a batch.
        """
        if protein_expression_obsm_key is None:
            raise ValueError(
                "protein_expression_obsm_key says where the counts of the proteins are, and is missing; adata.obsm has "
                f"{', '.join(map(repr, adata.obsm)) or 'none'}. For genes alone use SCVAE."
            )
        setup_anndata(
            adata,
            layer=layer,
            batch_key=batch_key,
            labels_key=labels_key,
            size_factor_key=size_factor_key,
            categorical_covariate_keys=categorical_covariate_keys,
            continuous_covariate_keys=continuous_covariate_keys,
            protein_expression_obsm_key=protein_expression_obsm_key,
            protein_names_uns_key=protein_names_uns_key,
        )

    @override
    def _make_module(self, registry: Registry, options: Mapping[str, Any]) -> VAE:
        if registry.proteins is None:
            raise ValueError(
                "No proteins were set up: call CiteVAE.setup_anndata(adata, protein_expression_obsm_key=...), or use "
                "SCVAE for genes alone."
            )
        refuse_beside_modalities(options, "proteins")
        return build_vae(registry, {**FIXED_OPTIONS, **options})

    @override
    @single_precision()
    def _initialise(self, source: CellSource, train: Int[np.ndarray, "train"]) -> None:
        super()._initialise(source, train)
        if self._n_reference_batches is not None:
            return
        assert self.module.proteins is not None
        assert source.proteins is not None
        self.module.proteins.initialise(source.proteins[train], source.batch[train])
