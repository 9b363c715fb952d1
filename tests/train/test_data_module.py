from types import SimpleNamespace

import numpy as np
import pytest
import torch

from scvae_ext.train.data_module import EVALUATION_BATCH_SIZE, CellDataModule


def _cells(source, minibatches):
    """Find out which cells minibatches hold, by their counts."""
    every = source.minibatch(np.arange(source.n_cells)).counts.dense()
    found = torch.cat([minibatch.counts.dense() for minibatch in minibatches])
    return [int((every == row).all(1).nonzero()[0, 0]) for row in found]


def _module(source, split, **options):
    return CellDataModule(source, *split, **({"batch_size": 32, "minibatches_per_block": 3, "seed": 1} | options))


def _epoch(loader):
    return [minibatch for block in loader for minibatch in block]


def test_an_epoch_holds_every_training_cell_once(source, split):
    loader = _module(source, split).train_dataloader()
    assert sorted(_cells(source, _epoch(loader))) == split[0].tolist()


def test_blocks_hold_the_minibatches_of_one_read(source, split):
    assert [len(block) for block in _module(source, split).train_dataloader()] == [3, 2]


def test_held_out_cells_come_in_order(source, split):
    loader = _module(source, split).val_dataloader()
    assert _cells(source, loader) == split[1].tolist()


def test_many_held_out_cells_come_in_parts(source):
    many = np.arange(200).repeat(EVALUATION_BATCH_SIZE // 100)
    sizes = [minibatch.n_cells for minibatch in _module(source, (many[:2], many)).val_dataloader()]
    assert sizes == [EVALUATION_BATCH_SIZE, len(many) - EVALUATION_BATCH_SIZE]


@pytest.mark.parametrize(("option", "value"), [("seed", 2), ("first_epoch", 1)])
def test_order_depends_on_seed_and_epoch(source, split, option, value):
    reference = _cells(source, _epoch(_module(source, split).train_dataloader()))
    assert _cells(source, _epoch(_module(source, split).train_dataloader())) == reference
    assert _cells(source, _epoch(_module(source, split, **{option: value}).train_dataloader())) != reference


def test_a_later_start_goes_on_with_the_next_epoch(source, split):
    loader = _module(source, split).train_dataloader()
    _epoch(loader)
    second = _cells(source, _epoch(loader))
    assert _cells(source, _epoch(_module(source, split, first_epoch=1).train_dataloader())) == second


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("world_size", [2, 3])
def test_processes_share_held_out_cells_out(source, split, world_size):
    found = []
    for rank in range(world_size):
        module = _module(source, split)
        strategy = SimpleNamespace(root_device=torch.device("cpu"))
        module.trainer = SimpleNamespace(global_rank=rank, world_size=world_size, strategy=strategy)
        found += _cells(source, module.val_dataloader())
    assert sorted(found) == split[1].tolist()
