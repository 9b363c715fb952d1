import numpy as np
import torch

from scvae_ext.data import synthetic_counts
from scvae_ext.likelihoods import ProteinLikelihood
from scvae_ext.likelihoods.proteins import _two_groups


def test_it_starts_from_background_and_foreground_of_the_data():
    adata = synthetic_counts(3000, 10, n_batches=2, n_proteins=8, seed=2)
    likelihood = ProteinLikelihood(4, 8, 2)
    batch = torch.from_numpy(adata.obs["batch"].cat.codes.to_numpy().astype(np.int64))
    measured = torch.ones(2, 8, dtype=torch.bool)
    measured[1, 0] = False
    likelihood.initialise(torch.from_numpy(adata.obsm["protein"].to_numpy()), batch, measured)
    px = likelihood(torch.zeros(2, 4), torch.arange(2))
    background = adata.obsm["protein_background"].groupby(adata.obs["batch"], observed=True).mean().to_numpy()
    seen = measured.numpy()
    # Where foreground is only three times the background, cells of the one count as the other.
    error = np.abs(np.log(px.first.mean.detach().numpy() / background))[seen]
    assert error.mean() < 0.15
    assert error.max() < np.log(1.6)
    # Where a protein was not measured it starts as where it was.
    torch.testing.assert_close(px.first.mean[1, 0], px.first.mean[0, 0])
    share = 1 - adata.obsm["protein_foreground"].mean().to_numpy()
    assert np.abs(px.first_probability[0].detach().numpy() - share).max() < 0.2
    assert (px.second.mean > px.first.mean).all()


def test_many_cells_and_proteins_start_from_what_they_were_drawn_from():
    torch.manual_seed(0)
    n_cells, n_proteins = 90_000, 190
    is_there = torch.rand(n_cells, n_proteins) < 0.3
    proteins = torch.poisson(torch.where(is_there, 200.0, 5.0))
    likelihood = ProteinLikelihood(4, n_proteins, 1)
    measured = torch.ones(1, n_proteins, dtype=torch.bool)
    likelihood.initialise(proteins, torch.zeros(n_cells, dtype=torch.int64), measured)
    px = likelihood(torch.zeros(1, 4), torch.zeros(1, dtype=torch.int64))
    torch.testing.assert_close(px.first.mean, torch.full((1, n_proteins), 5.0), rtol=0.02, atol=0)
    torch.testing.assert_close(px.first_probability, torch.full((1, n_proteins), 0.7), rtol=0.02, atol=0)
    # Groups are told apart by the logarithms of one count more.
    ratio = (px.second.mean / px.first.mean).detach().log()
    assert float((ratio - np.log(201 / 6)).abs().max()) < 0.15


def test_foreground_starts_as_far_above_as_the_upper_group_lies_also_where_that_is_near():
    torch.manual_seed(2)
    proteins = torch.poisson(torch.where(torch.rand(2000, 2) < 0.5, torch.tensor([30.0, 60.0]), 10.0))
    seen = torch.ones(2000, 2, dtype=torch.bool)
    likelihood = ProteinLikelihood(4, 2, 1)
    likelihood.initialise(proteins, torch.zeros(2000, dtype=torch.int64), seen[:1])
    px = likelihood(torch.zeros(1, 4), torch.zeros(1, dtype=torch.int64))
    low, high, _ = _two_groups(proteins, seen)
    assert float((high - low).max()) < 2
    torch.testing.assert_close((px.second.mean / px.first.mean).detach().log()[0], high - low)


def test_where_a_protein_was_not_measured_it_starts_as_it_is_elsewhere():
    torch.manual_seed(1)
    batch = torch.arange(6000) % 3
    proteins = torch.poisson(
        torch.where(torch.rand(6000, 1) < 0.4, 300.0, torch.tensor([4.0, 16.0, 1.0])[batch].view(-1, 1))
    )
    measured = torch.tensor([[True], [True], [False]])
    proteins[batch == 2] = 0
    likelihood = ProteinLikelihood(4, 1, 3)
    likelihood.initialise(proteins, batch, measured)
    px = likelihood(torch.zeros(3, 4), torch.arange(3))
    first = px.first.mean.detach()[:, 0]
    torch.testing.assert_close(first[:2], torch.tensor([4.0, 16.0]), rtol=0.1, atol=0)
    torch.testing.assert_close(first[2], (first[0] * first[1]).sqrt())
    torch.testing.assert_close(px.first_probability[2, 0].detach(), torch.tensor(0.6), atol=0.03, rtol=0)


def test_every_parameter_receives_a_gradient_and_foreground_is_more():
    torch.manual_seed(0)
    likelihood = ProteinLikelihood(5, 3, 2)
    px = likelihood(torch.randn(4, 7, 5), torch.arange(7) % 2)
    assert px.batch_shape == (4, 7, 3)
    assert (px.second.mean > px.first.mean).all()
    loss = px.log_prob(torch.poisson(torch.full((4, 7, 3), 6.0))).sum() + likelihood.log_prior()
    loss.backward()
    for name, parameter in likelihood.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0 or "dispersion" in name, name


def test_means_stay_finite_far_from_the_data():
    likelihood = ProteinLikelihood(2, 3, 1)
    px = likelihood(torch.full((1, 2), 1e6), torch.zeros(1, dtype=torch.int64))
    assert torch.isfinite(px.mean).all()
