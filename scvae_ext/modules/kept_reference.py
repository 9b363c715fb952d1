"""A trained VAE that gets to know further batches: what it learned stays, and what belongs to them is trained."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from typing_extensions import override

from scvae_ext.minibatch import Minibatch
from scvae_ext.modules.bounds import SampledElbo
from scvae_ext.modules.new_batches import batch_places
from scvae_ext.modules.objectives import FreeLocation
from scvae_ext.modules.outputs import Objective
from scvae_ext.modules.trainable import Trainable
from scvae_ext.modules.vae import VAE
from scvae_ext.nn import LinearDecoder

__all__ = ["SHIFT_STD", "BatchShifts", "KeptReference", "shifts_of_batches"]

SHIFT_STD = 0.5
"""Standard deviation of the log of what a new batch multiplies the mean of a gene, or the rate of a peak, by.

Held-out cells are described about as well from half to twice this."""

COLUMN_STD = 0.2
"""Standard deviation of the columns of a new batch in hidden layers, around the mean over the batches before.

With some hundred cells of the batch it matters little; with three to twenty, held-out cells are described better."""


class KeptReference(Trainable):
    r"""A VAE of which nothing is trained but what belongs to some batches.

    All else stays as it is, bit for bit: its parameters, and the moments of batch normalisation. Units are not dropped.
    What a new batch adds to the log mean of a gene, or to the log rate of a peak, has the prior
    :math:`\mathcal N(0, 0.5^2)`, around the mean of the batches before where the decoder is linear; its columns in
    hidden layers have :math:`\mathcal N(m, 0.2^2)` with that mean :math:`m`.

    Which types there are in the new batches, and how many cells of each, is not for the prior of the reference to say.
    With the ELBO and a standard normal prior it costs nothing where their cells lie (:class:`FreeLocation`): seventy B
    cells by themselves were moved to the origin otherwise, among T cells, and shifts of genes made up for it.

    Parameters
    ----------
    bound
        What is trained, and by which objective: the VAE, or a view of it.
    vae
        The VAE.
    batches
        Positions of the batches, which are among the last ones.
    n_reference
        Number of batches that are not new.
    """

    def __init__(self, bound: Trainable, vae: VAE, batches: Sequence[int], n_reference: int) -> None:
        super().__init__()
        self.bound = bound
        self.monitor, self.monitor_mode = bound.monitor, bound.monitor_mode
        self.batches, self.n_reference = tuple(batches), n_reference
        is_elbo = isinstance(bound, VAE) or (isinstance(bound, SampledElbo) and not bound.free_bits)
        self._is_free = is_elbo and vae.prior is None
        if self._is_free:
            self.monitor = "free_location_elbo"
        from_end = [batch - vae.covariates.n_batches for batch in batches]
        self._new: list[nn.Parameter] = []
        self._columns: list[tuple[nn.Parameter, slice | list[int]]] = []
        for place in batch_places(vae):
            if place.is_trained and isinstance(place.values, nn.Parameter):
                self.register_buffer(f"mask_{len(self._new)}", place.mask_of(from_end), persistent=False)
                self._new.append(place.values)
                if place.is_of_layer and place.n_batches:
                    columns = _columns(place.first, batches)
                    known = place.values[:, place.first : place.first + n_reference].detach().mean(1, keepdim=True)
                    self.register_buffer(f"mean_{len(self._columns)}", known, persistent=False)
                    self._columns.append((place.values, columns))
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
            -0.5 * ((shifts.values() - shifts.start) / SHIFT_STD).square().sum()
            for shifts in shifts_of_batches(self.vae, self.batches, self.n_reference)
        ]
        parts += [
            -0.5 * ((weight[:, columns] - self.get_buffer(f"mean_{position}")) / COLUMN_STD).square().sum()
            for position, (weight, columns) in enumerate(self._columns)
        ]
        others = self.bound.log_prior()
        return torch.stack(parts if others is None else [*parts, others]).sum()

    @override
    def objective(self, minibatch: Minibatch, generator: torch.Generator | None = None) -> Objective:
        objective = self.bound.objective(minibatch, generator)
        if not self._is_free:
            return objective
        vae = self.vae
        location = 0.5 * vae.encode(minibatch).qz.loc[:, : vae.n_latent].square().sum(-1)
        return FreeLocation(objective, location, self.bound.monitor)

    @override
    def keep_fixed(self) -> None:
        for position, values in enumerate(self._new):
            if values.grad is not None:
                values.grad.mul_(self.get_buffer(f"mask_{position}"))


@dataclass(frozen=True)
class BatchShifts:
    """What some batches add to the log mean of genes, or to the log rate of peaks: columns of a weight.

    Parameters
    ----------
    weight
        The weight.
    columns
        Its columns, one for each batch.
    start
        Where the prior of each has its mean.
    """

    weight: Tensor
    columns: slice | list[int]
    start: Float[Tensor, "features batches"]

    def values(self) -> Float[Tensor, "features batches"]:
        """Return them."""
        return self.weight[:, self.columns]

    @torch.no_grad()
    def set(self, values: Float[Tensor, "features batches"]) -> None:
        """Set them.

        Parameters
        ----------
        values
            New values.
        """
        self.weight[:, self.columns] = values.to(self.weight.dtype)


def shifts_of_batches(vae: VAE, batches: Sequence[int], n_reference: int) -> list[BatchShifts]:
    """Return what batches add to the log mean of genes, and after it to the log rate of peaks if there are any.

    Parameters
    ----------
    vae
        The VAE.
    batches
        Positions of batches, among those that have such shifts.
    n_reference
        Number of batches that are not new.
    """
    weight, n_batches = vae.mean_head.linear.weight, vae.covariates.n_batches
    if isinstance(vae.decoder, LinearDecoder):
        first = vae.n_latent + vae.covariates.batch_columns.start
        before = weight[:, first : first + n_reference].detach().mean(1, keepdim=True)
        return [BatchShifts(weight, _columns(first, batches), before.expand(-1, len(batches)))]
    first = vae.decoder.n_out + vae.n_shifted_batches - n_batches
    columns = _columns(first, batches)
    weights = [weight] if vae.accessibility is None else [weight, vae.accessibility.likelihood.log_rate.weight]
    return [BatchShifts(each, columns, torch.zeros_like(each[:, columns]).detach()) for each in weights]


def _columns(first: int, batches: Sequence[int]) -> slice | list[int]:
    """Return the columns of batches: as a slice where it can be, for a list would be sent to a GPU each time."""
    start, stop = first + batches[0], first + batches[-1] + 1
    is_range = list(batches) == list(range(batches[0], batches[0] + len(batches)))
    return slice(start, stop) if is_range else [first + batch for batch in batches]
