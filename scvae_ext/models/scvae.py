"""The variational autoencoder of single-cell counts."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from anndata import AnnData
from anndata.compat import DaskArray
from jaxtyping import Float, Int
from torch import Tensor
from typing_extensions import override

from scvae_ext.analysis import (
    Counterfactual,
    CounterfactualEffect,
    DifferentialAbundance,
    ExpressionInterval,
    IntervalCalibration,
    Novelty,
    TestMode,
    abundance_ratio,
    interval_level,
)
from scvae_ext.data import CellSource, Registry, record_result, write_registry
from scvae_ext.likelihoods import COUNT_LIKELIHOODS, GeneLikelihood
from scvae_ext.models import inference
from scvae_ext.models.abundance import groups_of_samples, sample_log_prob
from scvae_ext.models.base import BaseModel
from scvae_ext.models.correlation import CorrelationType, gene_correlation
from scvae_ext.models.counterfactual import (
    abducted_counts,
    effect_of_settings,
    groups_of_cells,
    overlap_with,
)
from scvae_ext.models.differential_expression import (
    ChangeOptions,
    DifferentialMode,
    compare_groups,
    make_units,
    sorted_table,
    write_ranking,
)
from scvae_ext.models.generation import Depth, SourceOfStates, as_anndata, draw_cells, fitted_depth
from scvae_ext.models.groups import cells_of_groups, select_groups, select_labels, select_samples
from scvae_ext.models.inference import Cells
from scvae_ext.models.intervals import (
    Replicate,
    expression_interval,
    in_batches,
    measured_calibration,
    refuse_without_counts,
    simulate_replicate,
)
from scvae_ext.models.novelty import novelty_of_cells
from scvae_ext.models.options import positive_number, reject_unknown, true_or_false, whole_number
from scvae_ext.models.other_genes import fit_other_genes
from scvae_ext.models.pieces import Pieces
from scvae_ext.models.query import (
    CellSelection,
    GeneSelection,
    select_genes,
    select_options,
)
from scvae_ext.models.residual import FactorTest, add_factors, choose_cells, choose_factors
from scvae_ext.models.results import weights_hash, write_gene_pairs, write_gene_result
from scvae_ext.models.settings import read_setting
from scvae_ext.models.state_shift import GroupedStates, grouped_states, state_shift
from scvae_ext.models.uncertainty import cell_uncertainty
from scvae_ext.modules import VAE, DecoderKind, LatentDistribution, PriorKind, Trainable, trainable_bound
from scvae_ext.nn import BatchRepresentation, DispersionKind, Normalisation, ZeroInflationKind
from scvae_ext.train import TrainingPlan
from scvae_ext.train.history import History

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

    latent_key = "X_scvae"
    expression_key = "scvae_normalized"
    module: VAE
    _replicate: Replicate | None = None
    _residual_test: FactorTest | None = None

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
        for name in ("use_observed_lib_size", "encode_covariates", "deeply_inject_covariates"):
            true_or_false(name, options[name])
        # Models saved before there were residual factors have no such option.
        whole_number("residual_rank", options.get("residual_rank", 0), least=0)
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
        module = self._make_vae(registry, options, 0)
        if options["gene_likelihood"] in COUNT_LIKELIHOODS:
            registry.require_counts(options["gene_likelihood"])
        return module

    def _make_vae(self, registry: Registry, options: Mapping[str, Any], n_factors: int) -> VAE:
        """Build the module with some number of residual factors: none before training, later those that were kept."""
        own = ("use_batch_norm", "use_layer_norm", "n_prior_components", "residual_rank")
        return VAE(
            registry.n_genes,
            n_batches=registry.n_batches,
            n_labels=registry.n_labels,
            n_categories=registry.n_categories_per_covariate,
            n_continuous=registry.n_continuous_covariates,
            use_size_factor=registry.size_factor_key is not None,
            encoder_normalisation=_normalisation(options, "encoder"),
            decoder_normalisation=_normalisation(options, "decoder"),
            **_prior_components(options),
            residual_rank=n_factors,
            **{name: value for name, value in options.items() if name not in own},
        )

    @override
    def _initialise(self, source: CellSource, train: Int[np.ndarray, "train"]) -> None:
        super()._initialise(source, train)
        self.module.initialise_library(source.library_size[train], source.batch[train])
        if self.module.prior is not None:
            n_components = len(self.module.prior.logits)
            if n_components > len(train):
                raise ValueError(
                    f"n_prior_components={n_components} is more than the {len(train)} training cells: pass fewer."
                )
            chosen = np.random.default_rng(self.seed).choice(train, n_components, replace=False)
            self.module.initialise_prior(source.minibatch(np.sort(chosen)).to(self.device))

    @override
    def _trainable(self, plan: TrainingPlan) -> Trainable:
        if plan.batch_penalty and self.registry.n_batches < 2:
            raise ValueError(
                f"batch_penalty={plan.batch_penalty!r} needs at least two batches, and the model has one: pass "
                "batch_key=... to setup_anndata, or leave batch_penalty at 0."
            )
        return trainable_bound(self.module, plan.objective, plan.n_samples, plan.free_bits, plan.batch_penalty)

    @override
    def _train_further(
        self, run: Callable[[Trainable, TrainingPlan], bool], plan: TrainingPlan, held_out: Cells, history: History
    ) -> None:
        """Train on with residual factors, and keep those that held-out cells are better described with."""
        if not self._residual_rank or self.module.residual_rank or self._residual_test is not None:
            return
        base, n_rows, last_step = self.module, len(history.rows), history.last("step")
        finished = False
        try:
            self.module = full = add_factors(base, self._with_factors, self._residual_rank)
            plan = replace(plan, max_steps=max(1, plan.max_steps // 2))
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
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            return self._make_vae(self.registry, self._options, n_factors).eval()

    @property
    def _residual_rank(self) -> int:
        # Models saved before there were residual factors have no such option.
        return int(self._options.get("residual_rank", 0))

    @override
    def _described(self) -> dict[str, Any]:
        return {"residual_test": None if self._residual_test is None else self._residual_test.to_dict()}

    @override
    def _restore(self, description: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
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
        adata, cells = self._cells(adata, indices, batch_size, fill_missing_genes)
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
            with inference.evaluating(self.module):
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

    def get_residual_factors(
        self,
        adata: AnnData | None = None,
        indices: CellSelection | None = None,
        batch_size: int | None = None,
        *,
        fill_missing_genes: bool = False,
        key_added: str | None = "X_scvae_residual",
        write_subset: bool = False,
    ) -> Float[np.ndarray, "cells residual"]:
        """Return the posterior mean of each cell's residual factors u, also in ``adata.obsm[key_added]``.

        Parameters
        ----------
        adata, indices, batch_size, fill_missing_genes, write_subset
            As for :meth:`get_latent_representation`.
        key_added
            Key of ``adata.obsm``; ``None`` writes nothing.

        Returns
        -------
        numpy.ndarray
            Of shape (cells, residual_rank), float32; zero, the mean of the prior, for a factor that is not active.

        Raises
        ------
        RuntimeError
            If the model has not been trained.
        ValueError
            If it has no residual factors, or as for :meth:`get_latent_representation`.
        """
        adata, cells = self._cells(adata, indices, batch_size, fill_missing_genes)
        self._require_residual()
        compute = partial(inference.residual_factors, places=self._active_factors, n_factors=self._residual_rank)
        factors = Pieces(self.module, cells, compute, self._residual_rank).in_memory()
        self._write(adata, "obsm", key_added, factors, cells, write_subset, {})
        return factors

    def get_residual_loadings(self, *, key_added: str | None = "scvae_residual_loadings") -> pd.DataFrame:
        """Return by how much each residual factor moves the log mean of each gene, in nats a standard deviation.

        Where expression sums to one over the genes of a cell, only differences between genes matter, and the mean of
        each factor over genes is taken off. Factors come in no order, and their signs are free. Weight decay shrinks
        loadings, and the spread of the factors makes up for it in part: compare genes within a factor, not magnitudes.

        Parameters
        ----------
        key_added
            Key of ``varm`` of the model's AnnData, where it has one; ``None`` writes nothing.

        Returns
        -------
        pandas.DataFrame
            Of genes by residual factors, float32; also in ``adata.varm[key_added]``, as an array. Zero for a factor
            that is not active.

        Raises
        ------
        RuntimeError
            If the model has not been trained.
        ValueError
            If it has no residual factors.
        """
        self._require_trained()
        self._require_residual()
        active = self.module.residual_loadings
        loadings = active.new_zeros(len(active), self._residual_rank)
        loadings[:, self._active_factors] = active
        return self._write_loadings(loadings, "residual", key_added)

    @property
    def residual_factor_test(self) -> pd.DataFrame:
        r"""What held-out cells say about each residual factor, and which are active.

        A row for each factor: ``gain``, what the evidence of a cell loses without it, in nats, with its
        ``standard_error`` over cells, and ``active``, whether it was kept, which it is where the gain is above two
        standard errors. The row ``"together"`` has the gain of all such factors over the model that was trained without
        any, which has to be above two standard errors as well; it is missing where no factor has a gain of its own.
        Evidence is estimated from 50 samples of the encoder's posterior for each of the validation cells, of which
        2,000 are drawn where there are more. A factor that is not active has no loadings and no place in the posterior:
        it costs nothing. Where no cells were held out, all are active, and gains are missing.

        Raises
        ------
        RuntimeError
            If the model has not been trained, or training was interrupted before factors were added.
        ValueError
            If it was built without residual factors, or saved before they were tested.
        """
        self._require_trained()
        self._require_residual()
        if self._residual_test is None:
            if self.module.residual_rank:
                raise ValueError(
                    "The model was saved by a version that did not test residual factors: all of them are active."
                )
            raise RuntimeError("Training was interrupted before residual factors were added: call model.train() again.")
        return self._residual_test.to_frame()

    @property
    def _active_factors(self) -> list[int]:
        if self._residual_test is None:
            return list(range(self.module.residual_rank))
        return [factor for factor, is_active in enumerate(self._residual_test.active) if is_active]

    def get_loadings(self, *, key_added: str | None = "scvae_loadings") -> pd.DataFrame:
        r"""Return by how much each latent dimension moves the log mean of each gene, in nats a unit of z.

        .. math:: \log \rho_g(z, s) = b_g + \sum_d W_{gd} z_d + \dots - \log \sum_{g'} e^{\dots}

        W is identified up to a constant a dimension, since expression sums to one: the mean over genes is taken off
        (not for ``"normal"``, where W moves the log-normalised value, nor with size factors, where expression is
        softplus of the logit and moves like its logarithm for small rates alone). Dimensions come in no order, with
        free signs; their span is what data determine best. With ``latent_distribution="ln"`` z is the point of the
        simplex, so that only differences between dimensions matter. Source: Svensson et al., Bioinformatics 36, 3418
        (2020).

        Parameters
        ----------
        key_added
            Key of ``varm`` of the model's AnnData, where it has one; ``None`` writes nothing.

        Returns
        -------
        pandas.DataFrame
            Of genes by latent dimensions (``Z_0``, ...), float32; also in ``adata.varm[key_added]``, as an array.

        Raises
        ------
        RuntimeError
            If the model has not been trained.
        ValueError
            If its decoder is not linear.
        """
        self._require_trained()
        loadings = self.module.loadings
        if loadings is None:
            raise ValueError(
                'get_loadings needs a linear decoder, and this model has decoder="nonlinear": build it with '
                'decoder="linear", and train it.'
            )
        return self._write_loadings(loadings, "Z", key_added)

    def _write_loadings(self, loadings: Float[Tensor, "genes factors"], prefix: str, key: str | None) -> pd.DataFrame:
        """Return loadings as a data frame, centred where only differences between genes matter, and write them."""
        values = loadings.detach().float().cpu().numpy()
        if self.registry.size_factor_key is None and self._options["gene_likelihood"] != "normal":
            values = values - values.mean(axis=0)
        names = pd.Index(self.registry.var_names)
        frame = pd.DataFrame(values, index=names, columns=[f"{prefix}_{i}" for i in range(values.shape[1])])
        if key is not None and self._adata is not None:
            write_gene_result(self._adata, key, frame, self._provenance({}))
        return frame

    def _require_residual(self) -> None:
        if not self._residual_rank:
            raise ValueError("The model has no residual factors: build it with residual_rank=1 or more, and train it.")

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
        if interval is not None:
            if not return_mean or return_numpy or out is not None:
                raise ValueError(
                    "interval=... returns median and ends of the intervals as one result in memory: leave return_mean, "
                    "return_numpy and out as they are, or leave interval out."
                )
            record = {"transform_batch": [self.registry.batch_categories[batch] for batch in batches] or None}
            level, targets, replicate = interval_level(interval), in_batches(batches), self._refitted()
            with inference.evaluating(self.module):
                calibration = measured_calibration(self.module, replicate, targets)
                ends = expression_interval(self.module, cells, targets, genes, depth, calibration, level)
            chosen = self._gene_names(genes)
            self._write_ends(adata, key_added, ends, chosen, cells, write_subset, record | {"interval": level})
            return ExpressionInterval(*ends, level, cells.source.obs_names[cells.positions], pd.Index(chosen))
        compute = partial(
            inference.normalized_expression,
            batches=batches,
            genes=genes,
            depth=depth,
            n_samples=whole_number("n_samples", n_samples),
            seed=seed,
            average=return_mean,
        )
        if not return_mean:
            if out is not None:
                raise ValueError("out=... takes the mean over samples alone: leave out return_mean=False.")
            with inference.evaluating(self.module):
                return compute(self.module, cells)
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
        pieces = Pieces(self.module, cells, compute, len(names))
        if out is not None:
            return self._write_out(out, overwrite, adata, pieces, names, None, arguments)
        expression = pieces.dask_array() if pieces.is_lazy else pieces.in_memory()
        self._write_expression(adata, key_added, expression, names, cells, write_subset, arguments)
        if return_numpy or pieces.is_lazy:
            return expression
        return pd.DataFrame(expression, index=cells.source.obs_names[cells.positions], columns=names)

    def calibrate_intervals(
        self, *, train_options: Mapping[str, Any] | None = None, seed: int | None = None
    ) -> IntervalCalibration:
        r"""Find out how wide intervals of expression must be, by a parametric bootstrap.

        The spread of :math:`q(z \mid x)` alone is too narrow: it leaves out that the decoder was estimated, that it is
        shrunk, and that encoder and family of posteriors are approximate. Therefore counts are simulated from this
        model, a state drawn from each cell's posterior; a model with the same options is trained on them; and its
        expression is compared with the one that they were simulated from. The errors, in units of the second model's
        own spread and by bins of genes, say how wide intervals must be; see
        :func:`~scvae_ext.analysis.calibrate_intervals`.

        It measures errors of estimation, not those of a wrong model: variation between cells that neither latent state
        nor likelihood can express is missing. On small data the simulated truth is smoother than the real one, and
        intervals hold a few per cent less than they say. Methods that need it call this; the result is kept until the
        model is trained again, and not saved.

        Parameters
        ----------
        train_options
            Arguments of :meth:`train` for the second training, which should be those of the first. By default as many
            steps as the model itself was trained for.
        seed
            Seed of the simulation and of the second model, whose initial weights must be others; one more than that of
            the model where ``None``.

        Returns
        -------
        IntervalCalibration
            For expression in the setting in which each cell was observed.

        Raises
        ------
        ValueError
            If the likelihood is not one of counts.
        """
        adata, cells = self._cells(None, None, None, False)
        refuse_without_counts(self.module)
        registry, seed = self.registry, self.seed + 1 if seed is None else whole_number("seed", seed, least=0)
        with inference.evaluating(self.module):
            simulated, latent = simulate_replicate(self.module, cells, registry, adata.obs, seed)
        # Not set up anew: names and scales of the covariates are those of the data, and genes may be without counts.
        twin = type(self).__new__(type(self))
        twin._build(registry, self._options, seed)
        twin.adata = simulated
        given = {"enable_progress_bar": False, **(train_options or {})}
        if "max_epochs" not in given and self._history_rows:
            # Steps with residual factors come on top, half as many.
            with_factors = 0 if self._residual_test is None else self._residual_test.n_steps
            given.setdefault("max_steps", int(self._history_rows[-1]["step"]) - with_factors)
        twin.train(**given)
        twin.to_device(self.device)
        of_twin = twin._cells(None, None, None, False)[1]
        mean_counts = np.asarray(simulated.X.mean(axis=0), dtype=np.float64).ravel()
        self._replicate = Replicate(weights_hash(self.module), twin.module, of_twin, latent, mean_counts)
        with inference.evaluating(self.module):
            return measured_calibration(self.module, self._replicate, in_batches([]))

    def counterfactual(
        self,
        set: Mapping[str, str | float],
        adata: AnnData | None = None,
        indices: CellSelection | None = None,
        gene_list: GeneSelection | None = None,
        *,
        library_size: float | Literal["latent"] = 1.0,
        level: float = 0.9,
        shift_within: str | None = None,
        n_samples: int = 1,
        batch_size: int | None = None,
        seed: int = 0,
        fill_missing_genes: bool = False,
        key_added: str | None = "scvae_counterfactual",
        write_subset: bool = False,
    ) -> Counterfactual:
        r"""Predict what cells would express if covariates were set to other values.

        The state z and the noise u of each cell are abducted from what was seen, covariates are set in the decoder, and
        expression and counts predicted (Pearl, Causality, 2009, section 7.1):

        .. math:: z \sim q(z \mid x), \quad u \mid x, z \sim \operatorname{Gamma}(\theta + x, \theta + \ell\rho), \quad
                  \rho' = \operatorname{decoder}(z, s'), \quad x' \mid u \sim \operatorname{Poisson}(\ell \rho' u)

        Molecules that were seen are kept where expression does not fall, and thinned where it does.

        This holds if covariates act as interventions would, with nothing unmeasured behind both setting and expression,
        and if z is what the intervention leaves as it is. Two things can be checked and are: whether each cell's state
        was seen under the setting, and whether z knows the setting (:func:`~scvae_ext.analysis.setting_overlap`).

        Parameters
        ----------
        set
            Value by covariate: the batch key, a categorical or a continuous covariate. Others stay as observed.
        adata, indices, batch_size, fill_missing_genes, write_subset
            As for :meth:`get_latent_representation`.
        gene_list, library_size
            As for :meth:`get_normalized_expression`.
        level
            Share of true values that intervals of expression are to hold, as :meth:`calibrate_intervals` finds it: the
            first call after a training trains a second model.
        shift_within
            Column of ``adata.obs`` with groups of comparable cells, cell types for example. States are then moved by
            the mean difference between those of a group under the setting and those under the cell's own: what the
            state knows of the setting is carried over as well (latent arithmetic, as in Lotfollahi et al., Nature
            Methods 16, 715, 2019). Cells of a group that was not seen under both get an average over the groups that
            were, in which those with like states weigh most. Intervals do not hold the error of that shift.
        n_samples, seed
            Number of draws of the counts, and their seed.
        key_added
            Key of ``adata.layers`` (``adata.obsm`` where only some genes are asked for) for ``_lower``, ``_median`` and
            ``_upper``, and of ``adata.obs`` for ``_supported``; ``None`` writes nothing.

        Returns
        -------
        Counterfactual
            Expression with intervals, draws of counts, and the checks.

        Raises
        ------
        ValueError
            If a covariate or category is unknown; the message lists what exists.

        Examples
        --------
        >>> import scvae_ext as sv
        >>> adata = sv.datasets.synthetic_counts(200, 50, n_batches=2)
        >>> sv.SCVAE.setup_anndata(adata, batch_key="batch")
        >>> model = sv.SCVAE(adata)
        >>> model.train(max_epochs=5, enable_progress_bar=False)
        >>> model.counterfactual({"batch": "batch_1"}).median.shape
        (200, 50)
        """
        adata, cells = self._cells(adata, indices, batch_size, fill_missing_genes)
        refuse_without_counts(self.module)
        setting = read_setting("set", set, self.registry)
        genes = select_genes(gene_list, self.registry.var_names)
        depth: float | Literal["latent"] = (
            "latent" if library_size == "latent" else positive_number("library_size", library_size)
        )
        level, n_samples = interval_level(level), whole_number("n_samples", n_samples)
        replicate, own = self._refitted(), self._cells(None, None, None, False)[1]
        with inference.evaluating(self.module):
            calibration = measured_calibration(self.module, replicate, setting.targets)
            shift = None
            if shift_within is not None:
                known, asked = self._comparable(own, adata, cells, shift_within)
                shift = state_shift(known, setting, asked, cells.positions)
            ends = expression_interval(self.module, cells, setting.targets, genes, depth, calibration, level, shift)
            counts = abducted_counts(self.module, cells, setting, genes, n_samples, seed, shift)
            shifts = None if shift is None else [shift]
            overlap = overlap_with(self.module, own, [setting], cells, seed, shifts)[0]
        names = self._gene_names(genes)
        record = {"set": dict(set), "level": level, "library_size": depth, "shift_within": shift_within}
        self._write_ends(adata, key_added, ends, names, cells, write_subset, record)
        if key_added is not None:
            supported = overlap.is_supported.astype(np.float32)
            self._write(adata, "obs", f"{key_added}_supported", supported, cells, write_subset, record)
        obs_names = cells.source.obs_names[cells.positions]
        return Counterfactual(dict(set), *ends, level, counts, overlap, obs_names, pd.Index(names))

    def counterfactual_effect(
        self,
        control: Mapping[str, str | float],
        treated: Mapping[str, str | float],
        adata: AnnData | None = None,
        indices: CellSelection | None = None,
        groupby: str | None = None,
        gene_list: GeneSelection | None = None,
        *,
        level: float = 0.9,
        shift_within: str | None = None,
        n_samples: int = 10,
        batch_size: int | None = None,
        seed: int = 0,
        fill_missing_genes: bool = False,
    ) -> CounterfactualEffect:
        r"""Compare the expression of the same cells under two settings, gene by gene.

        .. math:: \text{lfc}_g = \log_2 \frac{\sum_n \mathbb E_{q(z_n \mid x_n)}[\rho_g(z_n, s_\text{treated})]}
                  {\sum_n \mathbb E_{q(z_n \mid x_n)}[\rho_g(z_n, s_\text{control})]}

        over the cells of a group, whatever setting they were observed in. Intervals hold the effect on these cells, not
        that on others of their kind; they are as wide as the errors of a second model that is fitted to counts
        simulated from this one, by bins of genes. Assumptions and checks are those of :meth:`counterfactual`.

        Parameters
        ----------
        control, treated
            Value by covariate, as for :meth:`counterfactual`; the same covariates in both.
        adata, indices, batch_size, fill_missing_genes
            As for :meth:`get_latent_representation`.
        groupby
            Column of ``adata.obs`` with groups to compare within; all cells together where ``None``.
        gene_list
            Genes, in this order; all where ``None``.
        level
            Share of true effects that intervals are to hold.
        shift_within
            As for :meth:`counterfactual`; here intervals hold the error of the shift as well.
        n_samples, seed
            Samples of the posterior, and their seed.

        Returns
        -------
        CounterfactualEffect
            Nothing is written.

        Raises
        ------
        ValueError
            If a covariate, category or column is unknown, or the two settings set different covariates.
        """
        is_own = adata is None or adata is self._adata
        adata, cells = self._cells(adata, indices, batch_size, fill_missing_genes)
        refuse_without_counts(self.module)
        settings = [read_setting("control", control, self.registry), read_setting("treated", treated, self.registry)]
        if sorted(control) != sorted(treated):
            raise ValueError(
                f"control sets {sorted(control)}, but treated sets {sorted(treated)}: set the same covariates in both."
            )
        genes = select_genes(gene_list, self.registry.var_names)
        level, n_samples = interval_level(level), whole_number("n_samples", n_samples)
        groups, group_of_cell = groups_of_cells(adata, groupby, cells)
        replicate, own = self._refitted(), self._cells(None, None, None, False)[1]
        with inference.evaluating(self.module):
            known = shifts = None
            if shift_within is not None:
                known, asked = self._comparable(own, adata, cells, shift_within)
                shifts = [state_shift(known, setting, asked, cells.positions) for setting in settings]
            means, lfc, half_width = effect_of_settings(
                self.module,
                cells,
                settings,
                group_of_cell,
                len(groups),
                replicate,
                level,
                n_samples,
                seed,
                is_own,
                known=known,
                shifts=shifts,
            )
            overlaps = overlap_with(self.module, own, settings, cells, seed, shifts)
        chosen = slice(None) if genes is None else genes
        return CounterfactualEffect(
            control=dict(control),
            treated=dict(treated),
            mean_control=means[0][:, chosen],
            mean_treated=means[1][:, chosen],
            lfc=lfc[:, chosen],
            half_width=half_width[:, chosen],
            level=level,
            groups=groups,
            n_cells=np.bincount(group_of_cell, minlength=len(groups)),
            overlap_control=overlaps[0],
            overlap_treated=overlaps[1],
            group_of_cell=groups.to_numpy()[group_of_cell],
            var_names=pd.Index(self._gene_names(genes)),
        )

    def _comparable(
        self, own: inference.Cells, adata: AnnData, cells: inference.Cells, shift_within: str
    ) -> tuple[GroupedStates, GroupedStates]:
        """Return the model's own cells, and all of another source, by groups of comparable ones."""
        known = grouped_states(self.module, own, self.adata, shift_within)
        return known, known if adata is self.adata else grouped_states(self.module, cells, adata, shift_within)

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

    def generate(
        self,
        n_obs: int = 1000,
        *,
        like: SourceOfStates | None = None,
        adata: AnnData | None = None,
        indices: CellSelection | None = None,
        groupby: str | None = None,
        group: str | Sequence[str] | None = None,
        set: Mapping[str, str | float] | None = None,
        library_size: float | Sequence[float] | np.ndarray | Literal["fitted", "observed"] = "fitted",
        batch_size: int | None = None,
        seed: int = 0,
        fill_missing_genes: bool = False,
    ) -> AnnData:
        r"""Make new cells: draw states, covariates and library sizes, and counts from the likelihood there.

        .. math:: z \sim p(z) \text{ or } \tfrac1N \sum_n q(z \mid x_n), \quad
                  \ell \sim p(\ell \mid z, s), \quad x \sim p(x \mid z, s, \ell)

        The prior is what training pulls states towards, not where they end: with the standard normal prior the mixture
        of the posteriors of all cells differs from it (``diagnostics.posterior_collapse`` says by how much), and cells
        drawn from it can lie between types. ``like="cells"`` draws from that mixture: new cells in the states, and with
        the covariates, of cells that were seen.

        Parameters
        ----------
        n_obs
            Number of new cells.
        like
            ``"prior"``, also a learned one, or ``"cells"``: a random cell's posterior for each new cell. By default
            the latter where cells or groups are named, and the prior otherwise.
        adata
            AnnData with the cells that lend states and covariates; the model's own where ``None``.
        indices
            Cells to draw like: positions, a mask or names; all where ``None``.
        groupby, group
            Column of ``adata.obs``, and one or several of its groups to draw like, at their frequencies; all cells that
            have a group where ``group`` is ``None``.
        set
            Value by covariate, as for :meth:`counterfactual`: new cells are decoded with it. Covariates that are not
            set are those of a random cell, all of one cell: of the one that lends its state, or with the prior of one
            that was seen under what is set, if there is any.
        library_size
            ``"fitted"``: drawn from a distribution given batch and state that is fitted to the cells of ``adata``
            (:func:`~scvae_ext.analysis.fit_library_sizes`), or from that of a model whose library size is latent.
            ``"observed"``: that of the cell that lends its covariates. A number, or one for each new cell, in counts.
            With size factors, those of the same cells are used.
        batch_size
            Cells decoded at once.
        seed
            Seed of all draws.
        fill_missing_genes
            As for :meth:`get_latent_representation`.

        Returns
        -------
        anndata.AnnData
            Set up as the model's own. ``X`` (and the layer that counts are in): whole numbers, sparse, float32.
            ``obs``: the covariates; ``scvae_library_size``, what each cell was decoded with, in counts (its total
            scatters around that); ``scvae_source``, the cell that lent state or covariates; ``scvae_source_group``, its
            group. ``obsm["X_scvae"]``: the latent point that each cell was decoded from, not an encoding of its counts.
            Its provenance is in ``uns["scvae_ext"]``.

        Raises
        ------
        RuntimeError
            If the model has not been trained.
        ValueError
            If a group, a cell or a covariate is unknown, or ``like="prior"`` is given cells.

        Examples
        --------
        >>> import scvae_ext as sv
        >>> adata = sv.datasets.synthetic_counts(200, 50, n_batches=2)
        >>> sv.SCVAE.setup_anndata(adata, batch_key="batch")
        >>> model = sv.SCVAE(adata)
        >>> model.train(max_epochs=5, enable_progress_bar=False)
        >>> cells = model.generate(30, groupby="cell_type", group="type_1", set={"batch": "batch_0"})
        >>> cells.shape, cells.obs["scvae_source_group"].unique().tolist(), cells.obs["batch"].unique().tolist()
        ((30, 50), ['type_1'], ['batch_0'])
        """
        adata, cells = self._cells(adata, indices, batch_size, fill_missing_genes)
        n_obs, seed = whole_number("n_obs", n_obs), whole_number("seed", seed, least=0)
        names_cells = indices is not None or groupby is not None or group is not None
        like = ("cells" if names_cells else "prior") if like is None else like
        if like not in get_args(SourceOfStates):
            raise ValueError(f'like={like!r} is not known: use "prior", or "cells" for states of cells that were seen.')
        if like == "prior" and names_cells:
            raise ValueError('like="prior" draws from no cells: leave indices, groupby and group out, or like="prior".')
        pool = cells.positions
        groups = None
        if groupby is not None or group is not None:
            groups = cells_of_groups(adata.obs, groupby, group)
            pool = pool[groups.notna().to_numpy()[pool]]
            if not len(pool):
                raise ValueError(f"None of the chosen cells is in group={group!r} of adata.obs[{groupby!r}].")
        setting = None if set is None else read_setting("set", set, self.registry)
        if like == "prior" and setting is not None:
            seen = pool[setting.is_observed(cells.source)[pool]]
            pool = seen if len(seen) else pool
        sources = np.random.default_rng(seed).choice(pool, n_obs)
        everything = inference.Cells(cells.source, np.arange(cells.source.n_cells), self.device, batch_size)
        with inference.evaluating(self.module):
            depth = self._depth_of_new_cells(library_size, n_obs, everything, seed)
            lenders = inference.Cells(cells.source, sources, self.device, batch_size)
            drawn = draw_cells(self.module, lenders, like, setting, depth, seed)
        columns = {"scvae_source": cells.source.obs_names[sources].to_numpy()}
        if groups is not None:
            columns["scvae_source_group"] = groups.iloc[sources].cat.remove_unused_categories().to_numpy()
        generated = as_anndata(drawn, self.registry, self.latent_key, columns)
        write_registry(generated, self.registry)
        fitted = depth.fitted
        record = {
            "like": like,
            "groupby": groupby,
            "groups": None if groups is None else sorted({str(name) for name in columns["scvae_source_group"]}),
            "set": None if set is None else dict(set),
            "library_size": depth.kind if fitted is None else fitted.to_frame().to_dict("records"),
            "seed": seed,
        }
        record_result(generated, "X", self._provenance(record))
        return generated

    def _depth_of_new_cells(self, library_size: Any, n_obs: int, cells: inference.Cells, seed: int) -> Depth:
        """Resolve where library sizes of new cells come from."""
        is_default = isinstance(library_size, str) and library_size == "fitted"
        if self.registry.size_factor_key is not None:
            if not is_default:
                raise ValueError(
                    f"library_size={library_size!r} has no meaning with size_factor_key="
                    f"{self.registry.size_factor_key!r}, whose factors take its place: leave it out."
                )
            return Depth("observed")
        if is_default:
            has_own = not self._options["use_observed_lib_size"]
            return Depth("fitted", None if has_own else fitted_depth(self.module, cells, seed))
        if isinstance(library_size, str):
            if library_size != "observed":
                raise ValueError(
                    f'library_size={library_size!r} is not known: use "fitted", "observed", or a number of counts.'
                )
            return Depth("observed")
        sizes = np.asarray(library_size, dtype=np.float64)
        if sizes.ndim > 1 or sizes.shape not in ((), (n_obs,)) or not (np.isfinite(sizes) & (sizes > 0)).all():
            raise ValueError(
                f"library_size={library_size!r} must be a positive number of counts, or one for each of the {n_obs} "
                "new cells."
            )
        return Depth("given", given=np.broadcast_to(sizes, (n_obs,)).copy())

    def differential_expression(
        self,
        adata: AnnData | None = None,
        groupby: str | None = None,
        group1: str | Sequence[str] | None = None,
        group2: str | None = None,
        idx1: CellSelection | str | None = None,
        idx2: CellSelection | str | None = None,
        mode: DifferentialMode = "change",
        delta: float | None = 0.25,
        batch_size: int | None = None,
        all_stats: bool = True,
        batch_correction: bool = False,
        batchid1: Sequence[str] | None = None,
        batchid2: Sequence[str] | None = None,
        fdr_target: float = 0.05,
        *,
        sample_key: str | None = None,
        layer: str | None = None,
        n_samples: int = 1,
        n_samples_overall: int = 500,
        test_mode: TestMode = "three",
        cred_interval_lvls: Sequence[float] | None = None,
        seed: int = 0,
        fill_missing_genes: bool = False,
        key_added: str | None = "rank_genes_groups",
    ) -> pd.DataFrame:
        r"""Find the genes that differ between groups of cells.

        In mode ``"change"`` the log2 fold change of the *mean* expression of two groups is inferred. The mean of a
        group is that of the model, :math:`\bar\rho^*`, times the ratio of observed to expected counts, so that a gene
        whose decoded expression differs only because cells differ in other genes is not taken to differ. Its error
        comes from the spread between cells, or with ``sample_key`` from the spread between samples: that of the
        posterior alone does not know of the model's error, and lists chosen by it hold many false discoveries. A prior
        that all genes share shrinks fold changes; genes are flagged so that the false discovery rate to be expected
        under the posterior is ``fdr_target``. For zero-inflated likelihoods the extra zeros count as part of the mean.

        Mode ``"vanilla"`` gives the probability that expression in a random cell of group one is above that in a
        random cell of group two. It describes cells and is no test of means; scvi-tools uses it by default.

        Parameters
        ----------
        adata, batch_size, fill_missing_genes
            As for :meth:`get_latent_representation`.
        groupby
            Column of ``adata.obs`` with groups.
        group1
            One or several groups; all where ``None``, of which those with fewer than three cells are left out.
        group2
            Group to compare each of them with; all other cells where ``None``.
        idx1, idx2
            Cells in place of groups: positions, a mask, names, or a query of ``adata.obs`` as
            :meth:`pandas.DataFrame.query` takes it. Without ``idx2`` all other cells.
        mode
            ``"change"`` or ``"vanilla"``.
        delta
            Log2 fold change, up or down, above which a gene counts as different; 0 for any difference, which is what
            rank tests ask for. ``None`` takes 0.6 times the mean absolute fold change of the genes that differ under
            the fitted prior, and no less than 0.1.
        all_stats
            Whether to add means of the raw counts.
        batch_correction
            Whether to compare cells as if all were measured in the same batches, rather than each in its own: by
            ``batchid1`` (``batchid2`` must name the same ones), or by all.
        batchid1, batchid2
            Batches to average over.
        fdr_target
            False discovery rate of the genes that are flagged.
        sample_key
            Column of ``adata.obs`` with the sample (donor, animal) of each cell. Samples then are the replicates: the
            result speaks of new samples rather than of new cells of the same ones. Samples with cells of both groups
            are compared within themselves. Two are needed at least; six or more make sense.
        layer
            Layer of ``adata`` (``"X"`` for ``adata.X``) whose other genes are compared as well, those that the model
            was not trained on. Their expression is a linear function of the decoder's hidden layer, fitted to their
            counts in this layer by one pass over the cells; depth stays that of the model's genes. ``None`` compares
            the model's genes alone.
        n_samples
            Draws of the posterior that the expression of a cell is averaged over; one is the mean of the posterior.
        n_samples_overall
            Cells drawn from each group in mode ``"vanilla"``; all pairs are compared.
        test_mode
            ``"three"``: the likelier of up and down; ``"two"``: both together.
        cred_interval_lvls
            Probabilities of credible intervals of the log2 fold change to add.
        seed
            Seed of draws.
        key_added
            Key of ``adata.uns`` for the structure of :func:`scanpy.tl.rank_genes_groups`, so that
            :func:`scanpy.get.rank_genes_groups_df` and scanpy's plots read it; ``None`` writes nothing.

        Returns
        -------
        pandas.DataFrame
            Genes of each comparison by descending probability, with columns named as in scvi-tools: ``proba_de``,
            ``proba_not_de``, ``bayes_factor`` (natural logarithm of the odds), ``scale1`` and ``scale2`` (mean
            expression per unit of depth), ``delta``, ``lfc_mean``, ``lfc_median``, ``lfc_std`` (posterior of the log2
            fold change of group one over group two), ``lfc_min`` and ``lfc_max`` (ends of its central 99.9%),
            ``expected_fdr`` (of the list down to this gene), ``raw_mean1`` and ``raw_mean2`` (counts a cell),
            ``non_zeros_proportion1``, ``raw_normalized_mean1`` (counts per 10,000), ``is_de_fdr_0.05``,
            ``comparison``, ``group1``, ``group2``. Mode ``"vanilla"``: ``proba_m1``, ``proba_m2`` in place of the
            first and of the fold changes.

        Raises
        ------
        RuntimeError
            If the model has not been trained.
        ValueError
            If a column, a group, a batch or cells do not exist, groups overlap, or one has fewer than three cells (or
            two samples); the message lists what exists.

        Warns
        -----
        UserWarning
            If groups are too small, or samples have cells of one group only.
        """
        adata, cells = self._cells(adata, None, batch_size, fill_missing_genes)
        cells.source.require_counts(self._options["gene_likelihood"])
        options = ChangeOptions(
            mode,
            delta,
            fdr_target,
            test_mode,
            tuple(cred_interval_lvls or ()),
            self._batches_to_compare(true_or_false("batch_correction", batch_correction), batchid1, batchid2),
            true_or_false("all_stats", all_stats),
            whole_number("n_samples", n_samples),
            whole_number("n_samples_overall", n_samples_overall),
            whole_number("seed", seed, least=0),
        )
        groups = select_groups(adata.obs, groupby, group1, group2, idx1, idx2)
        if sample_key is not None and mode == "vanilla":
            raise ValueError('sample_key has no meaning in mode="vanilla", which compares cells: use mode="change".')
        units = make_units(groups, None if sample_key is None else select_samples(adata.obs, sample_key))
        names = list(self.registry.var_names)
        with inference.evaluating(self.module):
            others = None
            if layer is not None:
                others = fit_other_genes(self.module, cells, adata, layer, self.registry.var_names)
                names += others.names
            tables = compare_groups(self.module, cells, groups, units, options, others)
        tables = {group: table.set_axis(names) for group, table in tables.items()}
        arguments = {
            "groupby": groupby,
            "group1": list(tables),
            "group2": group2,
            "mode": mode,
            "delta": delta,
            "batches": [self.registry.batch_categories[batch] for batch in options.batches] or None,
            "fdr_target": fdr_target,
            "sample_key": sample_key,
            "layer": layer,
            "n_samples": n_samples,
            "seed": seed,
        }
        if key_added is not None:
            write_ranking(adata, key_added, tables, self._provenance(arguments))
        return sorted_table(tables)

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
        with inference.evaluating(self.module):
            values = gene_correlation(self.module, cells, batches, genes, **options)
        names = self._gene_names(genes)
        frame = pd.DataFrame(values, index=names, columns=names)
        if key_added is not None and genes is None:
            record = {**options, "transform_batch": transform_batch, "n_cells": len(cells)}
            write_gene_pairs(adata, key_added, frame, self._provenance(record))
        return frame

    def differential_abundance(
        self,
        adata: AnnData | None = None,
        sample_key: str | None = None,
        batch_size: int | None = None,
        num_cells_posterior: int | None = None,
        *,
        indices: CellSelection | None = None,
        groupby: str | None = None,
        group1: str | None = None,
        group2: str | None = None,
        bandwidth: float = 1.0,
        seed: int = 0,
        fill_missing_genes: bool = False,
        key_added: str | None = "scvae_abundance",
        write_subset: bool = False,
    ) -> DifferentialAbundance:
        r"""Ask in which samples the state of each cell is frequent, and whether it is more so in a group of samples.

        .. math:: \log \int q(z \mid x_n)\, q_s(z)\, dz, \qquad q_s(z) = \frac1{N_s} \sum_{m \in s} q(z \mid x_m)

        with the cell itself left out of its own sample's aggregated posterior. Averaging over the cell's posterior, and
        not at its mean as in scvi-tools, about doubles the variance of the kernel, in which more cells take part. With
        ``groupby`` the ratio of two groups of samples follows (:func:`~scvae_ext.analysis.abundance_ratio`), whose
        standard error is that between samples. Shares of a sample sum to one: where a type is more frequent by a
        factor, all others are less frequent.

        Parameters
        ----------
        adata, indices, batch_size, fill_missing_genes, write_subset
            As for :meth:`get_latent_representation`. Densities are made of all cells of ``adata``.
        sample_key
            Column of ``adata.obs`` with the sample (donor, animal) of each cell.
        num_cells_posterior
            Cells of a sample that its density is made of, drawn at random where it has more; all where ``None``. Time
            grows with cells times these cells.
        groupby
            Column of ``adata.obs`` with a group of each sample, as a condition is.
        group1, group2
            Group, and the one to compare it with; all other samples where ``None``.
        bandwidth
            Factor on the standard deviations of the kernel. More than one smooths: less noise, and a ratio closer to
            zero where states of different frequency are neighbours.
        seed
            Of the draw of cells.
        key_added
            Key of ``adata.obsm`` for the log densities (a data frame), and of ``adata.obs``, with ``_log_ratio`` and
            ``_error`` appended; ``None`` writes nothing.

        Returns
        -------
        DifferentialAbundance
            Log density of cells in samples, in nats of the latent space, and log ratio (natural) with its standard
            error. Not a number: the error where a group has one sample. Minus infinity: where a sample has no other
            cell.

        Raises
        ------
        ValueError
            If a column or a group does not exist, or a sample has several groups; the message lists what exists.
        """
        adata, cells = self._cells(adata, indices, batch_size, fill_missing_genes)
        if sample_key is None:
            listed = ", ".join(map(repr, adata.obs.columns))
            raise ValueError(f"sample_key is missing: name the column of adata.obs with the samples ({listed}).")
        codes, names = select_samples(adata.obs, sample_key)
        compared = None
        if groupby is not None:
            compared = groups_of_samples(adata.obs, codes, names, groupby, group1, group2)
        elif group1 is not None or group2 is not None:
            raise ValueError("group1 and group2 need groupby=..., the column of adata.obs that they are groups of.")
        most = None if num_cells_posterior is None else whole_number("num_cells_posterior", num_cells_posterior)
        bandwidth = positive_number("bandwidth", bandwidth)
        with inference.evaluating(self.module):
            log_prob, n_cells, sizes = sample_log_prob(self.module, cells, codes, names, most, bandwidth, seed)
        ratio = None if compared is None else abundance_ratio(log_prob, n_cells, *compared)
        record = {"sample_key": sample_key, "num_cells_posterior": most, "bandwidth": bandwidth, "seed": seed}
        self._write(adata, "obsm", key_added, log_prob, cells, write_subset, record, names)
        if ratio is not None:
            record |= {"groupby": groupby, "group1": ratio.group1, "group2": ratio.group2}
            columns = {"log_ratio": ratio.log_ratio, "error": ratio.standard_error}
            self._write_columns(adata, key_added, columns, cells, write_subset, record)
        obs_names = cells.source.obs_names[cells.positions]
        return DifferentialAbundance(pd.DataFrame(log_prob, index=obs_names, columns=list(names)), sizes, ratio)

    def get_cell_uncertainty(
        self,
        adata: AnnData | None = None,
        indices: CellSelection | None = None,
        batch_size: int | None = None,
        *,
        labels_key: str | None = None,
        n_neighbors: int = 15,
        n_samples: int = 30,
        seed: int = 0,
        fill_missing_genes: bool = False,
        key_added: str | None = "scvae_uncertainty",
        write_subset: bool = False,
    ) -> pd.DataFrame:
        r"""Return what the counts of each cell leave open about its state, and about its label.

        The posterior is the encoder's, which has learned from the cells of its training how depth narrows it: of cells
        that are much shallower than those it is too sure. ``laplace_entropy`` asks the decoder alone.

        Parameters
        ----------
        adata, indices, batch_size, fill_missing_genes, write_subset
            As for :meth:`get_latent_representation`.
        labels_key
            Column of ``obs`` of the model's AnnData with labels of its cells; ``None`` leaves out what is said of them.
        n_neighbors
            Neighbours of each draw, among the labelled cells of the model's AnnData.
        n_samples, seed
            Draws of each cell's posterior for the labels, and their seed.
        key_added
            Prefix of the columns of ``adata.obs`` (all but ``label``); ``None`` writes nothing.

        Returns
        -------
        pandas.DataFrame
            A row a cell. ``entropy``: that of the posterior, :math:`\frac12\sum_d\log(2\pi e\,\sigma_d^2)`, nats;
            higher is less sure. ``information``: by how much the posterior is narrower than the spread of all cells of
            the model's AnnData, nats; about zero where the counts say nothing. ``laplace_entropy``: entropy in nats
            of the Gaussian whose precision is the Fisher information of the decoder at the posterior mean, and one for
            the prior. With labels ``label_entropy``: entropy
            in nats of the labels among the neighbours of draws of the posterior, the cell itself left out;
            ``label_probability`` and ``label``: share of the most frequent of them, and which it is.

        Raises
        ------
        ValueError
            If the model has no AnnData, the column does not exist, or too few cells have a label.
        """
        is_own = adata is None or adata is self._adata
        adata, cells = self._cells(adata, indices, batch_size, fill_missing_genes)
        known = self._cells(None, None, batch_size, False)[1]
        labels = None if labels_key is None else select_labels(self.adata.obs, labels_key)
        n_neighbors, n_samples = whole_number("n_neighbors", n_neighbors), whole_number("n_samples", n_samples)
        with inference.evaluating(self.module):
            frame = cell_uncertainty(self.module, cells, known, labels, is_own, n_neighbors, n_samples, seed)
        record = {"labels_key": labels_key, "n_neighbors": n_neighbors, "n_samples": n_samples, "seed": seed}
        columns = {str(name): frame[name].to_numpy() for name in frame if name != "label"}
        self._write_columns(adata, key_added, columns, cells, write_subset, record)
        return frame

    def get_novelty(
        self,
        adata: AnnData | None = None,
        indices: CellSelection | None = None,
        batch_size: int | None = None,
        *,
        n_replicates: int = 50,
        n_samples: int = 5,
        bandwidth: float = 1.0,
        seed: int = 0,
        fill_missing_genes: bool = False,
        key_added: str | None = "scvae_novelty",
        write_subset: bool = False,
    ) -> Novelty:
        r"""Ask of each cell how improbable it is, by its counts and by its state.

        *Counts.* The ELBO, an estimate of :math:`\log p(x)`, falls with the number of counts, whatever the cell. It is
        compared with that of ``n_replicates`` cells drawn from the model with the cell's library size, batch and
        covariates, and states drawn from the posteriors of the model's cells
        (:func:`~scvae_ext.analysis.replicate_test`). *State.* The density of the cell's state among the cells of the
        model's AnnData, itself left out, as in :meth:`differential_abundance`; p is its rank among theirs.

        Parameters
        ----------
        adata, indices, batch_size, fill_missing_genes, write_subset
            As for :meth:`get_latent_representation`. What is drawn depends on them.
        n_replicates
            Cells drawn for each cell, ten at least; ``elbo_p`` is no smaller than 1 / (``n_replicates`` + 1).
        n_samples
            Samples of the posterior for each ELBO.
        bandwidth
            As for :meth:`differential_abundance`.
        seed
            Seed of all draws.
        key_added
            Prefix of the columns of ``adata.obs``; ``None`` writes nothing.

        Returns
        -------
        Novelty
            ``elbo``, ``expected_elbo`` and ``latent_log_density`` in nats, ``elbo_z`` in standard deviations,
            ``elbo_p``, ``latent_p`` and ``p``, twice the smaller of the two. A low z, density or p is novel.

        Raises
        ------
        ValueError
            If the model has no AnnData or no likelihood of counts, or ``n_replicates`` is below ten.
        """
        is_own = adata is None or adata is self._adata
        adata, cells = self._cells(adata, indices, batch_size, fill_missing_genes)
        refuse_without_counts(self.module)
        known = self._cells(None, None, batch_size, False)[1]
        numbers: dict[str, Any] = {
            "n_replicates": whole_number("n_replicates", n_replicates, least=10),
            "n_samples": whole_number("n_samples", n_samples),
            "bandwidth": positive_number("bandwidth", bandwidth),
            "seed": whole_number("seed", seed, least=0),
        }
        with inference.evaluating(self.module):
            result = novelty_of_cells(self.module, cells, known, is_own, **numbers)
        frame = result.to_frame()
        columns = {str(name): frame[name].to_numpy() for name in frame}
        self._write_columns(adata, key_added, columns, cells, write_subset, numbers)
        return result

    def _batches_to_compare(
        self, correction: bool, batchid1: Sequence[str] | None, batchid2: Sequence[str] | None
    ) -> list[int]:
        """Return the batches to decode all cells in, none for the observed ones."""
        chosen = [
            select_options(name, asked, self.registry.batch_categories, self.registry.batch_key)
            for name, asked in (("batchid1", batchid1), ("batchid2", batchid2))
        ]
        if not correction:
            if chosen[0] or chosen[1]:
                raise ValueError("batchid1 and batchid2 need batch_correction=True.")
            return []
        if batchid1 is not None and batchid2 is not None and sorted(chosen[0]) != sorted(chosen[1]):
            raise ValueError(
                f"batchid1={list(batchid1)!r} and batchid2={list(batchid2)!r} differ: groups decoded in different "
                "batches would differ by batch. Name the same ones."
            )
        return chosen[0] or chosen[1] or list(range(len(self.registry.batch_categories)))

    def _refitted(self) -> Replicate:
        """Return the second model that intervals are calibrated by, trained now where these weights have none."""
        if self._replicate is None or self._replicate.weights != weights_hash(self.module):
            self.calibrate_intervals()
        assert self._replicate is not None
        return self._replicate

    def _gene_names(self, genes: Int[np.ndarray, "chosen"] | None) -> list[str]:
        names = self.registry.var_names
        return list(names) if genes is None else [names[gene] for gene in genes]

    def _write_ends(
        self,
        adata: AnnData,
        key: str | None,
        ends: Sequence[Float[np.ndarray, "cells chosen"]],
        names: Sequence[str],
        cells: inference.Cells,
        write_subset: bool,
        arguments: Mapping[str, Any],
    ) -> None:
        """Write lower end, median and upper end of an interval."""
        for name, values in zip(("lower", "median", "upper"), ends, strict=True):
            of_end = None if key is None else f"{key}_{name}"
            self._write_expression(adata, of_end, values, names, cells, write_subset, arguments)

    def _write_columns(
        self,
        adata: AnnData,
        key: str | None,
        columns: Mapping[str, Float[np.ndarray, "cells"]],
        cells: inference.Cells,
        write_subset: bool,
        arguments: Mapping[str, Any],
    ) -> None:
        """Write values of cells into columns of ``obs`` with a common prefix."""
        for name, values in columns.items():
            of_column = None if key is None else f"{key}_{name}"
            self._write(adata, "obs", of_column, values, cells, write_subset, arguments)

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


def _prior_components(options: Mapping[str, Any]) -> dict[str, Any]:
    """Check the number of Gaussians of the prior; models saved before there was a choice have neither option."""
    prior, n_components = options.get("prior", "standard"), options.get("n_prior_components")
    if n_components is None:
        return {}
    if prior == "standard":
        raise ValueError(
            f'n_prior_components={n_components!r} has no meaning for prior="standard": leave it out, or pass '
            'prior="mixture" or prior="vamp".'
        )
    return {"n_prior_components": whole_number("n_prior_components", n_components)}


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
