import numpy as np
import pytest
import torch

from scvae_ext.models.cells import evaluating, shared_noise, target_batches


@pytest.mark.parametrize("batch_size", [None, 1, 7, 120, 500])
def test_cells_are_read_in_the_order_asked_for(cells, adata, batch_size):
    order = np.random.default_rng(0).permutation(120)[:50]
    asked = cells(order, batch_size)
    assert len(asked) == 50
    rows, minibatches = zip(*asked, strict=True)
    assert np.concatenate([np.arange(50)[part] for part in rows]).tolist() == list(range(50))
    found = torch.cat([minibatch.counts.dense() for minibatch in minibatches])
    np.testing.assert_array_equal(found, adata.X[order].toarray())


@pytest.mark.parametrize(("batch_size", "limit", "expected"), [(None, 10**9, 50), (None, 30 * 8, 8), (7, 10**9, 7)])
def test_many_cells_at_once_are_those_that_fit_and_no_more_than_asked_for(
    cells, monkeypatch, batch_size, limit, expected
):
    monkeypatch.setattr("scvae_ext.models.cells.BATCH_SIZE", 5)
    monkeypatch.setattr("scvae_ext.models.cells.MAX_ENTRIES", limit)
    sizes = [minibatch.n_cells for _, minibatch in cells(np.arange(50), batch_size).many_at_once()]
    assert (sizes[0], sum(sizes)) == (expected, 50)


@pytest.mark.parametrize("n_samples", [1, 2, 7, 10])
@pytest.mark.parametrize("limit", [1, 3 * 30 * 10, 10**9])
def test_samples_are_split_to_fit_into_memory(cells, monkeypatch, n_samples, limit):
    monkeypatch.setattr("scvae_ext.models.cells.MAX_ENTRIES", limit)
    parts = cells().samples_at_once(10, n_samples)
    assert sum(parts) == n_samples
    assert all(part == 1 or part * 10 * 30 <= limit for part in parts)


@pytest.mark.parametrize("limit", [1, 2000])
def test_results_do_not_depend_on_how_much_fits_into_memory(model, monkeypatch, limit):
    expected = model.get_normalized_expression(return_numpy=True, key_added=None)
    monkeypatch.setattr("scvae_ext.models.cells.MAX_ENTRIES", limit)
    found = model.get_normalized_expression(return_numpy=True, key_added=None)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-7)


def test_evaluation_is_over_afterwards():
    module = torch.nn.Linear(1, 1).train()
    with evaluating(module):
        assert not module.training
        assert not torch.is_grad_enabled()
    assert module.training
    assert torch.is_grad_enabled()


def test_evaluation_is_over_after_an_error():
    module = torch.nn.Linear(1, 1).train()
    with pytest.raises(ZeroDivisionError), evaluating(module):
        raise ZeroDivisionError
    assert module.training


@pytest.mark.parametrize("n_samples", [1, 2, 5, 10])
def test_shared_noise_comes_in_pairs_of_opposite_sign(n_samples):
    noise = shared_noise(n_samples, 3, 0, torch.device("cpu"))
    assert noise.shape == (n_samples, 1, 3)
    torch.testing.assert_close(noise.sum(0), torch.zeros(1, 3))


def test_shared_noise_is_standard_normal_and_follows_its_seed():
    noise = shared_noise(20_000, 2, 3, torch.device("cpu"))
    assert float(noise.std()) == pytest.approx(1, abs=0.02)
    assert torch.equal(noise, shared_noise(20_000, 2, 3, torch.device("cpu")))
    assert not torch.equal(noise, shared_noise(20_000, 2, 4, torch.device("cpu")))


def test_target_batches(cells):
    _, minibatch = next(iter(cells(batch_size=5)))
    assert target_batches(minibatch, []) == [None]
    assert [target.tolist() for target in target_batches(minibatch, [1, 0])] == [[1] * 5, [0] * 5]
