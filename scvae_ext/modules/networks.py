"""What a variational autoencoder of counts is made of."""

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import MixtureSameFamily, Normal
from typing_extensions import override

from scvae_ext.likelihoods import GeneLikelihood, GeneStatistics, make_likelihood
from scvae_ext.minibatch import Minibatch, SparseCounts
from scvae_ext.modules.accessibility import AccessibilityModality
from scvae_ext.modules.label_prior import LabelPrior
from scvae_ext.modules.modality import Modality
from scvae_ext.modules.prior import LearnedPrior, MixturePrior, PriorKind, VampPrior
from scvae_ext.modules.proteins import ProteinModality
from scvae_ext.modules.trainable import Trainable
from scvae_ext.nn import (
    MLP,
    BatchRepresentation,
    CovariateColumns,
    DispersionKind,
    Encoder,
    LibraryEncoder,
    LinearDecoder,
    Loadings,
    MeanHead,
    Normalisation,
    ZeroInflationKind,
    with_further_inputs,
)
from scvae_ext.types import CellIndices, CellValues

__all__ = ["DecoderKind", "LatentDistribution", "Networks"]

LatentDistribution = Literal["normal", "ln"]
DecoderKind = Literal["nonlinear", "linear"]

MIN_LIBRARY_VARIANCE = 1e-4
N_PRIOR_COMPONENTS = 20


