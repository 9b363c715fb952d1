"""The variational autoencoder of counts and labels, of which some are known."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from anndata import AnnData
from jaxtyping import Int
from torch import Tensor
from typing_extensions import override

from scvae_ext.analysis import LabelCalibration
from scvae_ext.data import CellSource, Registry, setup_anndata
from scvae_ext.data.names import shorten
from scvae_ext.likelihoods import GeneLikelihood
from scvae_ext.models.building import FIXED_OPTIONS, build_vae
from scvae_ext.models.cells import Cells, evaluating
from scvae_ext.models.inference import latent_parameters
from scvae_ext.models.label_inference import calibrate_labels
from scvae_ext.models.mixins import (
    ComparisonMixin,
    CounterfactualMixin,
    ExpressionMixin,
    GenerationMixin,
    LabelMixin,
    LatentMixin,
    ReferenceMixin,
    SamplingMixin,
    ScoresMixin,
    UncertaintyMixin,
)
from scvae_ext.models.options import positive_number, reject_unknown, whole_number
from scvae_ext.modules import VAE, LabelPrior, LatentDistribution, Trainable, trainable_bound
from scvae_ext.nn import BatchRepresentation, DispersionKind
from scvae_ext.train import TrainingPlan
from scvae_ext.train.history import History

__all__ = ["SemiSupervisedVAE"]


class SemiSupervisedVAE(
    LatentMixin,
    ExpressionMixin,
    LabelMixin,
    CounterfactualMixin,
    ScoresMixin,
    UncertaintyMixin,
    SamplingMixin,
    GenerationMixin,
    ComparisonMixin,
    ReferenceMixin,
):
    r"""Variational autoencoder of counts whose latent space tells labels apart, learned from cells that have one.

    .. math::
        y_n \sim \operatorname{Cat}(\pi), \qquad
        z_n \mid y_n \sim \sum_k w_{y_n k}\,\mathcal N(m_{y_n k}, \operatorname{diag} s_{y_n k}^2), \qquad
        x_{ng} \mid z_n \sim \operatorname{NB}(\ell_n \rho_{ng}, \theta_g)

    Counts are as in :class:`SCVAE`; what has a label is the state. The label of a cell is an observation like its
    counts, and one more term of the evidence: :math:`\log p(x, y)` of a cell with a label, :math:`\log p(x)` of one
    without. No classifier is trained beside: :meth:`predict` is Bayes' theorem.

    Source: for learning from labelled and unlabelled cells Kingma, Rezende, Mohamed and Welling, NeurIPS 2014; for
    single cells Xu et al., Molecular Systems Biology 17, e9620 (2021), where a classifier reads the latent state.

    Parameters
    ----------
    adata
        AnnData that :meth:`setup_anndata` was called on.
    n_hidden, n_latent, n_layers, dropout_rate, gene_likelihood, use_observed_lib_size, latent_distribution
        As for :class:`SCVAE`.
    dispersion
        ``"gene"``, ``"gene-batch"`` or ``"gene-cell"``.
    encode_covariates, batch_representation
        As for :class:`SCVAE`.
    n_components_per_label
        Number of Gaussians of each label.
    label_weight
        How often a label counts in training beside the counts of its cell; 1 for the evidence lower bound itself. What
        is reported, and :meth:`get_elbo`, counts it once.
    seed
        Seed of the initial weights.

    Raises
    ------
    TypeError, ValueError
        If an option is unknown or its value not valid, the counts are not counts, or labels were not set up for this
        model.

    Examples
    --------
    >>> import scvae_ext as sv
    >>> adata = sv.datasets.synthetic_counts(n_cells=200, n_genes=50)
    >>> adata.obs["known"] = adata.obs["cell_type"].where(adata.obs["cell_type"].index.isin(adata.obs_names[:100]))
    >>> sv.SemiSupervisedVAE.setup_anndata(adata, labels_key="known")
    >>> model = sv.SemiSupervisedVAE(adata, n_latent=5)
    >>> model.train(max_epochs=2, enable_progress_bar=False)
    >>> model.predict().shape, model.predict(soft=True).shape
    ((200,), (200, 5))
    """

    _set_aside: LabelPrior | None = None

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
        batch_representation: BatchRepresentation = "one-hot",
        n_components_per_label: int = 1,
        label_weight: float = 100.0,
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
            "batch_representation": batch_representation,
            "n_components_per_label": n_components_per_label,
            "label_weight": label_weight,
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
        unlabeled_category: str = "Unknown",
    ) -> None:
        """Say where counts and labels are; validate them; write the registry into ``adata.uns``.

        Parameters
        ----------
        adata
            Cells by genes, with raw counts. A view becomes an AnnData of its own.
        layer, batch_key, size_factor_key, categorical_covariate_keys, continuous_covariate_keys
            As for :meth:`SCVAE.setup_anndata`.
        labels_key
            Column of ``adata.obs`` with the labels that are known.
        unlabeled_category
            Category of cells whose label is not known; cells without a value belong to it as well.

        Raises
        ------
        ValueError
            If a key is missing or its values cannot be used; the message names the key, the value and what to do.

        Warns
        -----
        UserWarning
            If a label sounds as if it meant that the label is not known.
        """
        if labels_key is None:
            raise ValueError(
                "labels_key says which labels are known, and is missing: name a column of adata.obs. "
                "Without labels use SCVAE."
            )
        setup_anndata(
            adata,
            layer=layer,
            batch_key=batch_key,
            labels_key=labels_key,
            size_factor_key=size_factor_key,
            categorical_covariate_keys=categorical_covariate_keys,
            continuous_covariate_keys=continuous_covariate_keys,
            unlabeled_category=unlabeled_category,
        )

    @property
    @override
    def _needs_labels(self) -> bool:
        return True

    @override
    def _trainable(self, plan: TrainingPlan) -> Trainable:
        if plan.free_bits:
            raise ValueError(
                f"free_bits={plan.free_bits!r} counts the divergence of each latent dimension from its prior, and this "
                "prior has none by dimension: leave free_bits at 0."
            )
        weight = self._options["label_weight"]
        if plan.objective == "iwae" and weight != 1:
            raise ValueError(
                f'objective="iwae" counts a label once, but label_weight={weight!r}: build the model with '
                "label_weight=1."
            )
        is_mapped = self._n_reference_batches is not None
        if not is_mapped and (self._own_source().label >= len(self.label_names)).all():
            raise ValueError(
                f"No cell of the model's AnnData has a label any more in adata.obs[{self.registry.labels_key!r}]: put "
                "the labels back, or run setup_anndata and build the model again."
            )
        if not self.is_trained and self._set_aside is None:
            assert isinstance(self.module.prior, LabelPrior)
            self._set_aside, self.module.prior = self.module.prior, None
        if self._set_aside is not None:
            return super()._trainable(plan)
        return trainable_bound(self.module, plan.objective, plan.n_samples, 0.0, plan.batch_penalty, weight)

    @override
    def _train_further(
        self, run: Callable[[Trainable, TrainingPlan], bool], plan: TrainingPlan, held_out: Cells, history: History
    ) -> None:
        """Train on with labels, where this was the training of the networks without them."""
        if self._set_aside is None:
            return
        assert self.train_indices is not None
        self._end_training(held_out.source, self.train_indices)
        # The start describes counts best, and knows least of labels: as a candidate it won where labels were few.
        plan = replace(
            plan, max_steps=max(1, plan.max_steps // 2), kl_warmup=0.0, penalty_rise=(0.0, 0.0), start_counts=False
        )
        run(self._trainable(plan), plan)

    @override
    def _end_training(self, source: CellSource, train: Int[np.ndarray, "train"]) -> None:
        """Put the prior back, which starts from where the networks have learned to place the labelled cells."""
        if self._set_aside is None:
            return
        self.module.prior = prior = self._set_aside
        self._set_aside = None
        if not self.is_trained:
            return
        label = source.label[train]
        n_cells = torch.bincount(label, minlength=prior.n_labels)[: prior.n_labels]
        if (n_cells == 0).any():
            lacking = np.array(self.label_names)[(n_cells == 0).numpy()]
            warnings.warn(
                f"No training cell has the label {shorten(lacking)}: all that have it are held out for validation. "
                "It cannot be learned; pass a larger train_size, or label more cells.",
                UserWarning,
                stacklevel=3,
            )
        with evaluating(self.module):
            moments = latent_parameters(self.module, Cells(source, train, self.device))
        mean, variance = (torch.from_numpy(values).to(self.device) for values in moments)
        label = label.to(self.device)
        self._calibration = calibrate_labels(prior, mean, variance, label, self.seed)
        prior.initialise(mean, variance, label, torch.Generator().manual_seed(self.seed))

    @override
    def _described(self) -> dict[str, Any]:
        return {**super()._described(), "label_calibration": asdict(self._calibration)}

    @override
    def _restore(self, description: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
        super()._restore(description, weights)
        self._calibration = LabelCalibration(**description["label_calibration"])

    @override
    def _make_module(self, registry: Registry, options: Mapping[str, Any]) -> VAE:
        if registry.unlabeled_category is None:
            raise ValueError(
                "No labels were set up for this model: call SemiSupervisedVAE.setup_anndata(adata, labels_key=...), or "
                "use SCVAE."
            )
        if options["dispersion"] == "gene-label":
            raise ValueError(
                'dispersion="gene-label" needs the label of every cell, and here some are not known: use "gene", '
                '"gene-batch" or "gene-cell".'
            )
        options = dict(options)
        n_components = whole_number("n_components_per_label", options.pop("n_components_per_label"))
        positive_number("label_weight", options.pop("label_weight"))
        n_labels = len(registry.label_categories) - 1
        return build_vae(
            registry, {**FIXED_OPTIONS, **options}, n_known_labels=n_labels, n_components_per_label=n_components
        )
