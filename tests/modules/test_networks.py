import numpy as np
import pytest
import torch
from minibatches import make_minibatch

from scvae_ext.likelihoods import gene_statistics
from scvae_ext.modules import VAE
from scvae_ext.modules.networks import MIN_LIBRARY_VARIANCE
from scvae_ext.nn import LibraryEncoder


@torch.no_grad()
@pytest.mark.parametrize("likelihood", ["nb", "zinb", "poisson"])
@pytest.mark.parametrize("size_factor", [True, False])
def test_it_starts_from_the_means_of_the_data(likelihood, size_factor):
    minibatch = make_minibatch(size_factor=size_factor)
    vae = VAE(7, n_hidden=16, n_latent=3, gene_likelihood=likelihood, use_size_factor=size_factor).eval()
    vae.initialise(gene_statistics([minibatch], compositional=not size_factor))
    head = (vae.likelihood.base if likelihood == "zinb" else vae.likelihood).expression_head.linear
    head.weight.zero_()
    mean = vae.likelihood.parameters_by_name(vae(minibatch).px)["mean"]
    torch.testing.assert_close(mean.sum(0), minibatch.counts.dense().sum(0), rtol=1e-4, atol=0)


@torch.no_grad()
def test_prior_of_the_library_size_is_that_of_each_batch():
    vae = VAE(7, n_batches=3, n_hidden=16, use_observed_lib_size=False)
    sizes = torch.tensor([10.0, 100.0, 40.0, 40.0, 1000.0])
    batch = torch.tensor([0, 0, 1, 1, 0])
    vae.initialise_library(sizes, batch)
    logs = np.log(sizes.numpy())
    # The third batch has no training cell.
    expected_mean = [logs[[0, 1, 4]].mean(), logs[2], logs.mean()]
    expected_variance = [logs[[0, 1, 4]].var(), MIN_LIBRARY_VARIANCE, logs.var()]
    minibatch = make_minibatch(6, n_batches=3)
    prior = vae.library_prior(minibatch)
    np.testing.assert_allclose(prior.loc, np.tile(expected_mean, 2), rtol=1e-5)
    np.testing.assert_allclose(prior.scale**2, np.tile(expected_variance, 2), rtol=1e-5)


def test_an_observed_library_size_has_neither_prior_nor_encoder():
    vae = VAE(7, n_hidden=16)
    assert vae.library_prior(make_minibatch()) is None
    assert vae.encode(make_minibatch()).log_library is None
    assert not any(isinstance(part, LibraryEncoder) for part in vae.modules())
    vae.initialise_library(torch.ones(3), torch.zeros(3, dtype=torch.int64))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("option", "value", "valid"),
    [
        ("decoder", "affine", '"nonlinear" or "linear"'),
        ("latent_distribution", "lognormal", '"normal" or "ln"'),
        ("batch_representation", "dummy", '"one-hot" or "embedding"'),
        ("gene_likelihood", "negbin", "'nb', 'zinb', 'poisson', 'normal'"),
        ("dispersion", "genes", "'gene', 'gene-batch', 'gene-label', 'gene-cell'"),
    ],
)
def test_unknown_values_are_refused_with_the_valid_ones(option, value, valid):
    with pytest.raises(ValueError, match=f"{option}='{value}'.*{valid}"):
        VAE(7, **{option: value})


@torch.no_grad()
def test_a_latent_library_size_lies_about_the_logarithm_of_the_observed_one():
    vae = VAE(7, n_hidden=16, use_observed_lib_size=False).eval()
    vae.library_encoder.offset.weight.zero_()
    minibatch = make_minibatch()
    torch.testing.assert_close(vae.encode(minibatch).log_library.loc, minibatch.library_size.log())
