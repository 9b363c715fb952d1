import json

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from anndata import AnnData
from scipy.stats import norm, spearmanr

from scvae_ext import SCVAE
from scvae_ext.models.correlation import _counts

QUIET = {"enable_progress_bar": False, "accelerator": "cpu"}


def independent_draws(model, n_samples):
    """Expression at as many draws as the matrix is of, with other noise."""
    draws = model.get_normalized_expression(n_samples=n_samples, return_mean=False, key_added=None, seed=5)
    return np.asarray(draws).reshape(-1, 30)


def chance(n_samples):
    """Bound the difference of correlations from other draws, of 435 pairs of genes, but once in 10,000 times.

    The standard error of a correlation is at most that of independent genes. Part of the spread is that between cells,
    which both have in common, so that it is less.
    """
    return norm.isf(1e-4 / 435 / 2) * np.sqrt(2 / (120 * n_samples))


@pytest.mark.parametrize("kind", ["spearman", "pearson"])
def test_is_that_of_numpy_and_scipy_on_the_whole_array(model, monkeypatch, kind):
    expression = np.log1p(1000 * model.get_normalized_expression(n_samples=1, key_added=None).to_numpy(np.float64))
    # Without spread the draws are the mean of the posterior.
    encode = model.module.encode

    def certain(minibatch):
        posterior = encode(minibatch)
        posterior.qz.scale.zero_()
        return posterior

    monkeypatch.setattr(model.module, "encode", certain)
    found = model.get_feature_correlation_matrix(n_samples=3, correlation_type=kind, batch_size=50)
    expected = spearmanr(expression).statistic if kind == "spearman" else np.corrcoef(expression, rowvar=False)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 if kind == "pearson" else 2e-3)
    assert found.index.equals(model.adata.var_names)
    assert found.columns.equals(model.adata.var_names)


def test_draws_are_from_the_posterior(model):
    found = model.get_feature_correlation_matrix(n_samples=200, correlation_type="pearson", key_added=None)
    draws = np.log1p(1000 * independent_draws(model, 200).astype(np.float64))
    np.testing.assert_allclose(found, np.corrcoef(draws, rowvar=False), rtol=0, atol=chance(200))
    # The mean of the posterior alone is another matter.
    of_means = np.corrcoef(np.log1p(1000 * independent_draws(model, 1).astype(np.float64)), rowvar=False)
    assert np.abs(found - of_means).max(axis=None) > 0.15


def test_does_not_depend_on_how_many_cells_are_read_at_once(model, monkeypatch):
    one = model.get_feature_correlation_matrix(n_samples=130, key_added=None)
    monkeypatch.setattr("scvae_ext.models.cells.MAX_ENTRIES", 30 * 120)
    two = model.get_feature_correlation_matrix(n_samples=130, key_added=None, batch_size=37)
    np.testing.assert_allclose(one, two, rtol=0, atol=chance(130))
    again = model.get_feature_correlation_matrix(n_samples=130, key_added=None, batch_size=37)
    np.testing.assert_array_equal(two, again)


def test_genes_come_in_the_asked_order_and_are_then_not_written(model):
    del model.adata.varp
    whole = model.get_feature_correlation_matrix(key_added=None)
    genes = ["gene_7", "gene_2", "gene_20"]
    np.testing.assert_allclose(
        model.get_feature_correlation_matrix(gene_list=genes), whole.loc[genes, genes], atol=1e-9
    )
    assert not model.adata.varp


def test_is_written_in_the_order_of_the_genes_of_the_anndata(model, adata):
    other = adata[:50, ::-1].copy()
    found = model.get_feature_correlation_matrix(other, rna_size_factor=500)
    written = other.varp["scvae_correlation"]
    assert written.dtype == np.float64
    np.testing.assert_array_equal(written, found.iloc[::-1, ::-1])
    entry = json.loads(other.uns["scvae_ext"])["results"]['varp["scvae_correlation"]']
    assert entry["arguments"]["rna_size_factor"] == 500
    assert entry["arguments"]["n_cells"] == 50


@pytest.mark.usefixtures("unchecked")
def test_several_batches_are_averaged_over(model):
    names = pd.Index(["batch_0", "batch_1"])
    each = [model.get_feature_correlation_matrix(transform_batch=name, key_added=None) for name in names]
    both = model.get_feature_correlation_matrix(transform_batch=names)
    entry = json.loads(model.adata.uns["scvae_ext"])["results"]['varp["scvae_correlation"]']
    assert entry["arguments"]["transform_batch"] == ["batch_0", "batch_1"]
    np.testing.assert_allclose(both, (each[0] + each[1]) / 2, atol=1e-12)
    assert np.abs(each[0] - each[1]).max(axis=None) > 1e-3


