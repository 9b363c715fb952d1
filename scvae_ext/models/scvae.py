"""The variational autoencoder of single-cell counts."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from anndata import AnnData
from torch import Tensor
from typing_extensions import override

from scvae_ext.data import Registry
from scvae_ext.likelihoods import GeneLikelihood
from scvae_ext.models.building import Normalised, build_vae
from scvae_ext.models.cells import Cells
from scvae_ext.models.mixins import (
    ComparisonMixin,
    CounterfactualMixin,
    ExpressionMixin,
    FactorsMixin,
    GenerationMixin,
    LatentMixin,
    ReferenceMixin,
    SamplingMixin,
    ScoresMixin,
    UncertaintyMixin,
)
from scvae_ext.models.options import reject_unknown
from scvae_ext.models.residual import FactorTest, add_factors, choose_cells, choose_factors
from scvae_ext.modules import VAE, DecoderKind, LatentDistribution, PriorKind, Trainable
from scvae_ext.nn import BatchRepresentation, DispersionKind, ZeroInflationKind
from scvae_ext.random_state import seeded
from scvae_ext.train import TrainingPlan
from scvae_ext.train.history import History

__all__ = ["SCVAE"]


class SCVAE(
    LatentMixin,
    FactorsMixin,
    ExpressionMixin,
    CounterfactualMixin,
    ScoresMixin,
    UncertaintyMixin,
    SamplingMixin,
    GenerationMixin,
    ComparisonMixin,
    ReferenceMixin,
):
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
    zero_inflation
        What the probability of an extra zero in ``"zinb"`` belongs to: ``"gene-cell"``, ``"gene"``, or ``"logistic"``,
        a curve of the log mean that all genes share.
    zero_inflation_prior
        Parameters :math:`(\alpha, \beta)` of a Beta prior on that probability, each at least one, which weigh as
        :math:`\alpha + \beta - 2` cells; ``None`` for no prior. The page on the model says what it holds for.
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
    prior
        ``"standard"`` normal, or a prior that is learned with the rest: a ``"mixture"`` of Gaussians, or ``"vamp"``,
        the mixture of the posteriors of learned pseudo-cells (Tomczak and Welling, AISTATS 2018).
    n_prior_components
        Number of Gaussians of a learned prior; 20 where ``None``.
    residual_rank
        Most residual factors :math:`u_n \sim \mathcal N(0, I)` that add :math:`L u_n` to the log mean, past the
        decoder: what genes share beyond z. They are inferred with z, and are not part of the latent representation.
        :meth:`train` trains without them first, then half as long again with them, and keeps those that the held-out
        cells are better described with: see :attr:`residual_factor_test`. If none is, the model is the one without.
    decoder
        ``"nonlinear"``, or ``"linear"``: the logits of expression are linear in z and the covariates, and
        :meth:`get_loadings` says how. Hidden layers and their options are then those of the encoder alone.
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
        zero_inflation: ZeroInflationKind = "gene-cell",
        zero_inflation_prior: Sequence[float] | None = None,
        prior: PriorKind = "standard",
        n_prior_components: int | None = None,
        residual_rank: int = 0,
        decoder: DecoderKind = "nonlinear",
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
            "zero_inflation": zero_inflation,
            "zero_inflation_prior": zero_inflation_prior,
            "prior": prior,
            "n_prior_components": n_prior_components,
            "residual_rank": residual_rank,
            "decoder": decoder,
        }
        super().__init__(adata, options, seed)

    @override
    def _make_module(self, registry: Registry, options: Mapping[str, Any]) -> VAE:
        return build_vae(registry, options)

    @override
    def _train_further(
        self, run: Callable[[Trainable, TrainingPlan], bool], plan: TrainingPlan, held_out: Cells, history: History
    ) -> None:
        """Train on with residual factors, and keep those that held-out cells are better described with."""
        is_done = self._residual_test is not None or self._n_reference_batches is not None
        if not self._residual_rank or self.module.residual_rank or is_done:
            return
        base, n_rows, last_step = self.module, len(history.rows), history.last("step")
        finished = False
        try:
            self.module = full = add_factors(base, self._with_factors, self._residual_rank)
            # The start, with loadings that are still random, is no candidate: the model without factors is the other.
            plan = replace(plan, max_steps=max(1, plan.max_steps // 2), penalty_rise=(0.0, 0.0), start_counts=False)
            run(self._trainable(plan), plan)
            cells = replace(held_out, positions=choose_cells(held_out.positions, self.seed))
            self.module, test = choose_factors(base, full, self._with_factors, cells, self.seed)
            finished = True
        finally:
            if not finished:
                self.module = base
            if self.module is base:
                # Weights, steps and figures are then those of a model that never had factors.
                del history.rows[n_rows:]
        self._residual_test = replace(test, n_steps=int(history.last("step") - last_step))
        if test.n_cells < 2:
            warnings.warn(
                f"All {self._residual_rank} residual factors were kept without a test: {test.n_cells} cells were held "
                "out. Leave some to validation (train_size=0.9) to keep only the factors that describe cells better.",
                UserWarning,
                stacklevel=3,
            )

    def _with_factors(self, n_factors: int) -> VAE:
        with seeded(self.seed):
            return build_vae(self.registry, self._options, n_factors).eval()

    @override
    def _described(self) -> dict[str, Any]:
        return {
            **super()._described(),
            "residual_test": None if self._residual_test is None else self._residual_test.to_dict(),
        }

    @override
    def _restore(self, description: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
        super()._restore(description, weights)
        test = description.get("residual_test")
        self._residual_test = None if test is None else FactorTest.from_dict(test)
        n_factors = len(weights["encoder.mean.bias"]) - self.module.n_latent
        if n_factors > 0:
            self.module = self._with_factors(n_factors)

    @override
    def __repr__(self) -> str:
        if self._residual_test is None:
            return super().__repr__()
        active = self._residual_test.active
        return f"{super().__repr__()}, {sum(active)} of {len(active)} residual factors active"
