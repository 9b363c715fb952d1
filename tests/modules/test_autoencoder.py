from dataclasses import replace

import numpy as np
import pytest
import torch
from minibatches import make_minibatch

from scvae_ext.likelihoods import gene_statistics, log_normalised_matrix
from scvae_ext.minibatch import SparseCounts
from scvae_ext.modules import DeterministicAutoencoder


@pytest.mark.parametrize("n_layers", [1, 2])
@pytest.mark.parametrize("size_factor", [True, False])
def test_every_parameter_receives_a_gradient(n_layers, size_factor):
    minibatch = make_minibatch(n_batches=2, n_categories=(3,), n_continuous=1, size_factor=size_factor)
    module = DeterministicAutoencoder(
        7, n_batches=2, n_categories=(3,), n_continuous=1, n_hidden=16, n_layers=n_layers, use_size_factor=size_factor
    )
    module.objective(minibatch).score().sum().backward()
    for name, value in module.named_parameters():
        assert value.grad is not None, name
        assert bool(value.grad.isfinite().all()), name
        assert bool(value.grad.any()), name


@pytest.mark.parametrize("size_factor", [True, False])
def test_error_is_that_of_log_normalised_values(size_factor):
    minibatch = make_minibatch(size_factor=size_factor)
    module = DeterministicAutoencoder(7, n_hidden=16, use_size_factor=size_factor).eval()
    counts = minibatch.counts.dense().numpy()
    scale = 1 / minibatch.size_factor.numpy() if size_factor else 1e4 / counts.sum(1)
    target = np.log1p(counts * scale[:, None])
    with torch.no_grad():
        expected = ((module(minibatch).numpy() - target) ** 2).mean(1)
        np.testing.assert_allclose(module.objective(minibatch).mse, expected, rtol=1e-5)


def test_it_starts_from_the_means():
    minibatch = make_minibatch()
    module = DeterministicAutoencoder(7, n_hidden=16).eval()
    module.initialise(gene_statistics([minibatch]))
    with torch.no_grad():
        module.head.linear.weight.zero_()
        found = module(minibatch)
    counts = minibatch.counts.dense().numpy()
    means = np.log1p(1e4 * counts / counts.sum(1, keepdims=True)).mean(0)
    np.testing.assert_allclose(found, np.tile(means, (12, 1)), rtol=1e-5)


def test_other_batches_change_the_prediction_but_not_the_latent_point():
    minibatch = make_minibatch(n_batches=2)
    module = DeterministicAutoencoder(7, n_batches=2, n_hidden=16).eval()
    latent = module.encode(minibatch)
    one, two = (module.decode_hidden(latent, minibatch, torch.full((12,), batch)) for batch in (0, 1))
    assert not torch.allclose(one, two)


def test_nothing_is_sampled():
    minibatch = make_minibatch()
    module = DeterministicAutoencoder(7, n_hidden=16).eval()
    assert torch.equal(module.objective(minibatch).mse, module.objective(minibatch).mse)


def test_it_learns_groups_of_cells():
    generator = torch.Generator().manual_seed(0)
    counts = (1 + (20 * torch.rand(3, 7, generator=generator)).round())[torch.arange(60) % 3]
    minibatch = make_minibatch(60)
    minibatch = replace(minibatch, counts=SparseCounts.from_dense(counts), library_size=counts.sum(1))
    module = DeterministicAutoencoder(7, n_hidden=16, n_latent=2, dropout_rate=0.0)
    module.initialise(gene_statistics([minibatch]))
    optimizer = torch.optim.Adam(module.parameters(), lr=0.02)
    target = log_normalised_matrix(minibatch, compositional=True)
    for _ in range(300):
        optimizer.zero_grad()
        (-module.objective(minibatch).score().mean()).backward()
        optimizer.step()
    error = float(module.objective(minibatch).mse.mean().detach())
    assert error < 0.05 * float(target.var(0).mean())
