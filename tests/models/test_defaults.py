import numpy as np
import pytest

from scvae_ext.data import align, read_registry
from scvae_ext.models.defaults import default_max_steps, default_weight_decay


@pytest.fixture
def source(simulated):
    return align(simulated, read_registry(simulated))


@pytest.mark.parametrize("steps_per_epoch", [1, 7, 64])
def test_training_is_planned_in_whole_epochs(source, steps_per_epoch):
    steps = default_max_steps(source, np.arange(100), steps_per_epoch)
    assert steps > 0
    assert steps % steps_per_epoch == 0


def test_more_cells_are_trained_on_for_no_fewer_steps(source):
    sizes = [10, 1000, 100_000, 1_000_000]
    steps = [default_max_steps(source, np.resize(np.arange(120), size), 1) for size in sizes]
    assert steps == sorted(steps)
    assert steps[-1] > steps[0]


def test_weight_decay_weakens_with_the_number_of_cells():
    decays = [default_weight_decay(n_cells) for n_cells in (1, 100, 10_000, 1_000_000)]
    assert decays == sorted(decays, reverse=True)
    assert all(0 <= decay < np.inf for decay in decays)
