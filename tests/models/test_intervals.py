"""Log expression and its spread under the posterior, and errors of a replicate, computed over again."""

import numpy as np
import pytest
import torch

from scvae_ext.analysis import calibrate_intervals
from scvae_ext.models import intervals
from scvae_ext.models.cells import evaluating
from scvae_ext.models.intervals import Replicate, expression_interval, in_batches, measured_calibration


@pytest.mark.parametrize("is_shifted", [False, True])
def test_the_spread_of_a_linear_function_has_its_closed_form(model, cells, monkeypatch, is_shifted):
    weight = torch.randn(3, 30, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(intervals, "_log_mean", lambda module, sample, settings, columns: sample @ weight)
    shift = np.random.default_rng(0).normal(size=(120, 3)).astype(np.float32) if is_shifted else None
    with evaluating(model.module):
        parts = list(intervals._log_expression(model.module, cells(batch_size=50), in_batches([]), None, shift))
        qz = model.module.encode(model._own_source().minibatch(np.arange(120))).qz
    middle, spread = (torch.cat([part[place] for part in parts]) for place in (2, 3))
    centre = qz.loc if shift is None else qz.loc + torch.from_numpy(shift)
    torch.testing.assert_close(middle, centre @ weight, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(spread, (qz.scale.square() @ weight.square()).sqrt(), rtol=1e-3, atol=1e-4)


def test_errors_are_those_of_the_states_that_were_simulated_from(load, cells, monkeypatch):
    """Of some cells by chance, averaged over two batches."""
    module, other = load("nb").module, load("zinb").module
    every = cells()
    latent = np.random.default_rng(0).normal(size=(120, 3)).astype(np.float32)
    replicate = Replicate("", "", other, every, latent, np.arange(1.0, 31.0))
    found = []
    monkeypatch.setattr(
        intervals,
        "calibrate_intervals",
        lambda *arguments: (found.append(arguments), calibrate_intervals(*arguments))[1],
    )
    monkeypatch.setattr(intervals, "FEWEST_CELLS", 40)
    monkeypatch.setattr(intervals, "MAX_ERRORS", 1)

    def log_mean(module, states, minibatch):
        batches = (torch.full_like(minibatch.batch, code) for code in (0, 1))
        each = [module.likelihood.expression(module.decode_hidden(states, minibatch, batch)) for batch in batches]
        return (sum(each) / 2).log()

    with evaluating(module), evaluating(other):
        measured_calibration(module, replicate, in_batches([0, 1]), seed=3)
        minibatch = every.source.minibatch(np.arange(120))
        expected = log_mean(other, other.encode(minibatch).qz.loc, minibatch)
        expected = expected - log_mean(module, torch.from_numpy(latent), minibatch)
    ((error, _, mean_counts),) = found
    assert error.shape == (40, 30)
    np.testing.assert_array_equal(mean_counts, replicate.mean_counts)
    # Each row is that of one cell, and none comes twice.
    distance = np.abs(error[:, None] - expected.numpy()).max(-1)
    assert distance.min(1).max() < 1e-4
    assert len(np.unique(distance.argmin(1))) == 40


def test_a_latent_depth_is_the_posterior_mean_of_the_library_size(load, cells):
    model = load("latent library")
    some = cells([3, 50])

    errors = np.random.default_rng(0).normal(size=(50, 30))
    calibration = calibrate_intervals(errors, np.zeros((50, 30)), np.arange(1.0, 31.0))
    with evaluating(model.module):
        ends = [
            expression_interval(model.module, some, in_batches([]), None, depth, calibration, 0.9)[1]
            for depth in (1.0, 1000.0, "latent")
        ]
        library = model.module.encode(some.source.minibatch(np.array([3, 50]))).log_library
    np.testing.assert_allclose(ends[1], 1000 * ends[0], rtol=1e-4)
    size = np.exp(library.loc.numpy() + 0.5 * library.scale.numpy() ** 2).reshape(2, 1)
    np.testing.assert_allclose(ends[2], size * ends[0], rtol=1e-4)
