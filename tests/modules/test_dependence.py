from itertools import permutations

import numpy as np
import pytest
import torch
from minibatches import make_minibatch

from scvae_ext.modules import VAE, SampledElbo, batch_dependence, trainable_bound
from scvae_ext.modules.dependence import (
    SQUARED_WIDTHS,
    batch_dependence_and_gradient,
    latent_kernel,
    unbiased_hsic,
)


def _normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _delta(batch):
    return (batch[:, None] == batch[None, :]).double()


def test_the_estimate_is_the_sum_over_all_quadruples():
    k = latent_kernel(_normal(7, 2))
    other = _delta(torch.tensor([0, 1, 0, 2, 1, 0, 0]))
    values = [
        float(k[i, j] * (other[i, j] + other[q, r] - 2 * other[i, q])) for i, j, q, r in permutations(range(7), 4)
    ]
    assert float(unbiased_hsic(k, other)) == pytest.approx(np.mean(values), abs=1e-12)


def test_the_estimate_is_the_integral_for_two_normal_batches():
    """With shares p and q and means d apart, 2 (pq)^2 MMD^2 with the known integral of a Gaussian kernel."""
    n, dimensions, distance, width, share = 600, 3, 1.5, 2.0, 0.3
    batch = (torch.arange(n) < share * n).long()
    found = []
    for seed in range(20):
        z = _normal(n, dimensions, seed=seed)
        z[:, 0] += distance * batch
        found.append(float(unbiased_hsic(torch.exp(-torch.cdist(z, z).square() / (2 * width)), _delta(batch))))
    inner = (width / (width + 2)) ** (dimensions / 2)
    mmd = 2 * inner * (1 - np.exp(-(distance**2) / (2 * (width + 2))))
    exact = 2 * (share * (1 - share)) ** 2 * mmd
    assert np.mean(found) == pytest.approx(exact, abs=4 * np.std(found) / np.sqrt(20))
    assert np.std(found) < 0.3 * exact


def test_kernels_follow_the_scale_of_the_latent():
    z = _normal(50, 4)
    torch.testing.assert_close(latent_kernel(z), latent_kernel(37.0 * z + 2.0))
    distance = torch.cdist(z, z).square()
    unit = distance[np.triu_indices(50, 1)].median()
    expected = torch.stack([torch.exp(-distance / (2 * width * unit)) for width in SQUARED_WIDTHS]).mean(0)
    torch.testing.assert_close(latent_kernel(z), expected)


@pytest.mark.parametrize("shares", [[0.5, 0.5], [0.9, 0.1], [0.2, 0.3, 0.5]], ids=str)
def test_independent_points_have_none_in_the_mean(shares):
    batch = torch.from_numpy(np.random.default_rng(0).choice(len(shares), 128, p=shares))
    found = torch.stack([batch_dependence(_normal(128, 5, seed=seed), batch) for seed in range(100)])
    assert abs(float(found.mean())) < 4 * float(found.std()) / 10
    assert float(found.std()) < 0.03


def test_points_that_are_their_batch_have_all_of_it():
    batch = torch.arange(200) % 3
    apart = torch.nn.functional.one_hot(batch).double() + 1e-3 * _normal(200, 3)
    assert float(batch_dependence(apart, batch)) == pytest.approx(1.0, abs=0.03)
    # Further apart is more dependent.
    near, far = (float(batch_dependence(_normal(200, 3) + shift * apart, batch)) for shift in (0.5, 2.0))
    assert 0 < near < far < 1


@pytest.mark.parametrize(
    "batch", [torch.zeros(20, dtype=torch.long), torch.tensor([0, 1, 0])], ids=["one batch", "three cells"]
)
def test_minibatches_that_say_nothing_count_as_none(batch):
    z = _normal(len(batch), 3).requires_grad_()
    found = batch_dependence(z, batch)
    assert float(found.detach()) == 0
    if found.requires_grad:
        found.backward()
        assert bool(torch.isfinite(z.grad).all())
        assert not z.grad.any()


def test_cells_that_lie_on_one_point_leave_gradients_finite():
    z = torch.zeros(12, 2, requires_grad=True)
    batch_dependence(z, torch.arange(12) % 2).backward()
    assert bool(torch.isfinite(z.grad).all())


def test_large_minibatches_are_thinned():
    batch, z = torch.arange(3000) % 3, _normal(3000, 2)
    assert float(batch_dependence(z, batch)) == float(batch_dependence(z[::3], batch[::3]))


@pytest.mark.parametrize("n_cells", [3, 100, 2500])
def test_the_gradient_belongs_to_the_cells_that_are_looked_at(n_cells):
    batch, z = torch.arange(n_cells) % 2, _normal(n_cells, 2).float()
    z[:, 0] += batch
    exact = z.double().requires_grad_()
    expected = batch_dependence(exact, batch)
    if n_cells > 3:
        expected.backward()
    value, gradient = batch_dependence_and_gradient(z, batch)
    torch.testing.assert_close(value.double(), expected.detach(), atol=1e-5, rtol=0)
    by_graph = torch.zeros_like(exact) if exact.grad is None else exact.grad
    torch.testing.assert_close(gradient.double(), by_graph, atol=1e-6, rtol=1e-3)


def test_a_penalised_model_scores_the_dependence_of_the_posterior_mean():
    vae, minibatch = VAE(7, n_hidden=4, n_latent=2, n_batches=3), make_minibatch(40, n_batches=3)
    assert trainable_bound(vae, "elbo", 1, 0.0, 0.0) is vae
    view = trainable_bound(vae.eval(), "elbo", 2, 0.1, 30.0)
    assert isinstance(view, SampledElbo)
    assert view.monitor == "penalised_elbo"
    terms = view.objective(minibatch, torch.Generator().manual_seed(3)).terms()
    expected = batch_dependence(vae.encode(minibatch).qz.loc, minibatch.batch)
    torch.testing.assert_close(terms["batch_dependence"], expected.expand(40))
    torch.testing.assert_close(terms["penalised_elbo"], terms["elbo"] - 30.0 * expected)
    view.objective(minibatch).score().mean().backward()
    assert all(bool(value.grad.any()) for value in vae.encoder.parameters())
