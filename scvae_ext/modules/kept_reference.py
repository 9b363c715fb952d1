"""A trained VAE that gets to know further batches: what it learned stays, and what belongs to them is trained."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from typing_extensions import override

from scvae_ext.minibatch import Minibatch
from scvae_ext.modules.new_batches import batch_places
from scvae_ext.modules.outputs import Objective
from scvae_ext.modules.trainable import Trainable
from scvae_ext.modules.vae import VAE
from scvae_ext.nn import LinearDecoder

__all__ = ["SHIFT_STD", "KeptReference", "shifts_of_new_batches"]

SHIFT_STD = 0.5
"""Standard deviation of the log of what a new batch multiplies the mean of a gene, or the rate of a peak, by.

Held-out cells are described about as well from half to twice this."""


class KeptReference(Trainable):
    r"""A VAE of which nothing is trained but what belongs to new batches.

    All else stays as it is, bit for bit: its parameters, and the moments of batch normalisation. Units are not dropped.
    What a new batch adds to the log mean of a gene, or to the log rate of a peak, has the prior
    :math:`\mathcal N(0, 0.5^2)`; around the mean of other batches where the decoder is linear.

    Parameters
    ----------
    bound
        What is trained, and by which objective: the VAE, or a view of it.
    vae
        The VAE.
    n_reference
        Number of batches that it knew before; those that follow are new.
    """

    def __init__(self, bound: Trainable, vae: VAE, n_reference: int) -> None:
        super().__init__()
        self.bound = bound
        self.monitor, self.monitor_mode = bound.monitor, bound.monitor_mode
        self.n_reference = n_reference
        n_new = vae.covariates.n_batches - n_reference
        self._new: list[nn.Parameter] = []
        for place in batch_places(vae):
            if place.is_trained and isinstance(place.values, nn.Parameter):
                self.register_buffer(f"mask_{len(self._new)}", place.mask_of_last(n_new), persistent=False)
                self._new.append(place.values)
        trained = {id(values) for values in self._new}
        self._fixed = [values for values in bound.parameters() if values.requires_grad and id(values) not in trained]
        for values in self._fixed:
            values.requires_grad_(False)
        self.train(bound.training)

    @property
    def vae(self) -> VAE:
        """The VAE."""
        return next(module for module in self.bound.modules() if isinstance(module, VAE))

    def release(self) -> None:
        """Let all parameters be trained again."""
        for values in self._fixed:
            values.requires_grad_(True)

    @override
    def train(self, mode: bool = True) -> "KeptReference":
        super().train(mode)
        # Its moments are those of the cells that everything else was trained on.
        self.bound.eval()
        return self

    @override
    def log_prior(self) -> Float[Tensor, ""]:
        parts = [
            -0.5 * ((shifts - start) / SHIFT_STD).square().sum()
            for shifts, start in shifts_of_new_batches(self.vae, self.n_reference)
        ]
        others = self.bound.log_prior()
        return torch.stack(parts if others is None else [*parts, others]).sum()

    @override
    def objective(self, minibatch: Minibatch, generator: torch.Generator | None = None) -> Objective:
        return self.bound.objective(minibatch, generator)

    @override
    def keep_fixed(self) -> None:
        for position, values in enumerate(self._new):
            if values.grad is not None:
                values.grad.mul_(self.get_buffer(f"mask_{position}"))


def shifts_of_new_batches(
    vae: VAE, n_reference: int
) -> list[tuple[Float[Tensor, "features new"], Float[Tensor, "features new"]]]:
    """Return, as views, what new batches add to the log mean of genes and the log rate of peaks, each with its start.

    Parameters
    ----------
    vae
        The VAE.
    n_reference
        Number of batches that are not new.
    """
    n_new = vae.covariates.n_batches - n_reference
    weight = vae.mean_head.linear.weight
    if isinstance(vae.decoder, LinearDecoder):
        first = vae.n_latent + vae.covariates.batch_columns.start
        before = weight.narrow(1, first, n_reference).detach()
        return [(weight.narrow(1, first + n_reference, n_new), before.mean(1, keepdim=True).expand(-1, n_new))]
    weights = [weight] if vae.accessibility is None else [weight, vae.accessibility.likelihood.log_rate.weight]
    shifts = [each.narrow(1, vae.decoder.n_out + vae.n_shifted_batches - n_new, n_new) for each in weights]
    return [(each, torch.zeros_like(each)) for each in shifts]
