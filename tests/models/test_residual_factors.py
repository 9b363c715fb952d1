import json

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData
from lightning.pytorch.callbacks import Callback

from scvae_ext import SCVAE
from scvae_ext.diagnostics import evidence, posterior_collapse
from scvae_ext.models import scvae
from scvae_ext.models.residual import FactorTest
from scvae_ext.modules import copy_weights

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
            model.train(max_steps=500, train_size=0.7, **QUIET)
            models[has_module, rank] = model
    return models


def gain(fitted, has_module):
    """Return what a residual factor gains in held-out evidence, and the standard error over cells."""
    found = [evidence(fitted[has_module, rank], n_samples=50, n_optimisation_steps=30).log_evidence for rank in (1, 0)]
    difference = found[0] - found[1]
    return difference.mean(), difference.std(ddof=1) / np.sqrt(len(difference))


@pytest.mark.slow
def test_a_residual_factor_wins_evidence_where_there_is_a_module(fitted):
    mean, error = gain(fitted, has_module=True)
    assert mean > 5
    assert mean > 5 * error


def test_it_costs_nothing_at_all_where_there_is_none(fitted):
    with_factor, without = (fitted[False, rank] for rank in (1, 0))
    assert with_factor.residual_factor_test["active"].tolist() == [False, False]
    for name, value in without.module.state_dict().items():
        np.testing.assert_array_equal(with_factor.module.state_dict()[name], value, err_msg=name)
    pd.testing.assert_frame_equal(
        with_factor.history.drop(columns="seconds"), without.history.drop(columns="seconds"), check_exact=True
    )
    assert not with_factor.get_residual_factors(key_added=None).any()
    assert not with_factor.get_residual_loadings(key_added=None).to_numpy().any()
    assert repr(with_factor).endswith("trained, 0 of 1 residual factors active")


def test_a_factor_that_is_kept_has_earned_it(fitted):
    model = fitted[True, 1]
    table = model.residual_factor_test
    assert table.index.tolist() == ["residual_0", "together"]
    assert table["active"].all()
    assert (table["gain"] > 5 * table["standard_error"]).all()
    assert model.history["step"].is_monotonic_increasing
    assert model.history["step"].max() > fitted[True, 0].history["step"].max()


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
    with pytest.warns(UserWarning, match="All 2 residual factors were kept without a test: 0 cells were held out"):
        model.train(max_steps=20, train_size=1.0, **QUIET)
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
    assert {"elbo_train", "kl_train"} <= set(model.history.columns)
    pd.testing.assert_frame_equal(again.residual_factor_test, model.residual_factor_test)


@pytest.fixture
def second_of_two(adata, monkeypatch):
    """A model of which the first of two factors was taken out, as if by the evidence of held-out cells."""

    def choose(base, full, make, cells, seed):
        test = FactorTest((0.0, 1.0), (0.1, 0.1), (False, True), 1.0, 0.1, len(cells))
        vae = make(1)
        copy_weights(full, vae, [1])
        return vae, test

    monkeypatch.setattr(scvae, "choose_factors", choose)
    model = SCVAE(adata, **SMALL, residual_rank=2)
    model.train(max_steps=20, **QUIET)
    return model


def test_factors_keep_their_place_where_others_are_taken_out(second_of_two, tmp_path):
    model = second_of_two
    model.save(tmp_path / "model")
    again = SCVAE.load(tmp_path / "model", model.adata.copy())
    for each in (model, again):
        assert each.module.residual_rank == 1
        factors, loadings = each.get_residual_factors(), each.get_residual_loadings()
        assert not factors[:, 0].any()
        assert factors[:, 1].all()
        assert not loadings["residual_0"].any()
        assert loadings["residual_1"].any()
        assert each.residual_factor_test["active"].tolist() == [False, True, True]
        assert repr(each).endswith("1 of 2 residual factors active")
    np.testing.assert_array_equal(again.get_residual_factors(), factors)
    np.testing.assert_array_equal(again.get_elbo(), model.get_elbo())


def test_training_that_goes_on_keeps_the_choice(second_of_two):
    model = second_of_two
    last = model.history["step"].max()
    model.train(max_steps=20, **QUIET)
    assert model.history["step"].max() == last + 20
    assert model.module.residual_rank == 1


def test_where_training_with_factors_fails_the_model_without_is_left(adata):
    class FailsTheSecondTime(Callback):
        n_fits = 0

        def on_fit_start(self, trainer, pl_module):
            self.n_fits += 1
            if self.n_fits == 2:
                raise RuntimeError("no more")

    model = SCVAE(adata, **SMALL, residual_rank=2)
    with pytest.raises(RuntimeError, match="no more"):
        model.train(max_steps=20, callbacks=FailsTheSecondTime(), **QUIET)
    assert model.is_trained
    assert model.module.residual_rank == 0
    assert model.history["step"].max() == 20
    assert not model.get_residual_factors().any()
    with pytest.raises(RuntimeError, match="before residual factors were added"):
        _ = model.residual_factor_test
    model.train(max_steps=20, **QUIET)
    assert len(model.residual_factor_test) == 3


def test_the_replicate_of_intervals_is_trained_as_long(second_of_two, monkeypatch):
    given = []
    monkeypatch.setattr(SCVAE, "train", lambda self, **options: given.append(options))
    with pytest.raises(RuntimeError, match="has not been trained"):
        second_of_two.calibrate_intervals()
    assert second_of_two.history["step"].max() == 30
    assert given[0]["max_steps"] == 20


def test_genes_that_the_model_does_not_have_get_no_loading(adata):
    some_genes = adata[:, :20].copy()
    SCVAE.setup_anndata(some_genes)
    model = SCVAE(some_genes, **SMALL, residual_rank=1)
    with pytest.warns(UserWarning, match="kept without a test"):
        model.train(max_steps=5, train_size=1.0, **QUIET)
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
    with pytest.raises(ValueError, match=r"residual_rank=1 or more"):
        _ = model.residual_factor_test
    for getter in (untrained.get_residual_factors, untrained.get_residual_loadings):
        with pytest.raises(RuntimeError, match="has not been trained"):
            getter()
