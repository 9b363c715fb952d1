import itertools
import math
from dataclasses import replace

import pytest
import torch
from minibatches import make_minibatch
from torch.distributions import Normal

from scvae_ext.likelihoods import gene_statistics
from scvae_ext.minibatch import SparseCounts
from scvae_ext.modules import VAE
from scvae_ext.modules.vae import reparameterised_sample

LIKELIHOODS = [
    *itertools.product(("nb", "zinb", "normal"), ("gene", "gene-batch", "gene-label", "gene-cell")),
    ("poisson", "gene"),
]
DEPTHS = {"observed": {}, "latent": {"use_observed_lib_size": False}, "size factor": {"use_size_factor": True}}
NETWORKS = {
    "plain": {},
    "deep": {"n_layers": 2, "encode_covariates": True},
    "first layer": {"n_layers": 2, "deeply_inject_covariates": False, "encode_covariates": True},
    "embedding": {"batch_representation": "embedding", "encode_covariates": True},
    "layer norm": {"encoder_normalisation": "layer", "decoder_normalisation": "layer", "n_layers": 2},
    "no norm": {"encoder_normalisation": "none", "decoder_normalisation": "none"},
    "simplex": {"latent_distribution": "ln"},
    "linear": {"decoder": "linear"},
    "linear simplex": {"decoder": "linear", "latent_distribution": "ln", "residual_rank": 2},
}
DATA = {"n_batches": 2, "n_labels": 3, "n_categories": (2,), "n_continuous": 1}


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("depth", DEPTHS)
def test_every_parameter_receives_a_gradient(network, depth):
    for likelihood, dispersion in LIKELIHOODS:
        options = NETWORKS[network] | DEPTHS[depth] | {"gene_likelihood": likelihood, "dispersion": dispersion}
        minibatch = make_minibatch(32, **DATA, size_factor=depth == "size factor")
        vae = VAE(7, **DATA, n_hidden=16, n_latent=3, **options)
        vae.initialise(gene_statistics([minibatch], compositional=depth != "size factor"))
        vae.initialise_library(minibatch.library_size, minibatch.batch)
        vae.objective(minibatch).score().sum().backward()
        for name, value in vae.named_parameters():
            where = f"{name} of {likelihood}, {dispersion}"
            assert value.grad is not None, where
            assert bool(value.grad.isfinite().all()), where
            assert bool(value.grad.any()), where
            if name.endswith("log_value") and value.dim() == 2:
                assert bool(value.grad.any(1).all()), where


def test_data_without_batches_or_covariates():
    vae = VAE(7, n_hidden=16, n_latent=3, batch_representation="embedding", encode_covariates=True)
    vae.objective(make_minibatch()).score().sum().backward()
    assert all(value.grad is not None and bool(value.grad.any()) for value in vae.parameters())


@pytest.mark.parametrize("representation", ["one-hot", "embedding"])
@pytest.mark.parametrize("encode_covariates", [True, False])
def test_covariates_reach_the_decoder_and_on_request_the_encoder(representation, encode_covariates):
    minibatch = make_minibatch(**DATA)
    vae = VAE(
        7, **DATA, n_hidden=16, n_latent=3, batch_representation=representation, encode_covariates=encode_covariates
    ).eval()
    latent = vae.encode(minibatch).qz.loc
    mean = vae.decode(latent, minibatch).mean
    others = {
        "batch": 1 - minibatch.batch,
        "categorical_covariates": 1 - minibatch.categorical_covariates,
        "continuous_covariates": minibatch.continuous_covariates + 1,
    }
    for field, value in others.items():
        changed = replace(minibatch, **{field: value})
        assert not torch.allclose(vae.decode(latent, changed).mean, mean), field
        assert torch.equal(vae.encode(changed).qz.loc, latent) is not encode_covariates, field


def test_given_batches_decode_as_if_they_had_been_observed():
    minibatch = make_minibatch(n_batches=2)
    vae = VAE(7, n_batches=2, n_hidden=16, n_latent=3, dispersion="gene-batch").eval()
    with torch.no_grad():
        vae.likelihood.dispersion.log_value[1] = 1.0
        latent, swapped = torch.randn(12, 3), 1 - minibatch.batch
        found = vae.decode(latent, minibatch, batch=swapped)
        expected = vae.decode(latent, replace(minibatch, batch=swapped))
    assert torch.equal(found.mean, expected.mean)
    assert torch.equal(found.inverse_dispersion, expected.inverse_dispersion)


@torch.no_grad()
def test_the_mean_is_proportional_to_the_observed_library_size():
    minibatch = make_minibatch()
    vae = VAE(7, n_hidden=16, n_latent=3).eval()
    mean = vae.decode(torch.randn(12, 3), minibatch).mean
    torch.testing.assert_close(mean.sum(1), minibatch.library_size)


@torch.no_grad()
def test_size_factors_scale_the_mean_and_the_library_size_does_not():
    minibatch = make_minibatch(size_factor=True)
    vae = VAE(7, n_hidden=16, n_latent=3, use_size_factor=True).eval()
    latent = torch.randn(12, 3)
    mean = vae.decode(latent, minibatch).mean
    scaled = replace(minibatch, size_factor=3 * minibatch.size_factor, library_size=5 * minibatch.library_size)
    torch.testing.assert_close(vae.decode(latent, scaled).mean, 3 * mean)


