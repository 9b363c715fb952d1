"""Settings shared by every test."""

import os
import signal
import sys

# Parallel workers share the cores; this has to stand before torch is imported.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # numba, once scanpy has used it, sets the number of threads of OpenMP for torch as well.
    os.environ.setdefault("NUMBA_NUM_THREADS", "1")

import matplotlib as mpl
import matplotlib.pyplot as plt
import pytest
import typecheck
from jaxtyping import config

mpl.use("agg")
typecheck.install()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    """Let slow tests run without being traced, which would make them take two fifths longer.

    They train and sample for long what quick tests have gone through before.
    """
    coverage = sys.modules.get("coverage")
    tracer = coverage.Coverage.current() if coverage is not None and item.get_closest_marker("slow") else None
    if tracer is None:
        return (yield)
    tracer.stop()
    try:
        return (yield)
    finally:
        tracer.start()


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
