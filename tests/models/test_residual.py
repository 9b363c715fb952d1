"""By which rule residual factors are kept: paired differences of held-out evidence, taken from known scores."""

import numpy as np
import pytest
import torch

from scvae_ext.data import align, read_registry
from scvae_ext.models import residual
from scvae_ext.models.cells import Cells
from scvae_ext.models.residual import FactorTest, choose_cells, choose_factors
from scvae_ext.modules import VAE

N_CELLS = 100


def make(n_factors):
    return VAE(7, n_hidden=4, n_latent=2, residual_rank=n_factors).eval()


@pytest.fixture
def chosen(monkeypatch, adata):
    """Choose among three factors, each known by its first loading, where the evidence of any set of them is given."""

    def choose(evidence, n_cells=N_CELLS):
        base, full = make(0), make(3)
        with torch.no_grad():
            full.mean_head.linear.weight[0, -3:] = torch.arange(1.0, 4.0)

        def score(vae, cells, n_samples, seed):
            if vae is base:
                return evidence(None)
            first = vae.mean_head.linear.weight[0, vae.mean_head.linear.in_features - vae.residual_rank :]
            return evidence([round(value) - 1 for value in first.tolist()])

        monkeypatch.setattr(residual, "marginal_log_likelihood", score)
        cells = Cells(align(adata, read_registry(adata)), np.arange(n_cells), torch.device("cpu"))
        vae, test = choose_factors(base, full, make, cells, seed=0)
        return vae is base, vae, test

    return choose


def gains(*means, together=None, sd=1.0):
    """Return scores to which each factor adds its mean, with independent noise of exactly this spread."""
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(4, N_CELLS))
    noise = sd * (noise - noise.mean(1, keepdims=True)) / noise.std(1, ddof=1, keepdims=True)

    def evidence(factors):
        if factors is None:
            return -np.full(N_CELLS, together) + noise[3] if together is not None else np.zeros(N_CELLS)
        return sum((means[factor] + noise[factor] for factor in factors), np.zeros(N_CELLS))

    return evidence


def test_those_with_a_gain_beyond_two_standard_errors_are_kept(chosen):
    # One standard error is 1 / sqrt(100).
    is_base, vae, test = chosen(gains(0.19, 0.5, 0.21))
    assert not is_base
    assert test.active == (False, True, True)
    np.testing.assert_allclose(test.gain, [0.19, 0.5, 0.21])
    np.testing.assert_allclose(test.standard_error, 0.1)
    assert vae.residual_rank == 2
    torch.testing.assert_close(vae.mean_head.linear.weight[0, -2:], torch.tensor([2.0, 3.0]))
    frame = test.to_frame()
    assert frame.index.tolist() == ["residual_0", "residual_1", "residual_2", "together"]
    assert frame["gain"]["together"] == pytest.approx(0.71)
    assert frame["active"].tolist() == [False, True, True, True]


def test_of_two_that_stand_in_for_each_other_one_is_kept(chosen):
    def evidence(factors):
        noise = np.random.default_rng(1).normal(size=N_CELLS)
        return 0 * noise if not factors else 1.0 * bool({0, 1} & set(factors)) + noise * 0.1

    is_base, vae, test = chosen(evidence)
    assert not is_base
    assert vae.residual_rank == 1
    assert test.active[2] is False
    assert sum(test.active[:2]) == 1
    assert test.gain[test.active.index(True)] == pytest.approx(1, abs=0.05)


def test_where_none_has_a_gain_the_model_is_the_one_without(chosen):
    is_base, _, test = chosen(gains(0.1, -3.0, 0.0))
    assert is_base
    assert test.active == (False, False, False)
    assert np.isnan(test.to_frame().loc["together", ["gain", "standard_error"]].astype(float)).all()


def test_factors_that_only_the_longer_training_came_to_need_are_not_kept(chosen):
    is_base, _, test = chosen(gains(5.0, 5.0, 5.0, together=-14.9))
    assert is_base
    assert test.active == (False, False, False)
    # Gains of 15 less 14.9, with the noise of all four.
    assert test.together == pytest.approx(0.1)
    assert test.together < 2 * test.together_error


def test_without_held_out_cells_all_are_kept_and_nothing_is_claimed(chosen):
    is_base, vae, test = chosen(gains(0.0, 0.0, 0.0), n_cells=1)
    assert not is_base
    assert vae.residual_rank == 3
    assert test.active == (True, True, True)
    assert test.to_frame()["gain"].isna().all()


def test_no_more_than_two_thousand_cells_are_asked():
    few = np.array([3, 5, 8])
    assert choose_cells(few, 0) is few
    many = np.arange(10_000, 20_000)
    found = choose_cells(many, 0)
    assert len(np.unique(found)) == len(found) == 2000
    assert np.isin(found, many).all()


def test_is_the_same_from_json():
    test = FactorTest((0.5, None), (0.1, None), (True, False), 0.4, None, 7, 20)
    assert FactorTest.from_dict({**test.to_dict(), "active": [True, False], "gain": [0.5, None]}) == test