class Networks(Trainable):
    r"""Encoder, prior, decoder and likelihood of a variational autoencoder, and how they start from data.

    Parameters
    ----------
    n_genes, n_batches, n_labels, n_categories, n_continuous
        What the data have; ``n_categories`` counts the categories of each categorical covariate.
    n_hidden, n_latent, n_layers
        Units of a hidden layer, latent dimensions, hidden layers of encoder and of decoder.
    dropout_rate
        Dropout of the encoder.
    dispersion, gene_likelihood, zero_inflation, zero_inflation_prior
        As for :func:`~scvae_ext.likelihoods.make_likelihood`.
    latent_distribution
        ``"normal"``, or ``"ln"``: the Gaussian sample is mapped onto the simplex by a softmax.
    use_observed_lib_size
        Whether the library size is the observed total or a latent variable with a log-normal prior.
    use_size_factor
        Whether size factors take the place of the library size.
    encode_covariates, deeply_inject_covariates, batch_representation
        Whether the encoder sees the covariates, whether every layer does, and how batches are represented.
    encoder_normalisation, decoder_normalisation
        ``"batch"``, ``"layer"`` or ``"none"``.
    prior
        ``"standard"`` normal, or a learned one: a ``"mixture"`` of Gaussians, or ``"vamp"``, a mixture of the
        posteriors of pseudo-cells.
    n_prior_components
        Number of Gaussians of a learned prior.
    residual_rank
        r, number of residual factors.
    decoder
        ``"nonlinear"``, a multilayer perceptron, or ``"linear"``: the heads read z and the covariates themselves.
    n_shifted_batches
        Number of batches, the last ones, that shift the log mean of each gene, and the log rate of each peak, by values
        of their own, past the hidden layers of a decoder that has some.
    proteins_measured
        For each batch, whether each protein was measured in it; ``None`` for genes alone.
    peaks_measured, n_peaks
        For each batch, whether accessibility of chromatin was measured in it, and the number of peaks; ``None`` for
        genes alone.
    n_known_labels
        Number of labels that the Gaussians of the prior belong to, ``n_prior_components`` each; ``None`` for a prior
        that knows no labels.
    """

    library_log_means: Tensor
    library_log_variances: Tensor

    def __init__(
        self,
        n_genes: int,
        *,
        n_batches: int = 1,
        n_labels: int = 1,
        n_categories: Sequence[int] = (),
        n_continuous: int = 0,
        n_hidden: int = 128,
        n_latent: int = 10,
        n_layers: int = 1,
        dropout_rate: float = 0.1,
        dispersion: DispersionKind = "gene",
        gene_likelihood: GeneLikelihood = "nb",
        latent_distribution: LatentDistribution = "normal",
        use_observed_lib_size: bool = True,
        use_size_factor: bool = False,
        encode_covariates: bool = False,
        deeply_inject_covariates: bool = True,
        batch_representation: BatchRepresentation = "one-hot",
        encoder_normalisation: Normalisation = "batch",
        decoder_normalisation: Normalisation = "batch",
        prior: PriorKind = "standard",
        n_prior_components: int = N_PRIOR_COMPONENTS,
        zero_inflation: ZeroInflationKind = "gene-cell",
        zero_inflation_prior: Sequence[float] | None = None,
        residual_rank: int = 0,
        decoder: DecoderKind = "nonlinear",
        proteins_measured: Sequence[Sequence[bool]] | None = None,
        peaks_measured: Sequence[bool] | None = None,
        n_peaks: int | None = None,
        n_known_labels: int | None = None,
        n_shifted_batches: int = 0,
    ) -> None:
        super().__init__()
        if prior not in get_args(PriorKind):
            raise ValueError(f'prior={prior!r} is not known: use "standard", "mixture" or "vamp".')
        if latent_distribution not in get_args(LatentDistribution):
            raise ValueError(f'latent_distribution={latent_distribution!r} is not known: use "normal" or "ln".')
        if batch_representation not in get_args(BatchRepresentation):
            raise ValueError(
                f'batch_representation={batch_representation!r} is not known: use "one-hot" or "embedding".'
            )
        if decoder not in get_args(DecoderKind):
            raise ValueError(f'decoder={decoder!r} is not known: use "nonlinear" or "linear".')
        self.n_latent = n_latent
        self.residual_rank = residual_rank
        self.n_shifted_batches = 0 if decoder == "linear" else n_shifted_batches
        self.latent_distribution = latent_distribution
        self.encode_covariates = encode_covariates
        self.covariates = CovariateColumns(n_batches, n_categories, n_continuous, batch_representation)
        n_encoder_covariates = self.covariates.n_columns if encode_covariates else 0
        n_encoder_covariates += 0 if proteins_measured is None else len(proteins_measured[0])
        n_encoder_covariates += 0 if peaks_measured is None else n_hidden
        self.encoder = Encoder(
            n_genes,
            n_hidden,
            n_latent + residual_rank,
            n_layers,
            n_encoder_covariates,
            inject_everywhere=deeply_inject_covariates,
            normalisation=encoder_normalisation,
            dropout_rate=dropout_rate,
        )
        self.decoder: MLP | LinearDecoder = (
            LinearDecoder(n_latent, self.covariates.n_columns)
            if decoder == "linear"
            else MLP(
                n_latent,
                n_hidden,
                n_layers,
                self.covariates.n_columns,
                inject_everywhere=deeply_inject_covariates,
                normalisation=decoder_normalisation,
            )
        )
        self.likelihood = make_likelihood(
            gene_likelihood,
            self.decoder.n_out,
            n_genes,
            dispersion=dispersion,
            n_batches=n_batches,
            n_labels=n_labels,
            compositional=not use_size_factor,
            zero_inflation=zero_inflation,
            zero_inflation_prior=zero_inflation_prior,
            n_residual=residual_rank,
        )
        if isinstance(self.decoder, LinearDecoder):
            head = self.mean_head
            head.linear = Loadings(head.linear.in_features, n_genes)
        elif n_shifted_batches:
            self.mean_head.linear = with_further_inputs(self.mean_head.linear, self.decoder.n_out, n_shifted_batches)
        self.proteins = None if proteins_measured is None else ProteinModality(self.decoder.n_out, proteins_measured)
        self.accessibility: AccessibilityModality | None = None
        if peaks_measured is not None and n_peaks is not None:
            n_read = self.decoder.n_out + self.n_shifted_batches
            self.accessibility = AccessibilityModality(n_read, n_hidden, n_peaks, peaks_measured)
        self.library_encoder: LibraryEncoder | None = None
        if not use_observed_lib_size and not use_size_factor:
            self.library_encoder = LibraryEncoder(
                n_genes,
                n_hidden,
                n_encoder_covariates,
                normalisation=encoder_normalisation,
                dropout_rate=dropout_rate,
            )
            self.register_buffer("library_log_means", torch.zeros(n_batches))
            self.register_buffer("library_log_variances", torch.ones(n_batches))
        self.prior: LearnedPrior | None = None
        if n_known_labels is not None:
            self.prior = LabelPrior(n_known_labels, n_latent, n_prior_components)
        elif prior == "mixture":
            self.prior = MixturePrior(n_prior_components, n_latent, residual_rank)
        elif prior == "vamp":
            self.prior = VampPrior(n_prior_components, n_genes, n_encoder_covariates, residual_rank)

    def initialise(self, statistics: GeneStatistics) -> None:
        """Start the likelihood from moments of the data.

        Parameters
        ----------
        statistics
            Moments of each gene.
        """
        self.likelihood.initialise(statistics)

    def initialise_library(
        self, library_size: CellValues, batch: CellIndices, batches: Sequence[int] | None = None
    ) -> None:
        """Set the prior of each batch's log library size to the mean and variance observed in it.

        A batch without training cells gets those of all of them.

        Parameters
        ----------
        library_size, batch
            Total counts and batch of each training cell.
        batches
            Batches to set; the others keep the prior that they have. All where ``None``.
        """
        if self.library_encoder is None:
            return
        log_size = library_size.log()
        for row in range(len(self.library_log_means)) if batches is None else batches:
            of_batch = log_size[batch == row] if (batch == row).any() else log_size
            self.library_log_means[row] = of_batch.mean()
            # A batch whose cells all have one size still needs a proper prior.
            self.library_log_variances[row] = of_batch.var(correction=0).clamp_min(MIN_LIBRARY_VARIANCE)

    def initialise_prior(self, minibatch: Minibatch) -> None:
        """Start the pseudo-cells of the ``"vamp"`` prior from real cells; nothing to do for other priors.

        Parameters
        ----------
        minibatch
            As many cells as the prior has components.
        """
        if isinstance(self.prior, VampPrior):
            x, covariates = self._encoder_input(minibatch)
            self.prior.initialise(x.dense(), covariates)

    def pz(self) -> MixtureSameFamily | None:
        """Return p(z), or ``None`` for the standard normal, from which divergences have a closed form.

        It is that of samples as they are encoded: residual factors, if there are any, follow z, and are standard
        normal.
        """
        return None if self.prior is None else self.prior(self.encoder)

    def sample_prior(self, n_samples: int, generator: torch.Generator | None = None) -> Float[Tensor, "samples state"]:
        """Draw latent points from the prior, before any map onto the simplex, with residual factors behind them.

        Parameters
        ----------
        n_samples
            Number of points.
        generator
            Source of randomness.
        """
        if self.prior is not None:
            return self.prior.sample(self.encoder, n_samples, generator)
        last = self.encoder.mean
        return torch.randn(n_samples, last.out_features, generator=generator, device=last.weight.device)

    def _encoder_input(self, minibatch: Minibatch) -> tuple[SparseCounts, Float[Tensor, "cells covariates"]]:
        x = minibatch.counts.log1p()
        columns = self.covariates(minibatch) if self.encode_covariates else x.values.new_empty(x.n_cells, 0)
        if self.modalities:
            columns = torch.cat([columns, *(each.encoder_columns(minibatch) for each in self.modalities)], dim=1)
        return x, columns

    @property
    def modalities(self) -> list[Modality]:
        """What is observed of a cell beside its genes."""
        return [modality for modality in (self.proteins, self.accessibility) if modality is not None]

    @property
    def mean_head(self) -> MeanHead:
        """Head of the mean, wherever in the likelihood it is."""
        return next(module for module in self.likelihood.modules() if isinstance(module, MeanHead))

    @property
    def residual_loadings(self) -> Float[Tensor, "genes residual"]:
        """Loadings L, what residual factors of one add to the log mean of each gene."""
        return self.mean_head.residual_loadings

    @property
    def loadings(self) -> Float[Tensor, "genes latent"] | None:
        """What latent coordinates of one add to the logits of each gene, ``None`` where the decoder is not linear."""
        if not isinstance(self.decoder, LinearDecoder):
            return None
        return self.mean_head.linear.weight[:, : self.n_latent]

    def library_prior(self, minibatch: Minibatch) -> Normal | None:
        """Return the prior of the log library size of each cell's batch, where it is latent.

        Parameters
        ----------
        minibatch
            The cells.
        """
        if self.library_encoder is None:
            return None
        variance = self.library_log_variances[minibatch.batch]
        return Normal(self.library_log_means[minibatch.batch], variance.sqrt(), validate_args=False)

    @override
    def log_prior(self) -> Float[Tensor, ""] | None:
        parts = [self.likelihood.log_prior(), *(modality.log_prior() for modality in self.modalities)]
        known = [part for part in parts if part is not None]
        return torch.stack(known).sum() if known else None
