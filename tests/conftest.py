"""Settings shared by every test."""

import os
import signal

# Parallel workers share the cores; this has to stand before torch is imported.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # numba, once scanpy has used it, sets the number of threads of OpenMP for torch as well.
    os.environ.setdefault("NUMBA_NUM_THREADS", "1")

import matplotlib as mpl
import matplotlib.pyplot as plt
import pytest
from jaxtyping import config

mpl.use("agg")


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


# All steps of a training call the same functions with the same kinds of tensors.
N_CHECKED_STEPS = 32


@pytest.fixture(autouse=True, scope="session")
def _types_are_checked_in_the_first_steps_of_a_training():
    """Check types where they can differ: each training's first steps and every validation; later steps cost half."""
    from scvae_ext.train.lightning_module import TrainingModule

    training_step = TrainingModule.training_step

    def checked_at_first(self, *args, **kwargs):
        if self.step < N_CHECKED_STEPS:
            return training_step(self, *args, **kwargs)
        before = config.jaxtyping_disable
        config.update("jaxtyping_disable", True)
        try:
            return training_step(self, *args, **kwargs)
        finally:
            config.update("jaxtyping_disable", before)

    TrainingModule.training_step = checked_at_first
    yield
    TrainingModule.training_step = training_step


@pytest.fixture
def unchecked():
    """Switch the type checks off, as they are for users, to reach the package's own errors."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)
