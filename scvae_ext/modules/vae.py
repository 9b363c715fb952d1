"""The variational autoencoder of counts."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Distribution, Normal
from typing_extensions import override

from scvae_ext.likelihoods import depth
from scvae_ext.minibatch import Minibatch
from scvae_ext.modules.elbo import elbo, log_importance_weights
from scvae_ext.modules.label_prior import LabelPrior
from scvae_ext.modules.networks import Networks
from scvae_ext.modules.outputs import Elbo, Posterior, VAEOutput
from scvae_ext.nn import RESIDUAL_SCALE
from scvae_ext.types import CellIndices, CellsByHidden

__all__ = ["VAE"]


class VAE(Networks):
    r"""Encoder, prior, decoder and likelihood.

    .. math::
        z \sim p(z) = \mathcal N(0, I), \qquad h = \operatorname{decoder}(z, s), \qquad
        x_g \mid z \sim p(x_g \mid \ell\,\rho_g(h), \dots)

    with batch and covariates :math:`s`, library size :math:`\ell` and expression :math:`\rho`. With a residual rank r,
    factors :math:`u \sim \mathcal N(0, I_r)` follow z in the encoder's posterior and in every sample of it. They pass
    by the decoder: the heads of expression read :math:`(h, u)`, so that the log mean (before the softmax) has the term
    :math:`L u`.

    Parameters are those of :class:`Networks`.
    """

    monitor = "elbo"
    monitor_mode = "max"

    def encode(self, minibatch: Minibatch) -> Posterior:
        """Return the variational posterior of each cell; residual factors, if there are any, follow z.

        Parameters
        ----------
        minibatch
            The cells.
        """
        x, covariates = self._encoder_input(minibatch)
        qz = self.encoder(x, covariates)
        if self.library_encoder is None:
            return Posterior(qz, None)
        return Posterior(qz, self.library_encoder(x, covariates, minibatch.library_size.log()))

    def to_latent(self, sample: Float[Tensor, "*samples cells state"]) -> Float[Tensor, "*samples cells latent"]:
        """Map a Gaussian sample to the latent space: itself, or a point of the simplex for ``"ln"``.

        Parameters
        ----------
        sample
            Sample of the Gaussian posterior or prior, of which residual factors are left out.
        """
        latent = sample[..., : self.n_latent]
        return latent.softmax(dim=-1) if self.latent_distribution == "ln" else latent

    def decode_hidden(
        self,
        sample: Float[Tensor, "*samples cells state"],
        minibatch: Minibatch,
        batch: CellIndices | None = None,
    ) -> Float[Tensor, "*samples cells hidden"]:
        """Return the decoder's activations, and behind them columns of shifted batches and the residual factors.

        Parameters
        ----------
        sample
            Gaussian sample of each cell.
        minibatch
            The cells, for their covariates.
        batch
            Batches to use in place of the observed ones.
        """
        hidden: Tensor = self.decoder(self.to_latent(sample), self.covariates(minibatch, batch))
        parts = [hidden]
        if self.n_shifted_batches:
            shifts = self.covariates.last_batches(minibatch.batch if batch is None else batch, self.n_shifted_batches)
            parts.append(shifts.to(hidden.dtype).expand(*hidden.shape[:-1], -1))
        if self.residual_rank:
            parts.append(RESIDUAL_SCALE * sample[..., self.n_latent :])
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)

    def depth(self, minibatch: Minibatch, log_library: Tensor | None) -> Float[Tensor, "*samples cells"]:
        """Return what expression is multiplied with: size factor, latent or observed library size.

        Parameters
        ----------
        minibatch
            The cells.
        log_library
            Sample of the log library size, where it is latent.
        """
        return depth(minibatch) if log_library is None else log_library.exp()

    def decode(
        self,
        sample: Float[Tensor, "*samples cells state"],
        minibatch: Minibatch,
        log_library: Tensor | None = None,
        batch: CellIndices | None = None,
    ) -> Distribution:
        """Return p(x given z).

        Parameters
        ----------
        sample, minibatch, batch
            As for :meth:`decode_hidden`.
        log_library
            Sample of the log library size, where it is latent.
        """
        hidden: CellsByHidden = self.decode_hidden(sample, minibatch, batch)
        px: Distribution = self.likelihood(
            hidden,
            self.depth(minibatch, log_library),
            minibatch.batch if batch is None else batch,
            minibatch.label,
        )
        return px

    def forward(
        self,
        minibatch: Minibatch,
        n_samples: int | None = None,
        generator: torch.Generator | None = None,
    ) -> VAEOutput:
        """Encode, sample and decode.

        Parameters
        ----------
        minibatch
            The cells.
        n_samples
            Number of samples on a leading axis; one without such an axis where ``None``.
        generator
            Source of randomness.
        """
        posterior = self.encode(minibatch)
        latent = reparameterised_sample(posterior.qz, n_samples, generator)
        log_library = (
            None
            if posterior.log_library is None
            else reparameterised_sample(posterior.log_library, n_samples, generator)
        )
        return self.output_at(posterior, latent, log_library, minibatch)

    def output_at(
        self,
        posterior: Posterior,
        latent: Float[Tensor, "*samples cells state"],
        log_library: Float[Tensor, "*samples cells"] | None,
        minibatch: Minibatch,
    ) -> VAEOutput:
        """Decode given samples of a posterior.

        Parameters
        ----------
        posterior
            The posterior, whose density counts.
        latent, log_library
            Samples.
        minibatch
            The cells.
        """
        hidden = self.decode_hidden(latent, minibatch)
        px = self.likelihood(hidden, self.depth(minibatch, log_library), minibatch.batch, minibatch.label)
        others = {modality.name: modality.log_prob(hidden, minibatch) for modality in self.modalities}
        if isinstance(self.prior, LabelPrior):
            others["labels"] = self.prior.log_prob_label(latent[..., : self.n_latent], minibatch.label)
        return VAEOutput(posterior, latent, log_library, px, others)

    @override
    def objective(self, minibatch: Minibatch, generator: torch.Generator | None = None) -> Elbo:
        return self.elbo(minibatch, None, generator)

    def elbo(
        self, minibatch: Minibatch, n_samples: int | None = None, generator: torch.Generator | None = None
    ) -> Elbo:
        """Return the ELBO of each cell, at one sample or at several on a leading axis.

        Parameters
        ----------
        minibatch, n_samples, generator
            As for :meth:`forward`.
        """
        output = self(minibatch, n_samples, generator)
        return elbo(output, self.likelihood, minibatch, self.library_prior(minibatch), self.pz())

    def log_importance_weights(
        self, minibatch: Minibatch, n_samples: int, generator: torch.Generator | None = None
    ) -> Float[Tensor, "samples cells"]:
        """Return log importance weights of the evidence.

        Parameters
        ----------
        minibatch, n_samples, generator
            As for :meth:`forward`.
        """
        output = self(minibatch, n_samples, generator)
        return log_importance_weights(output, self.likelihood, minibatch, self.library_prior(minibatch), self.pz())


def reparameterised_sample(
    distribution: Normal, n_samples: int | None = None, generator: torch.Generator | None = None
) -> Tensor:
    r"""Return :math:`\mu + \sigma\varepsilon` with :math:`\varepsilon \sim \mathcal N(0, 1)`, differentiable in both.

    Parameters
    ----------
    distribution
        A Gaussian.
    n_samples
        Length of a leading axis of samples, or ``None`` for none.
    generator
        Source of randomness.
    """
    loc = distribution.loc
    shape = loc.shape if n_samples is None else (n_samples, *loc.shape)
    noise = torch.randn(shape, generator=generator, device=loc.device, dtype=loc.dtype)
    return torch.addcmul(loc, distribution.scale, noise)
