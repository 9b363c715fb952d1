import numpy as np
import pytest
import torch
from posterior_draws import draws_of

from scvae_ext.analysis import PosteriorDraws


def test_shapes_are_checked():
    chunk = next(draws_of(np.ones((4, 3)), np.full((4, 3), 1 / 3)))
    with pytest.raises(TypeError):
        PosteriorDraws(chunk.rows, chunk.expression, chunk.fitted, chunk.counts, torch.ones(5), None)
