"""Settings shared by every test."""

import os
import signal
from itertools import chain

# Parallel workers share the cores; this has to stand before torch is imported.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # numba, once scanpy has used it, sets the number of threads of OpenMP for torch as well.
    os.environ.setdefault("NUMBA_NUM_THREADS", "1")

import elsewhere
import matplotlib as mpl
import matplotlib.pyplot as plt
import pytest
import torch
import typecheck
from jaxtyping import config

mpl.use("agg")
typecheck.install()
elsewhere.register()


def pytest_collection_modifyitems(items):
    """Keep a file on one worker, so that the models which its tests share are trained once; long files go first.

    The files of the command line share what UMAP compiles anew in each process.
    """
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return
    groups = {}
    for item in items:
        name = item.nodeid.split("::")[0]
        groups.setdefault("cli" if name.startswith("tests/cli/") else name, []).append(item)
    for name, members in groups.items():
        for item in members:
            item.add_marker(pytest.mark.xdist_group(name))

    def length(members):
        return sum(item.get_closest_marker("slow") is not None for item in members), len(members)

    items[:] = chain.from_iterable(sorted(groups.values(), key=length, reverse=True))


@pytest.fixture(autouse=True, scope="session")
def _listen_to_interrupts():
    # A shell hands its background processes an ignored SIGINT; a notebook or a terminal never does.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


@pytest.fixture
def unchecked():
    """Switch the type checks off, as they are for users, to reach the package's own errors."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)


@pytest.fixture
def default_dtype():
    """Set the default dtype of tensors, as users may, until the end of the test."""
    before = torch.get_default_dtype()
    yield torch.set_default_dtype
    torch.set_default_dtype(before)
