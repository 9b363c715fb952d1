import pytest
import torch

from scvae_ext import SCVAE
from scvae_ext.datasets import synthetic_counts
from scvae_ext.random_state import seeded


def test_draws_are_those_of_the_seed_and_the_state_is_put_back():
    before = torch.get_rng_state()
    with seeded(3):
        draws = torch.rand(4)
    assert torch.equal(draws, torch.rand(4, generator=torch.Generator().manual_seed(3)))
    assert torch.equal(torch.get_rng_state(), before)


def _draw_and_fail():
    torch.rand(4)
    raise ZeroDivisionError


def test_the_state_is_put_back_after_an_error(monkeypatch):
    seeds, before = [], torch.get_rng_state()
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeds.append)
    with pytest.raises(ZeroDivisionError), seeded(3):
        _draw_and_fail()
    assert torch.equal(torch.get_rng_state(), before)
    assert seeds[-1] == torch.initial_seed()


@pytest.mark.parametrize("awake", [False, True])
def test_a_gpu_that_sleeps_is_not_woken(monkeypatch, awake):
    asked, restored = [], []
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: awake)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: None)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: asked.append(device) or device)
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: restored.append((state, device)))
    with seeded(0):
        pass
    assert asked == ([0, 1] if awake else [])
    assert restored == [(device, device) for device in asked]


def test_nor_is_it_by_a_model_and_its_getters(monkeypatch):
    def wake(*args):
        raise AssertionError("woken")

    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_rng_state", wake)
    with pytest.raises(AssertionError, match="woken"), torch.random.fork_rng(range(2)):
        pass
    adata = synthetic_counts(80, 20, n_types=2, n_batches=2, library_size=200)
    SCVAE.setup_anndata(adata, batch_key="batch")
    model = SCVAE(adata, n_hidden=8, n_latent=2)
    model.train(max_steps=5, accelerator="cpu", enable_progress_bar=False)
    model.posterior_predictive_sample()
    model.generate(20)
    model.calibrate_intervals(train_options={"max_steps": 5, "accelerator": "cpu"})
    model.counterfactual({"batch": "batch_0"})
    model.get_novelty()
    model.get_feature_correlation_matrix()
