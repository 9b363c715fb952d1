"""Models whose decoder is linear: the loadings are those of the simulation, and say what the decoder does."""

import json
import warnings

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from anndata import AnnData
from scipy.linalg import subspace_angles

from scvae_ext import SCVAE

QUIET = {"enable_progress_bar": False, "accelerator": "cpu"}
N_CELLS, N_GENES, N_LATENT = 800, 60, 2


def simulate(likelihood):
    """Draw counts whose log mean is linear in two factors."""
    rng = np.random.default_rng(0)
    loadings = rng.normal(0, 0.5, (N_GENES, N_LATENT))
    logits = rng.normal(0, 1, N_GENES) + rng.normal(size=(N_CELLS, N_LATENT)) @ loadings.T
    mean = 600 * np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    rate = mean if likelihood == "poisson" else mean * rng.gamma(5.0, 1 / 5.0, mean.shape)
    adata = AnnData(sp.csr_matrix(rng.poisson(rate).astype(np.float32)), varm={"truth": loadings})
    SCVAE.setup_anndata(adata)
    return adata


@pytest.fixture(scope="module", params=["poisson", "nb"])
def fitted(request):
    model = SCVAE(
        simulate(request.param), n_hidden=32, n_latent=N_LATENT, gene_likelihood=request.param, decoder="linear"
    )
    model.train(max_steps=350, **QUIET)
    return model


def test_loadings_span_those_of_the_simulation(fitted):
    truth = fitted.adata.varm["truth"]
    found = fitted.get_loadings()
    angles = np.degrees(subspace_angles(found.to_numpy(), truth - truth.mean(0)))
    assert angles.max() < 10
    # A random plane of so many dimensions is nearly at a right angle.
    random = np.random.default_rng(1).normal(size=truth.shape)
    assert np.degrees(subspace_angles(random, truth - truth.mean(0))).min() > 50


def test_loadings_are_written_with_where_they_came_from(fitted):
    found = fitted.get_loadings()
    assert found.columns.tolist() == ["Z_0", "Z_1"]
    assert found.index.equals(fitted.adata.var_names)
    np.testing.assert_array_equal(fitted.adata.varm["scvae_loadings"], found)
    entry = json.loads(fitted.adata.uns["scvae_ext"])["results"]['varm["scvae_loadings"]']
    assert entry["options"]["decoder"] == "linear"
    np.testing.assert_allclose(found.mean(), 0, atol=1e-6)


@pytest.fixture(params=["nb", "zinb", "poisson", "normal", "simplex", "residual"])
def small(request, adata):
    options = {"simplex": {"latent_distribution": "ln"}, "residual": {"residual_rank": 1}}
    options = options.get(request.param, {"gene_likelihood": request.param})
    model = SCVAE(adata, n_hidden=16, n_latent=3, decoder="linear", **options)
    # Without held-out cells a residual factor stays, needed or not.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*kept without a test", UserWarning)
        model.train(max_steps=20, train_size=1.0 if request.param == "residual" else 0.9, **QUIET)
    return model


@torch.no_grad()
def test_loadings_say_how_the_log_mean_changes_along_each_dimension(small):
    model, module = small, small.module
    minibatch = model._own_source().minibatch(np.arange(12))
    loadings = model.get_loadings(key_added=None).to_numpy()

    def log_mean(latent):
        # The point of the latent space itself, past the map onto the simplex.
        hidden = module.decoder(latent, module.covariates(minibatch))
        hidden = torch.cat([hidden, torch.zeros(12, module.residual_rank)], dim=1)
        if model._options["gene_likelihood"] == "normal":
            return module.likelihood.location(hidden).numpy()
        return module.likelihood.expression(hidden).log().numpy()

    latent = torch.randn(12, 3)
    for dimension in range(3):
        step = torch.zeros(3)
        step[dimension] = 0.7
        change = log_mean(latent + step) - log_mean(latent - step)
        if model._options["gene_likelihood"] != "normal":
            # Expression sums to one: what all genes share is taken off.
            change -= change.mean(1, keepdims=True)
        np.testing.assert_allclose(change, np.tile(1.4 * loadings[:, dimension], (12, 1)), atol=2e-5)


def test_is_the_same_after_saving_and_loading(small, adata, tmp_path):
    small.save(tmp_path / "model")
    loaded = SCVAE.load(tmp_path / "model", adata)
    assert "decoder='linear'" in repr(loaded)
    np.testing.assert_array_equal(loaded.get_loadings(), small.get_loadings())
    np.testing.assert_array_equal(loaded.get_latent_representation(), small.get_latent_representation())


def test_covariates_are_linear_as_well_and_not_among_the_loadings(adata):
    model = SCVAE(adata, n_latent=3, decoder="linear")
    model.train(max_steps=20, **QUIET)
    assert model.get_loadings().shape == (30, 3)
    one, two = (model.get_normalized_expression(transform_batch=batch, n_samples=1) for batch in ("batch_0", "batch_1"))
    change = np.log(two.to_numpy()) - np.log(one.to_numpy())
    change -= change.mean(1, keepdims=True)
    np.testing.assert_allclose(change, np.tile(change[0], (len(change), 1)), atol=1e-4)
    assert np.abs(change).max() > 1e-3


def test_weight_decay_leaves_loadings_alone(adata):
    norms = []
    for decay in (0.0, 20.0):
        model = SCVAE(adata, n_latent=3, decoder="linear")
        model.train(max_steps=40, weight_decay=decay, kl_warmup=1.0, **QUIET)
        norms.append(np.linalg.norm(model.get_loadings(key_added=None)))
    assert norms[1] > 0.5 * norms[0]


def test_a_nonlinear_decoder_has_no_loadings(model):
    with pytest.raises(ValueError, match='this model has none: build an SCVAE with decoder="linear"'):
        model.get_loadings()


def test_an_untrained_model_has_no_loadings(adata):
    with pytest.raises(RuntimeError, match=r"call model\.train"):
        SCVAE(adata, decoder="linear").get_loadings()