@torch.no_grad()
def test_a_latent_library_size_scales_the_mean():
    minibatch = make_minibatch()
    vae = VAE(7, n_hidden=16, n_latent=3, use_observed_lib_size=False).eval()
    log_library = torch.randn(12)
    mean = vae.decode(torch.randn(12, 3), minibatch, log_library).mean
    torch.testing.assert_close(mean.sum(1), log_library.exp())


def test_the_simplex_is_the_support_of_the_logistic_normal():
    vae = VAE(7, n_hidden=16, n_latent=4, latent_distribution="ln")
    latent = vae.to_latent(torch.randn(5, 12, 4))
    assert bool((latent > 0).all())
    torch.testing.assert_close(latent.sum(-1), torch.ones(5, 12))


def test_the_decoder_of_the_logistic_normal_does_not_see_a_common_shift():
    minibatch = make_minibatch()
    vae = VAE(7, n_hidden=16, n_latent=4, latent_distribution="ln").eval()
    sample = torch.randn(12, 4)
    torch.testing.assert_close(vae.decode_hidden(sample + 2, minibatch), vae.decode_hidden(sample, minibatch))


@pytest.mark.parametrize("likelihood", ["nb", "zinb", "poisson", "normal"])
def test_a_latent_library_size_trains_without_nan_on_extreme_counts(likelihood):
    generator = torch.Generator().manual_seed(1)
    depth = torch.logspace(0, 6, 64).view(-1, 1)
    counts = torch.poisson(depth * torch.rand(64, 7, generator=generator), generator=generator)
    counts[:, 0] += 1
    minibatch = replace(make_minibatch(64), counts=SparseCounts.from_dense(counts), library_size=counts.sum(1))
    vae = VAE(7, n_hidden=16, n_latent=3, gene_likelihood=likelihood, use_observed_lib_size=False)
    vae.initialise(gene_statistics([minibatch]))
    vae.initialise_library(minibatch.library_size, minibatch.batch)
    optimizer = torch.optim.Adam(vae.parameters(), lr=0.05)
    for _ in range(100):
        optimizer.zero_grad()
        score = vae.objective(minibatch).score()
        assert bool(score.isfinite().all())
        (-score.mean()).backward()
        optimizer.step()
    assert all(bool(value.isfinite().all()) for value in vae.parameters())


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, {"use_observed_lib_size": False}])
def test_samples_come_on_a_leading_axis(options):
    minibatch = make_minibatch()
    output = VAE(7, n_hidden=16, n_latent=3, **options).eval()(minibatch, 5)
    assert output.latent.shape == (5, 12, 3)
    assert output.px.batch_shape == (5, 12, 7)
    assert (output.log_library is None) is not bool(options)


@torch.no_grad()
def test_cells_do_not_depend_on_each_other_once_trained():
    minibatch = make_minibatch(**DATA)
    vae = VAE(7, **DATA, n_hidden=16, n_latent=3, encode_covariates=True).eval()
    order = torch.randperm(12)
    permuted = make_minibatch(**DATA)
    permuted = replace(
        permuted,
        counts=SparseCounts.from_dense(permuted.counts.dense()[order]),
        **{
            name: getattr(minibatch, name)[order]
            for name in ("library_size", "batch", "label", "categorical_covariates", "continuous_covariates")
        },
    )
    torch.testing.assert_close(vae.encode(permuted).qz.loc, vae.encode(minibatch).qz.loc[order])
    latent = torch.randn(12, 3)
    torch.testing.assert_close(vae.decode(latent[order], permuted).mean, vae.decode(latent, minibatch).mean[order])


def test_the_same_generator_gives_the_same_objective_and_leaves_the_default_one_alone():
    minibatch = make_minibatch()
    vae = VAE(7, n_hidden=16, n_latent=3, use_observed_lib_size=False).eval()
    state = torch.get_rng_state()
    one, two = (vae.objective(minibatch, torch.Generator().manual_seed(3)).score() for _ in range(2))
    other = vae.objective(minibatch, torch.Generator().manual_seed(4)).score()
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), state)


def test_reparameterised_samples_have_the_moments_of_the_gaussian():
    q = Normal(torch.tensor([-3.0, 10.0]), torch.tensor([0.1, 4.0]))
    samples = reparameterised_sample(q, 40_000)
    error = q.scale / math.sqrt(40_000)
    assert float(((samples.mean(0) - q.loc) / error).abs().max()) < 4.5
    torch.testing.assert_close(samples.std(0), q.scale, rtol=0.02, atol=0)


def test_reparameterised_samples_are_differentiable_in_location_and_scale():
    loc, scale = torch.zeros(4, requires_grad=True), torch.full((4,), 2.0, requires_grad=True)
    sample = reparameterised_sample(Normal(loc, scale))
    sample.sum().backward()
    assert torch.equal(loc.grad, torch.ones(4))
    torch.testing.assert_close(scale.grad, sample.detach() / 2)
