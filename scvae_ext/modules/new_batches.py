"""What of a VAE belongs to batches, and how the weights of one become those of another that knows more batches."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from jaxtyping import Int
from torch import Tensor, nn

from scvae_ext.modules.prior import VampPrior
from scvae_ext.modules.vae import VAE
from scvae_ext.nn import Dispersion, Encoder, Layer, LibraryEncoder, LinearDecoder, SparseLinear, ZeroInflationHead

__all__ = ["BatchPlace", "batch_places", "copy_reference"]

AnyModule = TypeVar("AnyModule", bound=nn.Module)


@dataclass(frozen=True)
class BatchPlace:
    """Where values that belong to batches lie in a tensor, one beside the other.

    Parameters
    ----------
    values
        The tensor.
    axis
        Its axis with the batches.
    first, n_batches
        Position and number of the batches along that axis; the last of them are the last batches of the VAE.
    starts_at_mean
        Whether new batches start at the mean over the others, or at zero.
    is_trained
        Whether they are trained.
    is_of_layer
        Whether they are columns that hidden units of a layer read.
    """

    values: Tensor
    axis: int
    first: int
    n_batches: int
    starts_at_mean: bool = True
    is_trained: bool = True
    is_of_layer: bool = False

    def widened(self, before: Tensor, n_before: int) -> Tensor:
        """Return values of fewer batches, with those of new ones at their start.

        Parameters
        ----------
        before
            Values of the other VAE.
        n_before
            Number of its batches in them: none where it knows but one, which needs no values of its own.
        """
        after = before.shape[self.axis] - self.first - n_before
        left, old, right = before.split([self.first, n_before, after], self.axis)
        shape = list(before.shape)
        shape[self.axis] = self.n_batches - n_before
        new = before.new_zeros(shape)
        if n_before and self.starts_at_mean:
            new += old.mean(self.axis, keepdim=True)
        return torch.cat([left, old, new, right], self.axis)

    def mask_of(self, from_end: Sequence[int]) -> Tensor:
        """Return one for the values of some of the last batches, and zero elsewhere.

        Parameters
        ----------
        from_end
            Which, counted from behind: -1 for the last batch.
        """
        mask = torch.zeros_like(self.values)
        if self.n_batches:
            places = torch.tensor(from_end, device=mask.device) + self.first + self.n_batches
            mask.index_fill_(self.axis, places, 1.0)
        return mask


@torch.no_grad()
def copy_reference(reference: VAE, extended: VAE, genes: Int[Tensor, "genes"]) -> None:
    """Give a VAE all weights of another one, which knows fewer batches and may know more genes.

    What belongs to a batch that the reference does not know starts at the mean over the batches that it knows, and the
    shifts of genes at zero. Where the encoder of the reference sees no covariates and that of the extended VAE does,
    their weights are zero: every cell has the posterior that it had.

    Parameters
    ----------
    reference
        The trained VAE.
    extended
        A VAE that was built with the same options but for numbers of batches, of shifted batches and of genes, and
        ``encode_covariates``. The batches of the reference come first.
    genes
        Positions, in the reference, of the genes of the extended VAE.
    """
    known = dict(reference.named_parameters()) | dict(reference.named_buffers())
    places = {id(place.values): place for place in batch_places(extended)}
    n_known = {id(place.values): place.n_batches for place in batch_places(reference)}
    axis_of_genes = {id(values): axis for values, axis in _of_genes(reference)}
    n_columns = reference.covariates.batch_columns.stop - reference.covariates.batch_columns.start
    for name, values in (dict(extended.named_parameters()) | dict(extended.named_buffers())).items():
        before = known.get(name)
        if values.dtype == torch.bool:
            # What was measured in a batch is not learned.
            continue
        n_before = n_columns if before is None else n_known.get(id(before), n_columns)
        if before is None or (id(values) in places and id(before) not in n_known):
            # An encoder that saw no covariates has no weights for them; those for proteins or peaks come last.
            none = values.new_zeros(len(values), reference.covariates.n_columns)
            before = none if before is None else torch.cat([none, before], dim=1)
        elif id(before) in axis_of_genes:
            before = before.index_select(axis_of_genes[id(before)], genes.to(before.device))
        if id(values) in places:
            before = places[id(values)].widened(before, n_before)
        values.copy_(before)


def batch_places(vae: VAE) -> list[BatchPlace]:
    """Return all that belongs to batches in a VAE.

    Parameters
    ----------
    vae
        The VAE.
    """
    columns, encoders = vae.covariates, _encoders(vae)
    first, n_columns = columns.batch_columns.start, columns.batch_columns.stop - columns.batch_columns.start
    networks = (*(encoders if vae.encode_covariates else ()), vae.decoder)
    layers = [layer for network in networks for layer in network.modules() if isinstance(layer, Layer)]
    places = [
        BatchPlace(layer.covariates.weight, 1, first, n_columns, is_of_layer=True)
        for layer in layers
        if layer.covariates is not None
    ]
    if isinstance(vae.decoder, LinearDecoder):
        start = vae.n_latent + first
        places += [
            # No cell that the mean of activations was taken of is of a new batch.
            BatchPlace(values, -1, start, n_columns, starts_at_mean=isinstance(values, nn.Parameter))
            for values in _that_read_the_decoder(vae)
        ]
    else:
        weight = vae.mean_head.linear.weight
        places.append(BatchPlace(weight, 1, vae.decoder.n_out, vae.n_shifted_batches, starts_at_mean=False))
    if columns.embedding is not None:
        places.append(BatchPlace(columns.embedding.weight, 0, 0, columns.n_batches))
    for dispersion in _parts(vae, Dispersion):
        if dispersion.kind == "gene-batch":
            places.append(BatchPlace(dispersion.log_value, 0, 0, columns.n_batches))
    if vae.library_encoder is not None:
        for values in (vae.library_log_means, vae.library_log_variances):
            places.append(BatchPlace(values, 0, 0, columns.n_batches))
    if vae.proteins is not None:
        places.append(BatchPlace(vae.proteins.likelihood.log_background, 0, 0, columns.n_batches))
    if vae.accessibility is not None:
        weight = vae.accessibility.likelihood.log_rate.weight
        places.append(BatchPlace(weight, 1, vae.decoder.n_out, vae.n_shifted_batches, starts_at_mean=False))
    if isinstance(vae.prior, VampPrior) and vae.prior.covariates is not None:
        # No pseudo-cell is of a new batch.
        weight = vae.prior.covariates
        places.append(BatchPlace(weight, 1, first, n_columns, starts_at_mean=False, is_trained=False))
    return places


def _that_read_the_decoder(vae: VAE) -> list[Tensor]:
    """Return what has the decoder's outputs along its last axis."""
    weights: list[Tensor] = [vae.mean_head.linear.weight]
    weights += [head.of_cell.weight for head in _parts(vae, Dispersion) if head.of_cell is not None]
    for head in _parts(vae, ZeroInflationHead):
        if head.kind == "gene-cell":
            weights.append(head.linear.weight)
            weights += [] if head.prior is None else [head.mean_hidden]
    return weights


