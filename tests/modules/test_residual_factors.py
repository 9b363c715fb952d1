"""Residual factors of the VAE: a linear term in the log mean, past the decoder."""

import itertools

import numpy as np
import pytest
import torch
from minibatches import make_minibatch
from scipy import stats

from scvae_ext.likelihoods import gene_statistics
from scvae_ext.modules import VAE

SIZES = {"n_hidden": 16, "n_latent": 3, "residual_rank": 2}


@pytest.mark.parametrize(
    ("likelihood", "size_factor"), list(itertools.product(["nb", "zinb", "poisson", "normal"], [0, 1]))
)
def test_every_parameter_receives_a_gradient(likelihood, size_factor):
    minibatch = make_minibatch(32, size_factor=bool(size_factor))
    dispersion = "gene" if likelihood == "poisson" else "gene-cell"
    vae = VAE(7, **SIZES, gene_likelihood=likelihood, use_size_factor=bool(size_factor), dispersion=dispersion)
    vae.initialise(gene_statistics([minibatch], compositional=not size_factor))
    vae.objective(minibatch).score().sum().backward()
    for name, value in vae.named_parameters():
        assert value.grad is not None, name
        assert bool(value.grad.isfinite().all()), name
        assert bool(value.grad.any()), name
    # Encoder heads and loadings reach every factor.
    assert bool(vae.encoder.mean.weight.grad[3:].any(1).all())
    assert bool(vae.encoder.log_variance.weight.grad[3:].any(1).all())


@torch.no_grad()
@pytest.mark.parametrize("likelihood", ["nb", "zinb", "poisson"])
def test_factors_add_their_loadings_to_the_log_mean(likelihood):
    minibatch = make_minibatch()
    vae = VAE(7, **SIZES, gene_likelihood=likelihood).eval()
    assert vae.residual_loadings.shape == (7, 2)
    sample = torch.randn(12, 5, generator=torch.Generator().manual_seed(0))
    without = sample.clone()
    without[:, 3:] = 0
    means = [vae.likelihood.parameters_by_name(vae.decode(each, minibatch))["mean"] for each in (sample, without)]
    expected = means[1] * torch.exp(sample[:, 3:] @ vae.residual_loadings.T)
    expected *= minibatch.library_size[:, None] / expected.sum(1, keepdim=True)
    torch.testing.assert_close(means[0], expected)


@torch.no_grad()
def test_factors_add_their_loadings_to_log_normalised_values():
    minibatch = make_minibatch()
    vae = VAE(7, **SIZES, gene_likelihood="normal").eval()
    sample = torch.randn(12, 5)
    without = sample.clone()
    without[:, 3:] = 0
    difference = vae.decode(sample, minibatch).loc - vae.decode(without, minibatch).loc
    torch.testing.assert_close(difference, sample[:, 3:] @ vae.residual_loadings.T, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_dispersions_and_extra_zeros_do_not_depend_on_them():
    minibatch = make_minibatch()
    vae = VAE(7, **SIZES, gene_likelihood="zinb", dispersion="gene-cell").eval()
    sample = torch.randn(12, 5)
    moved = sample.clone()
    moved[:, 3:] += 1
    for name in ("dispersions", "dropout"):
        one, two = (vae.likelihood.parameters_by_name(vae.decode(each, minibatch))[name] for each in (sample, moved))
        assert torch.equal(one, two), name


@torch.no_grad()
def test_the_decoder_reads_z_alone_and_so_does_the_simplex():
    minibatch = make_minibatch()
    vae = VAE(7, **SIZES, latent_distribution="ln").eval()
    sample = torch.randn(4, 12, 5)
    latent = vae.to_latent(sample)
    assert latent.shape == (4, 12, 3)
    torch.testing.assert_close(latent, sample[..., :3].softmax(-1))
    hidden = vae.decode_hidden(sample, minibatch)
    assert hidden.shape == (4, 12, 18)
    moved = sample.clone()
    moved[..., 3:] += 1
    assert torch.equal(vae.decode_hidden(moved, minibatch)[..., :16], hidden[..., :16])


@torch.no_grad()
@pytest.mark.parametrize("prior", ["mixture", "vamp"])
def test_factors_are_standard_normal_under_a_learned_prior(prior):
    vae = VAE(7, **SIZES, prior=prior, n_prior_components=4).eval()
    z = torch.randn(50, 5)
    moved = torch.cat([z[:, :3], torch.randn(50, 2)], 1)
    # The density factorises: what z adds to it is the same whatever the factors.
    factors = [torch.from_numpy(stats.norm.logpdf(each[:, 3:]).sum(1)).float() for each in (z, moved)]
    of_z = [vae.pz().log_prob(each) - of_factors for each, of_factors in zip((z, moved), factors, strict=True)]
    torch.testing.assert_close(*of_z, rtol=1e-4, atol=1e-4)
    samples = vae.sample_prior(20_000, torch.Generator().manual_seed(0))
    assert samples.shape == (20_000, 5)
    assert stats.kstest(samples[:, 3:].flatten(), "norm").pvalue > 1e-4
    assert np.abs(np.corrcoef(samples.T.numpy())[3:, :3]).max() < 4 / np.sqrt(20_000)


def test_without_factors_nothing_is_added():
    torch.manual_seed(0)
    plain = VAE(7, n_hidden=16, n_latent=3)
    torch.manual_seed(0)
    vae = VAE(7, n_hidden=16, n_latent=3, residual_rank=0)
    assert vae.residual_loadings.shape == (7, 0)
    assert all(torch.equal(one, two) for one, two in zip(plain.parameters(), vae.parameters(), strict=True))
    sample = torch.randn(12, 3)
    assert vae.decode_hidden(sample, make_minibatch()).shape == (12, 16)
    assert torch.equal(vae.to_latent(sample), sample)
