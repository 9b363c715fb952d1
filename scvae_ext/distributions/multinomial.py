"""Counts of which the total is given."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

__all__ = ["sample_multinomial"]

# Standard deviations by which the total of Poisson counts is meant to fall short: one cell in 44 has too many.
N_SHORT = 2.0


def sample_multinomial(
    total: Float[Tensor, "cells"], weight: Float[Tensor, "cells genes"]
) -> Float[Tensor, "cells genes"]:
    r"""Draw the counts of each cell from a multinomial distribution.

    Poisson counts are multinomial given their own total, whatever it is. They are drawn with a somewhat smaller
    expected total, once more where they are too many, and the few :math:`\sqrt{T}` that they lack are drawn one by one.

    Parameters
    ----------
    total
        Counts of each cell, whole numbers T.
    weight
        Of each gene, zero or more, at least one of them positive: probabilities but for a factor of each cell.
    """
    share = weight / weight.sum(1, keepdim=True)
    rate = share * (total - N_SHORT * total.sqrt()).clamp(min=0).unsqueeze(1)
    counts = torch.poisson(rate)
    lacking = total - counts.sum(1)
    while True:
        again: Int[Tensor, some] = (lacking < 0).nonzero().squeeze(1)
        if len(again) == 0:
            break
        counts[again] = torch.poisson(rate[again])
        lacking[again] = total[again] - counts[again].sum(1)
    most = int(lacking.max())
    if most > 0:
        genes = torch.multinomial(share, most, replacement=True)
        lacks: Bool[Tensor, "cells most"] = torch.arange(most, device=total.device) < lacking.unsqueeze(1)
        counts.scatter_add_(1, genes, lacks.to(counts.dtype))
    return counts
