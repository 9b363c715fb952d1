"""Diagnostics of a model that lies on a device other than the CPU: see :mod:`elsewhere`."""

import numpy as np
import pandas as pd
import pytest
from elsewhere import DEVICE, elsewhere

import scvae_ext as sv

QUESTIONS = {
    "evidence": {"n_samples": 200, "n_optimisation_steps": 20},
    "posterior_collapse": {},
    "posterior_predictive_check": {"n_samples": 40},
    "conditional_independence": {"n_samples": 20},
    "gradient_estimators": {"n_estimates": 10, "n_reference": 20},
    "zero_inflation": {},
}


@pytest.fixture(scope="module")
def models():
    adata = sv.datasets.synthetic_counts(200, 30, n_types=3, n_batches=2, library_size=200, seed=0)
    sv.SCVAE.setup_anndata(adata, batch_key="batch")
    models = {name: sv.SCVAE(adata, n_hidden=16, n_latent=3, gene_likelihood=name) for name in ("nb", "zinb")}
    for model in models.values():
        model.train(max_steps=40, train_size=0.6, enable_progress_bar=False)
    return models


@pytest.mark.filterwarnings("ignore:.* cells are few:UserWarning")
@pytest.mark.parametrize("likelihood", ["nb", "zinb"])
@pytest.mark.parametrize("question", QUESTIONS)
def test_diagnostics_answer_as_on_the_cpu(models, likelihood, question):
    model, ask = models[likelihood], getattr(sv.diagnostics, question)
    expected = ask(model, **QUESTIONS[question]).to_frame()
    with elsewhere():
        model.to_device(DEVICE)
        found = ask(model, **QUESTIONS[question]).to_frame()
        model.to_device("cpu")
    pd.testing.assert_index_equal(found.index, expected.index)
    numbers = [name for name in expected.select_dtypes("number") if "seconds" not in name]
    np.testing.assert_allclose(found[numbers], expected[numbers], rtol=2e-3, atol=2e-4)
