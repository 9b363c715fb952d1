"""How much the latent points of some cells know about their batch: a normalised kernel measure of dependence."""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from scvae_ext.kernels import dependence_and_gradient
from scvae_ext.types import CellIndices

__all__ = ["batch_dependence", "batch_dependence_and_gradient", "latent_kernel", "unbiased_hsic"]

# Squared widths of the kernels, in units of the median squared distance: from within cell types to across them.
SQUARED_WIDTHS = (0.0625, 0.25, 1.0)
# Pairs are compared: of a larger minibatch, every second, third, ... cell is looked at.
MAX_CELLS = 1024
FEWEST_CELLS = 4


def batch_dependence(latent: Float[Tensor, "cells latent"], batch: CellIndices) -> Float[Tensor, ""]:
    r"""Return the normalised Hilbert-Schmidt independence criterion of latent points and batches.

    .. math::
        d(z, s) = \frac{\operatorname{HSIC}(k, l)}{\sqrt{\operatorname{HSIC}(k, k) \operatorname{HSIC}(l, l)}}

    with :math:`l(s, s') = 1` for cells of one batch and 0 for others, and :func:`latent_kernel` for k. It has no unit:
    zero in expectation where points and batches are independent (it can then be negative, with a standard deviation of
    about :math:`\sqrt2/n` for n cells), and one where the kernel of the points is that of the batches. Numerator and
    :math:`\operatorname{HSIC}(k, k)` are unbiased estimates; :math:`\operatorname{HSIC}(l, l)` is the one of the shares
    of batches in these cells. Where these are all of one batch, or fewer than four, nothing is known, and zero is
    returned.

    Source: Gretton, Bousquet, Smola and Schölkopf, ALT 2005; normalised as by Cortes, Mohri and Rostamizadeh, Journal
    of Machine Learning Research 13, 795 (2012).

    Parameters
    ----------
    latent
        Latent point of each cell.
    batch
        Batch of each cell.
    """
    step = -(-len(latent) // MAX_CELLS)
    latent, batch = latent[::step], batch[::step]
    if len(latent) < FEWEST_CELLS:
        return latent.new_zeros(())
    of_points, same_batch = latent_kernel(latent), (batch.unsqueeze(0) == batch.unsqueeze(1)).to(latent.dtype)
    share = same_batch.mean(1)
    # Sums over batches of powers of their shares, as means over cells.
    of_batches = share.mean() - 2 * share.square().mean() + share.mean().square()
    scale = (unbiased_hsic(of_points, of_points) * of_batches).clamp_min(0.0)
    tiny = 1e-8
    return torch.where(scale > tiny, unbiased_hsic(of_points, same_batch) / scale.clamp_min(tiny).sqrt(), 0.0)


def batch_dependence_and_gradient(
    latent: Float[Tensor, "cells latent"], batch: CellIndices
) -> tuple[Float[Tensor, ""], Float[Tensor, "cells latent"]]:
    """Return :func:`batch_dependence` and its gradient by the latent points, on a CPU and in single precision.

    Parameters
    ----------
    latent, batch
        As for :func:`batch_dependence`.
    """
    step = -(-len(latent) // MAX_CELLS)
    gradient = torch.zeros_like(latent)
    some = latent[::step]
    if len(some) < FEWEST_CELLS:
        return latent.new_zeros(()), gradient
    widths = np.asarray(SQUARED_WIDTHS, dtype=np.float32)
    value, by_some = dependence_and_gradient(some.numpy(), batch[::step].numpy(), widths)
    gradient[::step] = torch.from_numpy(by_some)
    return latent.new_tensor(value), gradient


def latent_kernel(latent: Float[Tensor, "cells latent"]) -> Float[Tensor, "cells cells"]:
    r"""Return the mean of three Gaussian kernels :math:`\exp\{-\lVert z - z' \rVert^2 / (2 w m)\}`.

    The unit m is the median squared distance of these cells, held fixed, so that the scale of the latent space plays no
    part; :math:`w = \tfrac1{16}, \tfrac14, 1`.

    Parameters
    ----------
    latent
        Latent point of each cell.
    """
    length = latent.square().sum(-1)
    distance = (length.unsqueeze(0) + length.unsqueeze(1) - 2 * latent @ latent.T).clamp_min(0.0)
    n = len(latent)
    # By position: how many a mask selects would have to be asked of a GPU.
    row, column = torch.triu_indices(n, n, 1, device=latent.device)
    unit = distance.detach()[row, column].median().clamp_min(torch.finfo(latent.dtype).tiny ** 0.5)
    kernels = [torch.exp(-distance / (2 * width * unit)) for width in SQUARED_WIDTHS]
    return torch.stack(kernels).mean(0)


def unbiased_hsic(first: Float[Tensor, "cells cells"], second: Float[Tensor, "cells cells"]) -> Float[Tensor, ""]:
    r"""Return the unbiased estimate of the Hilbert-Schmidt independence criterion from two kernel matrices.

    With :math:`\tilde K` and :math:`\tilde L` for the matrices without their diagonals,

    .. math::
        \frac{1}{n(n - 3)} \left\{ \operatorname{tr} \tilde K \tilde L
        + \frac{1^\top \tilde K 1 \; 1^\top \tilde L 1}{(n - 1)(n - 2)}
        - \frac{2}{n - 2} 1^\top \tilde K \tilde L 1 \right\}

    Source: Song, Smola, Gretton, Bedo and Borgwardt, Journal of Machine Learning Research 13, 1393 (2012), equation 4.

    Parameters
    ----------
    first, second
        Kernel of each pair of cells, of at least four.
    """
    n = len(first)
    first, second = first - torch.diag(first.diagonal()), second - torch.diag(second.diagonal())
    sums, other_sums = first.sum(1), second.sum(1)
    total = (first * second).sum() + sums.sum() * other_sums.sum() / ((n - 1) * (n - 2))
    return (total - 2 * (sums @ other_sums) / (n - 2)) / (n * (n - 3))
