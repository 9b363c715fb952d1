"""A trained VAE that gets to know further batches: what it learned stays, and what belongs to them is trained."""

from collections.abc import Iterable

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

__all__ = ["KeptReference", "start_gene_shifts"]

# Standard deviation of the log of what a new batch multiplies the expression of a gene by. Held-out cells are described
# about as well from half to twice this.
SHIFT_STD = 0.5


class KeptReference(Trainable):
    r"""A VAE of which nothing is trained but what belongs to new batches.

    All else stays as it is, bit for bit: its parameters, and the moments of batch normalisation. Units are not dropped.
    What a new batch adds to the log mean of a gene has the prior :math:`\mathcal N(0, 0.5^2)`; around the mean of other
    batches where the decoder is linear.

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
        shifts, start = _gene_shifts(self.vae, self.n_reference)
        of_shifts = -0.5 * ((shifts - start) / SHIFT_STD).square().sum()
        others = self.bound.log_prior()
        return of_shifts if others is None else of_shifts + others

    @override
    def objective(self, minibatch: Minibatch, generator: torch.Generator | None = None) -> Objective:
        return self.bound.objective(minibatch, generator)

    @override
    def keep_fixed(self) -> None:
        for position, values in enumerate(self._new):
            if values.grad is not None:
                values.grad.mul_(self.get_buffer(f"mask_{position}"))


@torch.no_grad()
def start_gene_shifts(vae: VAE, minibatches: Iterable[Minibatch], n_reference: int) -> None:
    r"""Start what new batches add to the log mean of each gene from counts observed and expected.

    .. math:: \delta_{gs} = \log \frac{\sum_{n \in s} x_{ng} + \sigma^{-2}}{\sum_{n \in s} \mu_{ng} + \sigma^{-2}}

    with the means :math:`\mu` that the decoder expects without them, at the posterior mean of each cell, and the
    standard deviation :math:`\sigma` of their prior: for Poisson counts, the log of the posterior mean under a gamma
    prior of mean one and variance :math:`\sigma^2`. Nothing is done where values are log-normalised and no counts.

    Parameters
    ----------
    vae
        A VAE after :func:`~scvae_ext.modules.copy_reference`.
    minibatches
        Training cells.
    n_reference
        Number of batches that are not new.
    """
    shifts, start = _gene_shifts(vae, n_reference)
    shifts.copy_(start)
    if not vae.likelihood.for_counts:
        return
    n_new = vae.covariates.n_batches - n_reference
    observed = torch.zeros(n_new, len(shifts), dtype=torch.float64, device=shifts.device)
    expected = torch.zeros_like(observed)
    for given in minibatches:
        minibatch = given.to(shifts.device)
        posterior = vae.encode(minibatch)
        log_library = None if posterior.log_library is None else posterior.log_library.loc
        mean = vae.decode(posterior.qz.loc, minibatch, log_library).mean
        of_batch = vae.covariates.last_batches(minibatch.batch, n_new).T.double()
        observed += of_batch @ minibatch.counts.dense().double()
        expected += of_batch @ mean.double()
    prior_counts = SHIFT_STD**-2
    shifts += ((observed + prior_counts) / (expected + prior_counts)).log().T.to(shifts.dtype)


def _gene_shifts(vae: VAE, n_reference: int) -> tuple[Float[Tensor, "genes new"], Float[Tensor, "genes new"]]:
    """Return what new batches add to the log mean of each gene, as a view, and where their prior has its mean."""
    n_new = vae.covariates.n_batches - n_reference
    weight = vae.mean_head.linear.weight
    if not isinstance(vae.decoder, LinearDecoder):
        shifts = weight.narrow(1, vae.decoder.n_out + vae.n_shifted_batches - n_new, n_new)
        return shifts, torch.zeros_like(shifts)
    first = vae.n_latent + vae.covariates.batch_columns.start
    before = weight.narrow(1, first, n_reference).detach()
    return weight.narrow(1, first + n_reference, n_new), before.mean(1, keepdim=True).expand(-1, n_new)
