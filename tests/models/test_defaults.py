import numpy as np
import pytest
from stores import stored

from scvae_ext.data import align, read_registry
from scvae_ext.models.defaults import (
    default_max_steps,
    default_patience,
    default_weight_decay,
    scored_cells,
    steps_between_validations,
)


@pytest.fixture
def source(simulated):
    return align(simulated, read_registry(simulated))


@pytest.mark.parametrize("steps_per_epoch", [1, 7, 64])
def test_training_is_planned_in_whole_epochs(steps_per_epoch):
    steps = default_max_steps(1000, steps_per_epoch)
    assert steps > 0
    assert steps % steps_per_epoch == 0


@pytest.mark.parametrize(
    ("n_train", "expected"), [(1, 1000), (1455, 1000), (2500, 1500), (40_000, 12_000), (10**6, 50_000)]
)
def test_training_takes_more_steps_for_more_cells(n_train, expected):
    assert default_max_steps(n_train, 1) == expected


def test_processes_share_the_steps_out():
    assert default_max_steps(40_000, 1, n_processes=4) == 3000
    assert default_max_steps(100, 1, n_processes=4) == 250


@pytest.mark.parametrize(("max_steps", "expected"), [(1, 500), (2000, 500), (50_000, 12_500)])
def test_training_waits_for_a_quarter_of_its_steps(max_steps, expected):
    assert default_patience(max_steps) == expected


def test_weight_decay_weakens_with_the_number_of_cells():
    decays = [default_weight_decay(n_cells) for n_cells in (1, 100, 10_000, 1_000_000)]
    assert decays == sorted(decays, reverse=True)
    assert all(0 <= decay < np.inf for decay in decays)


def test_held_out_cells_in_memory_are_all_scored(source, monkeypatch):
    monkeypatch.setattr("scvae_ext.data.streaming._CELLS_PER_WINDOW", 10)
    np.testing.assert_array_equal(scored_cells(source, np.arange(60), 0), np.arange(60))


def test_of_many_held_out_cells_on_disk_a_fixed_part_is_scored(simulated, tmp_path, monkeypatch):
    with stored(simulated, "backed", tmp_path) as opened:
        on_disk = align(opened, read_registry(simulated))
        np.testing.assert_array_equal(scored_cells(on_disk, np.arange(60), 0), np.arange(60))
        monkeypatch.setattr("scvae_ext.data.streaming._CELLS_PER_WINDOW", 40)
        monkeypatch.setattr("scvae_ext.data.streaming._BLOCKS_PER_WINDOW", 0)
        scored = scored_cells(on_disk, np.arange(60, 120), 0)
        assert len(scored) == 40
        assert (np.diff(scored) > 0).all()
        assert scored.min() >= 60
        np.testing.assert_array_equal(scored, scored_cells(on_disk, np.arange(60, 120), 0))
        assert scored.tolist() != scored_cells(on_disk, np.arange(60, 120), 1).tolist()


@pytest.mark.parametrize(("n_scored", "batch_size", "expected"), [(0, 128, 50), (2133, 128, 50), (16384, 128, 384)])
def test_validation_costs_less_than_training(n_scored, batch_size, expected):
    assert steps_between_validations(n_scored, batch_size) == expected
