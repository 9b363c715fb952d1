"""Linear maps that get to read more."""

import pytest
import torch
from torch import nn

from scvae_ext.nn import with_further_inputs


@torch.no_grad()
@pytest.mark.parametrize("first", [0, 2, 5])
def test_further_inputs_change_nothing_until_they_have_weights(first):
    linear = nn.Linear(5, 3)
    wider = with_further_inputs(linear, first, 2)
    x, further = torch.randn(4, 5), torch.randn(4, 2)
    read = torch.cat([x[:, :first], further, x[:, first:]], dim=1)
    torch.testing.assert_close(wider(read), linear(x))
    wider.weight[1, first + 1] = 0.5
    expected = linear(x)
    expected[:, 1] += 0.5 * further[:, 1]
    torch.testing.assert_close(wider(read), expected)
