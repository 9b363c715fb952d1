"""Getters of a model that lies on a device other than the CPU: see :mod:`elsewhere`."""

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from elsewhere import DEVICE, elsewhere

import scvae_ext as sv

BATCH = {"batch_key": "batch"}
MODELS = {
    "nb": (sv.SCVAE, BATCH, {}),
    "zinb": (sv.SCVAE, BATCH, {"gene_likelihood": "zinb", "dispersion": "gene-cell"}),
    "poisson": (sv.SCVAE, BATCH, {"gene_likelihood": "poisson", "latent_distribution": "ln"}),
    "normal": (sv.SCVAE, BATCH, {"gene_likelihood": "normal"}),
    "latent library": (sv.SCVAE, BATCH, {"use_observed_lib_size": False}),
    "linear": (sv.SCVAE, BATCH, {"decoder": "linear"}),
    "residual": (sv.SCVAE, BATCH, {"residual_rank": 2}),
    "mixture": (sv.SCVAE, BATCH, {"prior": "mixture", "n_prior_components": 3}),
    "labels": (sv.SemiSupervisedVAE, {"labels_key": "cell_type", **BATCH}, {}),
    "proteins": (sv.CiteVAE, {"protein_expression_obsm_key": "protein", **BATCH}, {}),
    "peaks": (sv.MultiomeVAE, {"accessibility_obsm_key": "accessibility", **BATCH}, {}),
    "autoencoder": (sv.Autoencoder, BATCH, {}),
}
SETTING = {"batch": "batch_1"}
GETTERS = {
    "get_latent_representation": [{}],
    "get_normalized_expression": [
        {},
        {"transform_batch": ["batch_0", "batch_1"], "gene_list": ["gene_3", "gene_1"]},
    ],
    "get_elbo": [{}],
    "get_reconstruction_error": [{}],
    "get_marginal_ll": [{"n_mc_samples": 20}],
    "get_likelihood_parameters": [{}],
    "get_latent_library_size": [{}],
    "get_cell_uncertainty": [{}],
    "get_novelty": [{"n_replicates": 10}],
    "get_feature_correlation_matrix": [{}],
    "get_loadings": [{}],
    "get_residual_factors": [{}],
    "get_residual_loadings": [{}],
    "posterior_predictive_sample": [{}],
    "generate": [{"n_obs": 20}],
    "counterfactual": [{"set": SETTING}],
    "counterfactual_effect": [{"control": {"batch": "batch_0"}, "treated": SETTING, "groupby": "cell_type"}],
    "differential_expression": [{"groupby": "cell_type"}, {"groupby": "cell_type", "mode": "vanilla"}],
    "differential_abundance": [{"groupby": "condition", "group1": "a", "sample_key": "sample"}],
    "get_protein_expression": [{}],
    "get_protein_foreground_probability": [{}, {"given": "state"}],
    "differential_protein_expression": [{"groupby": "cell_type"}],
    "get_accessibility": [{}, {"transform_batch": "batch_0"}],
    "differential_accessibility": [{"groupby": "cell_type"}],
    "predict": [{}, {"soft": True}],
}
# What only some models have.
ONLY = {
    "get_loadings": {"linear"},
    "get_residual_factors": {"residual"},
    "get_residual_loadings": {"residual"},
    **dict.fromkeys(["get_novelty", "counterfactual", "counterfactual_effect"], MODELS.keys() - {"normal"}),
}


@pytest.fixture(scope="module")
def trained():
    models = {}

    def get(kind):
        if kind not in models:
            adata = sv.datasets.synthetic_counts(
                160, 30, n_types=3, n_batches=2, n_proteins=4, n_peaks=40, library_size=200, seed=0
            )
            adata.obs["sample"] = np.random.default_rng(0).choice(list("pqrstu"), adata.n_obs)
            adata.obs["condition"] = np.where(adata.obs["sample"].isin(list("pqr")), "a", "b")
            model, setup, options = MODELS[kind]
            model.setup_anndata(adata, **setup)
            models[kind] = model(adata, n_hidden=16, n_latent=3, **options)
            models[kind].train(max_steps=40, enable_progress_bar=False)
        return models[kind]

    return get


def _numbers(result):
    """Return everything of a result as arrays, the rows of a ranking by name."""
    if hasattr(result, "to_frame") and not isinstance(result, pd.Series):
        result = result.to_frame()
    if isinstance(result, pd.DataFrame):
        result = result.reset_index()
        result = result.sort_values(list(result.select_dtypes(exclude="number").columns))
        return [result.select_dtypes("number").to_numpy(), result.select_dtypes(exclude="number").to_numpy(str)]
    if isinstance(result, pd.Series):
        return [result.to_numpy(str)]
    if isinstance(result, dict):
        return [array for value in result.values() for array in _numbers(value)]
    if isinstance(result, list | tuple):
        return [array for value in result for array in _numbers(value)]
    if hasattr(result, "X"):
        return [result.X.toarray() if sp.issparse(result.X) else np.asarray(result.X)]
    if sp.issparse(result):
        return [result.toarray()]
    return [np.asarray(result)]


@pytest.mark.parametrize("kind", MODELS)
def test_getters_answer_as_on_the_cpu(trained, kind):
    model = trained(kind)
    known = [getter for getter in GETTERS if hasattr(type(model), getter)]
    assert len(known) >= (3 if kind == "autoencoder" else 13)
    for getter, options in [(name, options) for name in known for options in GETTERS[name]]:
        if kind not in ONLY.get(getter, MODELS):
            with pytest.raises(ValueError, match=r"needs a|has no residual factors"):
                getattr(model, getter)(**options)
            continue
        expected = getattr(model, getter)(**options)
        with elsewhere():
            model.to_device(DEVICE)
            assert model.device == torch.device(DEVICE)
            found = getattr(model, getter)(**options)
            model.to_device("cpu")
        for one, other in zip(_numbers(found), _numbers(expected), strict=True):
            if one.dtype.kind in "US":
                assert (one == other).all(), getter
            else:
                np.testing.assert_allclose(one, other, rtol=2e-3, atol=2e-4, err_msg=f"{getter} {options}")
