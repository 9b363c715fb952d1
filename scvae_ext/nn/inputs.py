"""Linear maps that get to read more."""

import torch
from torch import nn

__all__ = ["with_further_inputs"]


def with_further_inputs(linear: nn.Linear, first: int, n_inputs: int) -> nn.Linear:
    """Return a linear map of further inputs, whose weights are zero.

    Parameters
    ----------
    linear
        The map before, with a bias.
    first
        Where the first of the further inputs comes.
    n_inputs
        Number of them.
    """
    wider = nn.Linear(linear.in_features + n_inputs, linear.out_features)
    with torch.no_grad():
        none = linear.weight.new_zeros(linear.out_features, n_inputs)
        wider.weight.copy_(torch.cat([linear.weight[:, :first], none, linear.weight[:, first:]], dim=1))
        wider.bias.copy_(linear.bias)
    return wider
