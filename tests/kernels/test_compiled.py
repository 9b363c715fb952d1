import threading

import numba
import numpy as np
import pytest
import torch

from scvae_ext.kernels import compiled as module
from scvae_ext.kernels.compiled import compiled, in_threads


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("n_threads", "n_items", "n_ranges"), [(1, 100, 1), (2, 100, 1), (8, 100, 4), (8, 25, 2), (8, 3, 1)]
)
def test_every_item_is_done_once_by_half_the_threads_of_torch(threads, n_threads, n_items, n_ranges):
    threads(n_threads)
    ranges, done = [], np.zeros(n_items, dtype=int)

    def kernel(first, last):
        ranges.append((first, last))
        done[first:last] += 1

    in_threads(kernel, n_items, 10)
    assert len(ranges) == n_ranges
    assert done.tolist() == [1] * n_items


def test_an_error_in_another_thread_is_raised(threads):
    threads(4)
    main = threading.current_thread()

    def kernel(first, last):
        if threading.current_thread() is not main:
            raise ZeroDivisionError("in a thread")

    with pytest.raises(ZeroDivisionError, match="in a thread"):
        in_threads(kernel, 100, 1)


def test_without_a_folder_to_keep_it_in_a_kernel_is_compiled_all_the_same(monkeypatch):
    real = numba.njit

    def no_folder(*args, cache=False, **options):
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return real(*args, **options)

    monkeypatch.setattr(module.numba, "njit", no_folder)
    double = compiled()(lambda x: 2 * x)
    assert double(21) == 42
