import numpy as np
import pytest
import torch
from anndata import AnnData
from judged_model import JudgedModel

from scvae_ext import SCVAE
from scvae_ext.diagnostics._latent_lines import N_STEPS, measure_lines, measure_path

SHARES = np.linspace(0, 1, N_STEPS + 1)


def test_a_straight_and_even_way():
    ends = np.array([[0.0, 0.0, 0.0], [3.0, 4.0, 0.0]])
    way = ends[0] + SHARES[:, None, None] * (ends[1] - ends[0])
    found = measure_path(way, ends)
    assert found.chord == pytest.approx([5.0])
    assert found.detour == pytest.approx([1.0])
    assert found.largest_step == pytest.approx([1.0])
    # With cells at the two ends alone, the middle is half the way from either.
    assert found.gap == pytest.approx([0.5])
    assert measure_path(way, way[:, 0]).gap == pytest.approx([0.0], abs=1e-6)


def test_half_a_circle():
    way = np.column_stack([np.cos(np.pi * SHARES), np.sin(np.pi * SHARES)])[:, None]
    found = measure_path(way, np.array([[1.0, 0.0], [-1.0, 0.0]]))
    assert found.detour == pytest.approx([N_STEPS * np.sin(np.pi / (2 * N_STEPS))])
    assert found.detour == pytest.approx([np.pi / 2], rel=2e-3)
    assert found.largest_step == pytest.approx([1.0])
    assert found.gap == pytest.approx([np.sqrt(2) / 2])


def test_a_jump():
    way = (SHARES > 0.43).astype(float)[:, None, None] * np.array([2.0, 0.0])
    found = measure_path(way, way[:, 0])
    assert found.detour == pytest.approx([1.0])
    assert found.largest_step == pytest.approx([N_STEPS])


def test_ends_that_are_alike_have_no_way():
    found = measure_path(np.ones((N_STEPS + 1, 2, 3)), np.ones((1, 3)))
    assert (found.chord == 0).all()
    assert np.isnan(found.detour).all()


class Bend(JudgedModel):
    """Two genes: one grows with the latent point, the other with its square."""

    def centre(self, minibatch):
        return minibatch.counts.dense()[:, :1]

    def expected(self, state, minibatch):
        # Shares whose log-normalised values are z and z^2.
        values = torch.expm1(torch.cat([state, state.square()], 1).double()) / 1e4
        return torch.cat([values, 1 - values.sum(1, keepdim=True)], 1)


def test_lines_run_between_the_latent_points_of_two_cells():
    adata = AnnData(np.array([[1, 1, 5], [3, 1, 5], [2, 1, 5], [2, 2, 5]], dtype=np.float32))
    SCVAE.setup_anndata(adata)
    model = SCVAE(adata, n_latent=1)
    found = measure_lines(Bend(), model, np.array([[0, 1], [0, 2]]), np.array([0, 1]))

    def value(z):
        rest = np.log1p(1e4 * (1 - np.expm1(np.array([z, z**2])).sum() / 1e4))
        return np.array([z, z**2, rest])

    for end, chord, detour in zip((3.0, 2.0), found.chord, found.detour, strict=True):
        points = np.array([value(1 + share * (end - 1)) for share in SHARES])
        straight = np.linalg.norm(points[-1] - points[0])
        assert chord == pytest.approx(straight, rel=1e-5)
        assert detour == pytest.approx(np.linalg.norm(np.diff(points, axis=0), axis=1).sum() / straight, rel=1e-5)