def _of_genes(vae: VAE) -> list[tuple[Tensor, int]]:
    """Return all that belongs to genes in a VAE, and along which axis."""
    first = [layer for encoder in _encoders(vae) for layer in encoder.modules() if isinstance(layer, SparseLinear)]
    values: list[tuple[Tensor, int]] = [(layer.weight, 0) for layer in first]
    linear_maps = [vae.mean_head.linear]
    for head in _parts(vae, ZeroInflationHead):
        if head.kind == "gene-cell":
            linear_maps.append(head.linear)
        elif head.kind == "gene":
            values.append((head.scaled_logit, 0))
    values += [(part, 0) for linear in linear_maps for part in (linear.weight, linear.bias)]
    for dispersion in _parts(vae, Dispersion):
        values.append((dispersion.log_value, -1))
        if dispersion.of_cell is not None:
            values.append((dispersion.of_cell.weight, 0))
    if isinstance(vae.prior, VampPrior):
        values.append((vae.prior.profile, 1))
    return values


def _encoders(vae: VAE) -> list[Encoder | LibraryEncoder]:
    return [vae.encoder] if vae.library_encoder is None else [vae.encoder, vae.library_encoder]


def _parts(vae: VAE, kind: type[AnyModule]) -> list[AnyModule]:
    return [module for module in vae.likelihood.modules() if isinstance(module, kind)]
