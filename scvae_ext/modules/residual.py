"""The weights of VAEs that differ in their residual factors alone."""

from collections.abc import Sequence

import torch
from torch import Tensor

from scvae_ext.modules.vae import VAE

__all__ = ["copy_weights"]


@torch.no_grad()
def copy_weights(source: VAE, target: VAE, factors: Sequence[int] = ()) -> None:
    """Give a VAE all weights of another that are not those of its residual factors, and those of some factors.

    Weights of factors are rows of the encoder's last layers and columns of the head of the mean. Nothing else depends
    on them, so that a VAE without a factor has the posterior of z, and for u = 0 the likelihood, of the one with it.

    Parameters
    ----------
    source, target
        VAEs that were built with the same options but for ``residual_rank``.
    factors
        Positions of factors of the source, which become the first of the target. Others of the target stay as they are.
    """
    own_target = {id(value): axis for value, axis in _factor_weights(target)}
    values = dict(source.named_parameters()) | dict(source.named_buffers())
    for name, value in (dict(target.named_parameters()) | dict(target.named_buffers())).items():
        axis = own_target.get(id(value))
        if axis is None:
            value.copy_(values[name])
            continue
        n_common = value.shape[axis] - target.residual_rank
        chosen = [*range(n_common), *(n_common + factor for factor in factors)]
        index = torch.tensor(chosen, dtype=torch.long, device=values[name].device)
        value.narrow(axis, 0, len(chosen)).copy_(values[name].index_select(axis, index))


def _factor_weights(vae: VAE) -> list[tuple[Tensor, int]]:
    """Return the parameters that factors have a share in, and along which axis it comes last."""
    encoder, head = vae.encoder, vae.mean_head
    last = (encoder.mean, encoder.log_variance)
    return [(value, 0) for layer in last for value in (layer.weight, layer.bias)] + [(head.linear.weight, 1)]
