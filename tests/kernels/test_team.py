import os
import threading

import numba
import numpy as np
import pytest
import torch

from scvae_ext.kernels import team
from scvae_ext.kernels.team import in_team, integers, matrix, next_range, task, vector


@task
def _count_and_scale(words):
    done, factor, values = integers(words, 0), vector(words, 1), matrix(words, 2)
    first, last = next_range(words)
    while first < last:
        for item in range(first, last):
            done[item] += 1
            for column in range(values.shape[1]):
                values[item, column] *= factor[column]
        first, last = next_range(words)


@pytest.fixture(params=["threads of torch", "pool"])
def road(request, monkeypatch):
    if request.param == "pool":
        monkeypatch.setattr(team, "_parallel_region", lambda: None)
    elif team._parallel_region() is None:
        pytest.skip("torch's OpenMP library cannot be had here")
    return request.param


@pytest.mark.parametrize(
    ("n_threads", "n_items", "per_ticket"), [(1, 100, 7), (2, 100, 7), (8, 100, 1), (4, 3, 10), (4, 0, 2)]
)
def test_every_item_is_done_once(road, n_threads, n_items, per_ticket):
    done, factor = np.zeros(n_items, dtype=np.int64), np.arange(5, dtype=np.float32)
    values = np.ones((n_items, 5), dtype=np.float32)
    in_team(_count_and_scale, (done, factor, values), n_items, per_ticket, n_threads=n_threads)
    assert done.tolist() == [1] * n_items
    assert values.tolist() == [factor.tolist()] * n_items


def test_threads_of_torch_are_the_default_and_stay_as_they_are(road):
    before = torch.get_num_threads()
    done, values = np.zeros(50, dtype=np.int64), np.ones((50, 2), dtype=np.float32)
    in_team(_count_and_scale, (done, np.ones(2, dtype=np.float32), values), 50, 1)
    assert done.tolist() == [1] * 50
    assert torch.get_num_threads() == before


def test_tasks_of_several_threads_at_a_time_do_not_meet(road):
    ones = np.ones(2, np.float32), np.ones((3000, 2), np.float32)
    arrays = [(np.zeros(3000, dtype=np.int64), *ones) for _ in range(4)]
    threads = [
        threading.Thread(target=in_team, args=(_count_and_scale, of_thread, 3000, 3), kwargs={"n_threads": 2})
        for of_thread in arrays
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all((done == 1).all() for done, *_ in arrays)


def test_an_array_with_gaps_is_refused():
    with pytest.raises(ValueError, match="not contiguous"):
        in_team(_count_and_scale, (np.zeros(8, dtype=np.int64)[::2],), 4, 1)


def test_the_library_is_the_one_that_torch_has_loaded():
    region = team._parallel_region()
    if region is None or not os.path.exists("/proc/self/maps"):
        pytest.skip("no OpenMP library of torch, or no list of what is loaded")
    with open("/proc/self/maps") as maps:
        loaded = {line.split()[-1] for line in maps if "gomp" in line or "iomp" in line}
    assert any(path.startswith(os.path.dirname(torch.__file__)) for path in loaded)


def test_without_a_folder_to_keep_it_in_a_task_is_compiled_all_the_same(monkeypatch):
    real = numba.cfunc

    def no_folder(*args, cache=False, **options):
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return real(*args, **options)

    monkeypatch.setattr(team.numba, "cfunc", no_folder)

    def count(words):
        done = integers(words, 0)
        first, last = next_range(words)
        while first < last:
            done[first:last] += 1
            first, last = next_range(words)

    done = np.zeros(9, dtype=np.int64)
    in_team(task(count), (done,), 9, 2, n_threads=1)
    assert done.tolist() == [1] * 9
