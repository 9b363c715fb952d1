import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import train_together
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch.multiprocessing.spawn import ProcessRaisedException

from scvae_ext.train import TrainingDivergedError
from scvae_ext.train.processes import (
    count_processes,
    divergence_in,
    forks_or_spawns,
    make_trainer,
    require_enough_cells,
)

SCRIPT = Path(train_together.__file__)
N_TRAIN, BATCH_SIZE, N_EPOCHS = 540, 64, 40


@pytest.fixture(autouse=True)
def started_by_a_script(monkeypatch):
    """Name a script as the one that was started, which those of pytest-xdist's workers are not."""
    monkeypatch.setattr(sys, "argv", [__file__])


@pytest.mark.parametrize(
    ("options", "n_processes"),
    [
        ({}, 1),
        ({"devices": 1}, 1),
        ({"devices": 1, "strategy": "ddp"}, 1),
        ({"devices": 3}, 3),
        ({"devices": 2, "strategy": "ddp"}, 2),
        ({"devices": 2, "strategy": "ddp_spawn"}, 2),
        ({"devices": 2, "strategy": "ddp_notebook"}, 2),
        ({"devices": 2, "strategy": "ddp", "num_nodes": 3}, 6),
        ({"devices": 2, "strategy": DDPStrategy()}, 2),
    ],
)
def test_processes_are_counted_over_devices_and_machines(options, n_processes):
    assert count_processes({"accelerator": "cpu", **options}) == n_processes


@pytest.mark.parametrize(("strategy", "elsewhere"), [("ddp", False), ("ddp_spawn", True), ("ddp_notebook", True)])
def test_some_strategies_train_in_processes_of_their_own(strategy, elsewhere):
    assert forks_or_spawns(make_trainer({"accelerator": "cpu", "devices": 2, "strategy": strategy})) == elsewhere
    assert not forks_or_spawns(make_trainer({"accelerator": "cpu", "devices": 1}))


def test_counting_leaves_the_random_state_alone():
    before = torch.get_rng_state()
    count_processes({"accelerator": "cpu", "devices": 2, "strategy": "ddp"})
    assert torch.equal(torch.get_rng_state(), before)


def test_a_notebook_is_told_which_strategy_works(monkeypatch):
    monkeypatch.setattr("lightning.pytorch.trainer.connectors.accelerator_connector._IS_INTERACTIVE", True)
    with pytest.raises(RuntimeError, match=r"strategy='ddp' .* a notebook is none: pass strategy=\"ddp_notebook\""):
        count_processes({"accelerator": "cpu", "devices": 2, "strategy": "ddp"})
    assert count_processes({"accelerator": "cpu", "devices": 2, "strategy": "ddp_notebook"}) == 2


def test_code_that_is_no_file_is_told_so(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["-c"])
    monkeypatch.setattr("__main__.__spec__", None)
    with pytest.raises(RuntimeError, match="there is no script: write the code into a file"):
        count_processes({"accelerator": "cpu", "devices": 2, "strategy": "ddp"})
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert count_processes({"accelerator": "cpu", "devices": 2, "strategy": "ddp"}) == 2


def test_strategies_that_split_parameters_are_refused():
    with pytest.raises(ValueError, match=r'ModelParallelStrategy, which splits or replaces .* pass strategy="ddp"'):
        count_processes({"accelerator": "cpu", "devices": 2, "strategy": ModelParallelStrategy()})


def test_fewer_cells_than_processes_are_refused():
    require_enough_cells(3, 3)
    with pytest.raises(ValueError, match="3 training cells cannot be spread over 4 processes: use fewer devices"):
        require_enough_cells(3, 4)


def test_a_divergence_is_recognised_in_the_traceback_of_another_process():
    text = 'Traceback:\n  File "x.py"\nscvae_ext.train.errors.TrainingDivergedError: step 3: kl is not finite.\n'
    found = divergence_in(ProcessRaisedException(text, 0, 1))
    assert isinstance(found, TrainingDivergedError)
    assert str(found) == "step 3: kl is not finite."
    assert divergence_in(ProcessRaisedException("Traceback:\nZeroDivisionError: mine\n", 0, 1)) is None


