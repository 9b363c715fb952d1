"""Where mixed precision ends."""

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["full_precision"]


def full_precision(values: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return what a linear map gave under autocast as float32, and anything else as it is.

    Posteriors and likelihoods are computed from it: bfloat16 has eight bits, with which a count of 1,001 is 1,000.

    Parameters
    ----------
    values
        Output of a linear map.
    """
    return values.float() if values.dtype in (torch.bfloat16, torch.float16) else values