@pytest.mark.parametrize("kind", ["nb", "zinb", "poisson", "normal", "latent library"])
def test_counts_of_the_model_correlate_less(load, kind):
    options = {"correlation_type": "pearson", "key_added": None, "rna_size_factor": 100}
    found = [load(kind).get_feature_correlation_matrix(predictive=value, **options) for value in (False, True)]
    off = ~np.eye(30, dtype=bool)
    mean, counts = (np.nanmean(np.abs(each.to_numpy()[off])) for each in found)
    assert counts < 0.7 * mean


@pytest.mark.slow
def test_is_closer_to_the_correlation_of_log_means_than_that_of_counts():
    """Two modules of genes that vary independently, counted so sparsely that counts hardly correlate."""
    rng = np.random.default_rng(0)
    factors = 0.8 * rng.normal(size=(800, 2))
    logits = np.repeat(factors, 20, axis=1) + rng.normal(0, 0.3, 40)
    mean = 100 * np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    adata = AnnData(sp.csr_matrix(rng.poisson(mean).astype(np.float32)))
    adata = adata[np.asarray(adata.X.sum(1)).ravel() > 0].copy()
    SCVAE.setup_anndata(adata)
    model = SCVAE(adata, n_hidden=32, n_latent=2)
    model.train(max_steps=500, **QUIET)
    truth = np.corrcoef(np.log(mean), rowvar=False)
    off = ~np.eye(40, dtype=bool)

    def error(found):
        return np.abs(np.asarray(found)[off] - truth[off]).mean()

    of_counts = error(np.corrcoef(np.log1p(adata.X.toarray().astype(float)), rowvar=False))
    assert of_counts > 0.5
    for kind in ("pearson", "spearman"):
        assert error(model.get_feature_correlation_matrix(correlation_type=kind)) < 0.6 * of_counts


def test_leaves_the_random_state_alone(model):
    state = torch.get_rng_state()
    model.get_feature_correlation_matrix(predictive=True, n_samples=2, key_added=None)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"correlation_type": "kendall"}, 'correlation_type=\'kendall\' is not known: use "spearman" or "pearson"'),
        ({"transform_batch": "batch_9"}, "'batch_9', which is not in 'batch'; known are 'batch_0', 'batch_1'"),
        ({"gene_list": ["Gene_1"]}, "gene_list holds 'Gene_1'.*Nearest: 'gene_1'"),
        ({"rna_size_factor": 0}, "rna_size_factor=0 must be a positive number"),
        ({"n_samples": 0}, "n_samples=0 must be a whole number of at least 1"),
        ({"indices": []}, "indices selects no cell"),
        ({"key_added": ""}, "key_added='' must be a name"),
    ],
)
def test_says_what_is_wrong(model, options, message):
    with pytest.raises(ValueError, match=message):
        model.get_feature_correlation_matrix(**options)


def test_counts_in_another_batch_have_its_dispersion(adata):
    model = SCVAE(adata, n_hidden=8, n_latent=2, dispersion="gene-batch")
    with torch.no_grad():
        model.module.likelihood.dispersion.log_value.copy_(torch.tensor([[7.0], [-2.0]]).expand(2, 30))
    first = np.flatnonzero(adata.obs["batch"] == "batch_0")[:4]
    minibatch = model._own_source().minibatch(first)
    torch.manual_seed(0)
    with torch.no_grad():
        hidden = model.module.decode_hidden(torch.zeros(2000, 4, 2), minibatch)
        own = _counts(model.module, hidden, 3000.0, minibatch, None)
        other = _counts(model.module, hidden, 3000.0, minibatch, torch.ones(4, dtype=torch.int64))
    # Variance over mean is 1 + mean / theta.
    for counts, theta in ((own, np.exp(7.0)), (other, np.exp(-2.0))):
        mean = counts.mean((0, 1))
        expected = 1 + mean / theta
        assert float((counts.var((0, 1)) / mean / expected).log().abs().mean()) < 0.15


def test_batches_that_are_named_count_as_often_as_they_are_named(model):
    of = {
        name: model.get_feature_correlation_matrix(n_samples=2, transform_batch=name, key_added=None)
        for name in ("batch_0", "batch_1")
    }
    found = model.get_feature_correlation_matrix(
        n_samples=2, transform_batch=["batch_0", "batch_1", "batch_0"], key_added=None
    )
    np.testing.assert_allclose(found, (2 * of["batch_0"] + of["batch_1"]) / 3, atol=1e-6)
