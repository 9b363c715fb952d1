import json

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData

from scvae_ext import SCVAE
from scvae_ext.diagnostics import evidence, posterior_collapse

SMALL = {"n_hidden": 16, "n_latent": 3}
# So few samples make evidence imprecise, which the function says.
pytestmark = pytest.mark.filterwarnings("ignore:.*effective sample size:UserWarning")

QUIET = {"enable_progress_bar": False, "accelerator": "cpu"}
N_IN_MODULE = 10


def simulate(*, has_module, n_cells=600):
    """Draw cells from one latent dimension, and with a module of genes that vary independently of it."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 0.5, 40) + rng.normal(size=(n_cells, 1)) * rng.normal(0, 0.7, 40)
    factor = rng.normal(size=n_cells)
    if has_module:
        logits[:, :N_IN_MODULE] += factor[:, None]
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    obs = pd.DataFrame({"factor": factor}, index=[f"cell{cell}" for cell in range(n_cells)])
    adata = AnnData(sp.csr_matrix(rng.poisson(400 * shares).astype(np.float32)), obs=obs)
    SCVAE.setup_anndata(adata)
    return adata


@pytest.fixture(scope="module")
def fitted():
    """Models with and without a residual factor, on data with and without a module."""
    models = {}
    for has_module in (True, False):
        adata = simulate(has_module=has_module)
        for rank in (0, 1):
            model = SCVAE(adata, n_hidden=32, n_latent=1, residual_rank=rank)
            # That a factor costs nothing shows at the end of training alone.
            model.train(max_steps=500 if has_module else 1500, train_size=0.7, **QUIET)
            models[has_module, rank] = model
    return models


def gain(fitted, has_module):
    """Return what a residual factor gains in held-out evidence, and the standard error over cells."""
    found = [evidence(fitted[has_module, rank], n_samples=50, n_optimisation_steps=30).log_evidence for rank in (1, 0)]
    difference = found[0] - found[1]
    return difference.mean(), difference.std(ddof=1) / np.sqrt(len(difference))


def test_a_residual_factor_wins_evidence_where_there_is_a_module(fitted):
    mean, error = gain(fitted, has_module=True)
    assert mean > 5
    assert mean > 5 * error


def test_it_costs_nothing_where_there_is_none(fitted):
    mean, error = gain(fitted, has_module=False)
    assert mean > -max(3 * error, 0.3)


def test_loadings_and_factors_are_those_that_the_data_were_drawn_from(fitted):
    model = fitted[True, 1]
    loadings = model.get_residual_loadings()
    assert loadings.index.equals(model.adata.var_names)
    np.testing.assert_array_equal(model.adata.varm["scvae_residual_loadings"], loadings)
    assert loadings.to_numpy().mean() == pytest.approx(0, abs=1e-6)
    sign = np.sign(loadings.iloc[0, 0])
    in_module = np.arange(len(loadings)) < N_IN_MODULE
    assert sign * np.corrcoef(loadings.iloc[:, 0], in_module)[0, 1] > 0.95
    factors = model.get_residual_factors()
    # Weight decay shrinks loadings, for which factors make up in part: their product is 0.95 times one without it.
    contrast = sign * (loadings.iloc[in_module, 0].mean() - loadings.iloc[~in_module, 0].mean()) * factors.std()
    assert 0.6 < contrast < 1.1
    assert factors.shape == (600, 1)
    np.testing.assert_array_equal(model.adata.obsm["X_scvae_residual"], factors)
    assert sign * np.corrcoef(factors[:, 0], model.adata.obs["factor"])[0, 1] > 0.85
    written = json.loads(model.adata.uns["scvae_ext"])["results"]
    assert {'varm["scvae_residual_loadings"]', 'obsm["X_scvae_residual"]'} <= set(written)
    unneeded = fitted[False, 1].get_residual_loadings(key_added=None)
    assert np.abs(unneeded.to_numpy()).mean() < 0.1


def test_the_latent_representation_is_that_of_z_alone(fitted):
    model = fitted[True, 1]
    latent = model.get_latent_representation()
    assert latent.shape == (600, 1)
    assert model.get_latent_representation(give_mean=False, n_samples=4).shape == (4, 600, 1)
    mean, variance = model.get_latent_representation(return_dist=True)
    np.testing.assert_array_equal(mean, latent)
    assert variance.shape == (600, 1)
    assert len(posterior_collapse(model).to_frame()) == 1


@pytest.mark.parametrize(
    "options",
    [
        {"gene_likelihood": "zinb", "dispersion": "gene-cell"},
        {"gene_likelihood": "poisson", "prior": "vamp", "n_prior_components": 4},
        {"gene_likelihood": "normal", "prior": "mixture", "n_prior_components": 4},
        {"latent_distribution": "ln"},
        {"use_observed_lib_size": False},
    ],
)
def test_every_getter_works_and_a_loaded_model_gives_the_same(adata, tmp_path, options):
    model = SCVAE(adata, **SMALL, residual_rank=2, **options)
    model.train(max_steps=20, **QUIET)
    model.save(tmp_path / "model")
    again = SCVAE.load(tmp_path / "model", adata.copy())
    assert "residual_rank=2" in repr(again)
    getters = ["latent_representation", "residual_factors", "normalized_expression", "elbo", "reconstruction_error"]
    for getter in [*getters, "marginal_ll", "residual_loadings", "latent_library_size"]:
        one, two = (np.asarray(getattr(each, f"get_{getter}")()) for each in (model, again))
        assert np.isfinite(one).all(), getter
        np.testing.assert_array_equal(one, two, err_msg=getter)
    shapes = {name: value.shape for name, value in model.get_likelihood_parameters(n_samples=2).items()}
    assert set(shapes.values()) == {(120, 30)}
    assert model.posterior_predictive_sample().shape == (120, 30)
    table = posterior_collapse(model).to_frame()
    assert np.isfinite(table.to_numpy(dtype=float)).all()
    assert len(table) == 3
    assert {"elbo_train", "kl_train", "elbo_validation"} <= set(model.history.columns)


def test_genes_that_the_model_does_not_have_get_no_loading(adata):
    some_genes = adata[:, :20].copy()
    SCVAE.setup_anndata(some_genes)
    model = SCVAE(some_genes, **SMALL, residual_rank=1)
    model.train(max_steps=5, **QUIET)
    model.adata = adata[:, ::-1].copy()
    loadings = model.get_residual_loadings()
    written = pd.Series(model.adata.varm["scvae_residual_loadings"][:, 0], index=model.adata.var_names)
    np.testing.assert_array_equal(written[loadings.index], loadings.iloc[:, 0])
    assert written.isna().sum() == 10


def test_models_saved_before_there_were_factors_are_read(model, tmp_path):
    model.save(tmp_path / "model")
    path = tmp_path / "model" / "model.json"
    described = json.loads(path.read_text())
    del described["options"]["residual_rank"]
    path.write_text(json.dumps(described))
    again = SCVAE.load(tmp_path / "model", model.adata.copy())
    np.testing.assert_array_equal(again.get_latent_representation(), model.get_latent_representation())


@pytest.mark.parametrize("rank", [-1, 1.5, True, "2"])
@pytest.mark.usefixtures("unchecked")
def test_the_rank_is_a_whole_number(adata, rank):
    with pytest.raises(ValueError, match=r"residual_rank=.* must be a whole number of at least 0"):
        SCVAE(adata, residual_rank=rank)


def test_models_without_factors_or_training_have_none_to_show(model, adata):
    for getter in (model.get_residual_factors, model.get_residual_loadings):
        with pytest.raises(ValueError, match=r"residual_rank=1 or more"):
            getter()
    untrained = SCVAE(adata, residual_rank=1)
    for getter in (untrained.get_residual_factors, untrained.get_residual_loadings):
        with pytest.raises(RuntimeError, match="has not been trained"):
            getter()
