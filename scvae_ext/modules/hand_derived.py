"""The ELBO of the architecture that most models have, and its gradients as they are written down here."""

from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor

from scvae_ext.likelihoods import LikelihoodPass
from scvae_ext.minibatch import Minibatch
from scvae_ext.modules.bounds import SampledElbo
from scvae_ext.modules.dependence import batch_dependence_and_gradient
from scvae_ext.modules.objectives import BatchPenalised
from scvae_ext.modules.outputs import Elbo
from scvae_ext.modules.trainable import Trainable
from scvae_ext.modules.vae import VAE
from scvae_ext.nn import MLP, PerceptronPass, PosteriorPass, has_hand_derived_pass

__all__ = ["HandDerivedElbo"]


class HandDerivedElbo:
    r"""The objective of training and its gradients, without a graph that torch would record and go through.

    The same function of the same random draws as :meth:`VAE.objective` and ``backward()``, up to rounding. Of the
    gradients of 128 cells and 2,000 genes on two cores, about a quarter of the time went into recording and into the
    hundreds of small operations that gradients in general are made of.

    .. math:: -\frac1n \sum_n \left( \log p(x_n \mid z_n) - \beta \operatorname{KL}_n \right) - \frac{\log p(\theta)}N
              + \lambda\, d(\mu, s)

    The last term is there where batches are penalised, with the posterior means :math:`\mu`. What the VAE holds is read
    and moved where it lies now: this is for some minibatches, and not to be kept.

    Parameters
    ----------
    vae
        A VAE that :meth:`of` takes.
    batch_penalty
        :math:`\lambda`, in nats per cell.
    """

    def __init__(self, vae: VAE, batch_penalty: float = 0.0) -> None:
        if not isinstance(vae.decoder, MLP):
            raise TypeError("There are no hand-derived gradients of a linear decoder.")
        self._vae, self._batch_penalty = vae, batch_penalty
        self._encoder, self._decoder = PerceptronPass(vae.encoder.mlp), PerceptronPass(vae.decoder)
        self._posterior, self._likelihood = PosteriorPass(vae.encoder), LikelihoodPass(vae.likelihood)

    @classmethod
    def of(cls, module: Trainable) -> "HandDerivedElbo | None":
        """Return that of a VAE with perceptrons, batch normalisation, and all that matters here as by default.

        That is, standard normal prior, counts that are negative binomial or zero-inflated for each cell and gene, one
        dispersion a gene, observed library sizes, and batches, if there are several, as columns; the ELBO of one
        sample, with a penalty on batches or without. ``None`` for any other, and where a method is replaced, a
        parameter is kept from training, or somebody listens to what passes through layers or gradients.

        Parameters
        ----------
        module
            The module.
        """
        vae, batch_penalty = module, 0.0
        if type(module) is SampledElbo and _is_plain_but_for_the_penalty(module):
            vae, batch_penalty = module.vae, module.batch_penalty
        if type(vae) is not VAE or not _is_as_written(vae):
            return None
        exists = (
            isinstance(vae.decoder, MLP)
            and has_hand_derived_pass(vae.encoder.mlp)
            and has_hand_derived_pass(vae.decoder)
            and LikelihoodPass.exists_for(vae.likelihood)
            and vae.prior is None
            and vae.library_encoder is None
            and not vae.modalities
            and not vae.n_shifted_batches
            and vae.latent_distribution == "normal"
            and vae.covariates.embedding is None
            and all(_is_free(parameter) for parameter in vae.parameters())
            and not any(_is_watched(layer) for layer in module.modules())
        )
        return cls(vae, batch_penalty) if exists else None

    @staticmethod
    def takes(minibatch: Minibatch) -> bool:
        """Whether a minibatch can be had: two cells or more, without size factors, in single precision.

        Parameters
        ----------
        minibatch
            The cells.
        """
        return (
            minibatch.n_cells > 1 and minibatch.size_factor is None and minibatch.counts.values.dtype == torch.float32
        )

    @torch.no_grad()
    def backward(
        self, minibatch: Minibatch, kl_weight: float, n_train: int, penalty_share: float = 1.0
    ) -> Elbo | BatchPenalised:
        """Set the gradients of all parameters, and return the ELBO of each cell, with the penalty if there is one.

        Parameters
        ----------
        minibatch
            The cells.
        kl_weight
            Weight of the divergence.
        n_train
            N, number of training cells, among which the prior on the parameters is shared out.
        penalty_share
            Share of the penalty on batches that counts.
        """
        vae, n_cells = self._vae, minibatch.n_cells
        columns = vae.covariates(minibatch)
        no_columns: Float[Tensor, "cells 0"] = columns[:, :0]

        hidden = self._encoder.forward(minibatch.counts.log1p(), columns if vae.encode_covariates else no_columns)
        sample, kl = self._posterior.forward(hidden, torch.randn(n_cells, vae.n_latent))
        hidden = self._decoder.forward(sample, columns)
        reconstruction = self._likelihood.forward(hidden, minibatch.library_size, minibatch.counts)

        elbo, by_mean = Elbo(reconstruction, kl), None
        if self._batch_penalty:
            dependence, gradient = batch_dependence_and_gradient(self._posterior.mean, minibatch.batch)
            objective: Elbo | BatchPenalised = BatchPenalised(elbo, dependence, self._batch_penalty)
            by_mean = gradient.mul_(penalty_share * self._batch_penalty)
        else:
            objective = elbo

        by_sample = self._decoder.backward(self._likelihood.backward(-1 / n_cells, -1 / n_train))
        by_hidden = self._posterior.backward(cast(Tensor, by_sample), kl_weight / n_cells, by_mean)
        self._encoder.backward(by_hidden, as_far_as_the_input=False)
        return objective


def _is_plain_but_for_the_penalty(module: SampledElbo) -> bool:
    return module.n_samples == 1 and not module.free_bits and module.label_weight == 1 and _is_as_written(module)


def _is_as_written(module: Trainable) -> bool:
    """Whether no method of this very module is replaced."""
    methods = {
        name
        for kind in type(module).mro()
        if issubclass(kind, Trainable)
        for name in vars(kind)
        if callable(vars(kind)[name])
    }
    return not methods & vars(module).keys()


def _is_free(parameter: Tensor) -> bool:
    watched = parameter._backward_hooks or parameter._post_accumulate_grad_hooks
    return parameter.requires_grad and not watched and parameter.dtype == torch.float32 and parameter.is_contiguous()


def _is_watched(layer: torch.nn.Module) -> bool:
    return bool(layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks)
