import os
import warnings

import pytest
import torch

from scvae_ext.train.global_state import kept_global_state, seed_of_process


def test_the_first_process_keeps_the_seed_and_the_others_have_their_own():
    seeds = {seed_of_process(seed, rank) for seed in range(20) for rank in range(1, 64)}
    assert [seed_of_process(seed, 0) for seed in range(20)] == list(range(20))
    assert len(seeds | set(range(20))) == 20 * 64
    for seed in seeds:
        torch.Generator().manual_seed(seed)


def test_draws_depend_on_the_seed_and_the_state_is_put_back():
    before = torch.get_rng_state()
    draws = []
    for seed in (3, 3, 4):
        with kept_global_state(seed):
            draws.append(torch.rand(5))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert torch.equal(torch.get_rng_state(), before)


def test_threads_environment_and_warnings_are_put_back_even_after_an_error(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    n_threads, filters = torch.get_num_threads(), list(warnings.filters)

    def fail():
        with kept_global_state(0):
            torch.set_num_threads(n_threads + 1)
            os.environ["OMP_NUM_THREADS"] = "7"
            os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert torch.get_num_threads() == n_threads
    assert os.environ["OMP_NUM_THREADS"] == "3"
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    assert list(warnings.filters) == filters


def test_a_gpu_that_training_woke_gets_the_seed_of_the_user(monkeypatch):
    seeded, awake = [], [False]
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: awake[0])
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    user = torch.initial_seed()
    with kept_global_state(user + 1):
        seeded.clear()
        awake[0] = True
    assert seeded == [user]