LAUNCHERS = {
    "ddp": [],
    "ddp_spawn": [],
    "torchrun": [
        *("-m", "torch.distributed.run", "--nnodes=1", "--nproc-per-node=2", "--rdzv-backend=c10d"),
        *("--rdzv-endpoint=127.0.0.1:0", "--local-addr=127.0.0.1"),
    ],
}


@pytest.fixture(scope="module", params=LAUNCHERS)
def together(request, tmp_path_factory):
    """Train with two processes, and return what each has seen and what each got."""
    folder = tmp_path_factory.mktemp(request.param)
    strategy = "ddp" if request.param == "torchrun" else request.param
    # Two processes share what this one may use of the machine.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    finished = subprocess.run(
        [sys.executable, *LAUNCHERS[request.param], str(SCRIPT), str(folder), strategy],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    seen, results = (
        [json.loads(path.read_text()) for path in sorted(folder.glob(f"{kind}*.json"))] for kind in ("seen", "result")
    )
    return request.param, seen, results


@pytest.fixture(scope="module")
def alone():
    """Train the same model with one process."""
    train, held_out = train_together.make_cells()
    model = train_together.make_model(train)
    start = train_together.make_model(train)
    start.train(max_steps=1, batch_size=BATCH_SIZE, enable_progress_bar=False)
    model.train(**train_together.SCHEDULE)
    return model, start.get_elbo(held_out), model.get_elbo(held_out, n_samples=20)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_cell_goes_to_one_process_every_epoch(together, alone):
    _, seen, _ = together
    assert len(seen) == 2
    first, second = (process["epochs"] for process in seen)
    # Minibatches of 54 for two processes: five updates an epoch instead of nine.
    assert len(first) == len(second) == N_EPOCHS
    cells = set(alone[0].train_indices.tolist())
    for ours, theirs in zip(first, second, strict=True):
        assert [len(minibatch) for minibatch in ours] == [54] * 5
        assert len(theirs) == 5
        shares = [[cell for minibatch in share for cell in minibatch] for share in (ours, theirs)]
        assert len(shares[0]) + len(shares[1]) == N_TRAIN
        assert set(shares[0]) | set(shares[1]) == cells
    assert first[0] != first[1]
    assert {cell for minibatch in first[0] for cell in minibatch} != {
        cell for minibatch in first[1] for cell in minibatch
    }


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_all_processes_end_with_the_same_weights_and_history(together):
    launcher, seen, results = together
    # The process that spawned others has what they found.
    assert len(results) == (1 if launcher == "ddp_spawn" else 2)
    assert all(result["weights"] == results[0]["weights"] for result in results)
    assert all(result["history"] == results[0]["history"] for result in results)
    assert seen[0]["random"] != seen[1]["random"]
    assert results[0]["history"]["step"][-1] == 5 * N_EPOCHS
    assert np.isfinite(results[0]["history"]["elbo_validation"]).all()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_processes_keep_the_weights_that_none_are_better_than(together):
    for result in together[2]:
        after = result["after steps away"]
        assert after["weights"] == result["weights"]
        assert after["history"]["step"][-1] == result["history"]["step"][-1] + 5
        assert after["history"]["elbo_validation"][-1] < max(result["history"]["elbo_validation"])


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_processes_reach_the_held_out_elbo_of_one(together, alone):
    _, _, results = together
    _, start, reached = alone
    assert start < reached - 5
    for result in results:
        assert result["elbo"] == pytest.approx(reached, rel=0.01)
        assert result["validation"] == len(alone[0].validation_indices)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_divergence_of_one_process_ends_all_with_its_message(together):
    _, _, results = together
    for result in results:
        assert "step 6: elbo, reconstruction is not finite" in result["diverged"]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_an_interrupt_of_one_process_ends_all_at_the_same_step(together):
    launcher, _, results = together
    if launcher == "ddp_spawn":
        pytest.skip("the script interrupts where it can name the process")
    steps = [result["interrupted"]["history"]["step"][-1] for result in results]
    assert steps[0] == steps[1] == 20
    assert results[0]["interrupted"]["weights"] == results[1]["interrupted"]["weights"]
