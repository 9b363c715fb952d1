"""Leave-one-gene-out predictions against posteriors on a grid."""

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from anndata import AnnData

from scvae_ext import SCVAE
from scvae_ext.diagnostics._gene_predictions import _without_own_gene, leave_one_gene_out

GENES = [0, 3, 7]


@pytest.fixture(scope="module")
def model():
    rng = np.random.default_rng(0)
    shares = rng.dirichlet(np.ones(12), 3)[np.arange(150) % 3]
    adata = AnnData(sp.csr_matrix(rng.poisson(1 + 60 * shares).astype(np.float32)))
    SCVAE.setup_anndata(adata)
    model = SCVAE(adata, n_hidden=16, n_latent=1)
    model.train(max_steps=150, enable_progress_bar=False)
    return model


def _predict(model, indices=range(20), batch_size=None, **options):
    _, cells = model._cells(None, indices, batch_size, False)
    return leave_one_gene_out(model, cells, **({"n_samples": 400, "n_optimisation_steps": 60, "seed": 0} | options))


def _exact(model, cell, gene):
    """Mean and standard deviation of the log expected count given all other genes, on a grid of the latent."""
    _, cells = model._cells(None, [cell], None, False)
    _, minibatch = next(iter(cells))
    z = torch.linspace(-6, 6, 2001)[:, None, None]
    with torch.no_grad():
        px = model.module.decode(z, minibatch)
        log_prob = px.log_prob(minibatch.counts.dense()).double().squeeze(1)
        share = (px.mean / minibatch.library_size).double().squeeze(1)[:, gene]
    others = log_prob.sum(1) - log_prob[:, gene] - 0.5 * z.double().square().flatten()
    weight = others.softmax(0)
    depth = minibatch.library_size.item() - minibatch.counts.dense()[0, gene].item()
    value = (depth * share / (1 - share)).log()
    mean = (weight * value).sum()
    return mean.item(), (weight * (value - mean).square()).sum().sqrt().item()


def test_predictions_are_those_of_the_exact_posterior_given_the_other_genes(model):
    found = _predict(model)
    exact = np.array([[_exact(model, cell, gene) for gene in GENES] for cell in range(20)])
    spread = exact[..., 1]
    # The posterior of a cell is not quite a Gaussian.
    error = (found.log_mean[:, GENES] - exact[..., 0]) / spread
    assert np.abs(error).mean() < 0.25
    np.testing.assert_allclose(np.median(found.deviation[:, GENES] / spread), 1.0, atol=0.15)


def test_a_gene_does_not_predict_itself(model):
    # Ten times the counts of one gene move its own prediction by what they say about the depth, and no more.
    adata = model.adata.copy()
    counts = adata.X.toarray()
    before = _predict(model)
    counts[:, 0] *= 10
    adata.X = sp.csr_matrix(counts)
    _, cells = model._cells(adata, range(20), None, False)
    after = leave_one_gene_out(model, cells, n_samples=400, n_optimisation_steps=60, seed=0)
    own = np.abs(after.log_mean[:, 0] - before.log_mean[:, 0]).mean()
    assert own < 0.15
    assert after.counts[:, 0].sum() == 10 * before.counts[:, 0].sum()


def test_cells_do_not_depend_on_the_minibatch(model):
    one, many = _predict(model, batch_size=1, n_samples=10), _predict(model, batch_size=7, n_samples=10)
    np.testing.assert_allclose(one.log_mean, many.log_mean, atol=2e-3)
    np.testing.assert_allclose(one.deviation, many.deviation, atol=2e-3)


def test_a_cell_with_counts_of_one_gene_alone_is_finite(model):
    adata = model.adata[:20].copy()
    counts = np.zeros(adata.shape, dtype=np.float32)
    counts[:, 4] = 9
    adata.X = sp.csr_matrix(counts)
    _, cells = model._cells(adata, None, None, False)
    found = leave_one_gene_out(model, cells, n_samples=10, n_optimisation_steps=10, seed=0)
    assert np.isfinite(found.log_mean).all()
    assert np.isfinite(found.deviation).all()


@pytest.mark.parametrize(("dispersion", "n_rows"), [("gene", 1), ("gene-batch", 2)])
def test_dispersions_are_those_of_the_cells_category(dispersion, n_rows):
    rng = np.random.default_rng(1)
    adata = AnnData(sp.csr_matrix(rng.poisson(3, (40, 6)).astype(np.float32)))
    adata.obs["batch"] = np.where(np.arange(40) % 2, "b", "a")
    SCVAE.setup_anndata(adata, batch_key="batch")
    model = SCVAE(adata, n_hidden=8, n_latent=2, dispersion=dispersion, gene_likelihood="zinb")
    model.train(max_steps=5, enable_progress_bar=False)
    found = _predict(model, indices=range(10), n_samples=4, n_optimisation_steps=3)
    assert found.log_theta.shape == (n_rows, 6)
    theta = np.exp(found.log_theta[found.category])
    expected = model.get_likelihood_parameters(indices=range(10))["dispersions"]
    np.testing.assert_allclose(np.broadcast_to(theta, (10, 6)), expected, rtol=1e-4)


@pytest.mark.parametrize("options", [{"use_observed_lib_size": False}, {"latent_distribution": "ln"}])
def test_other_latent_variables_are_integrated_over(options):
    rng = np.random.default_rng(2)
    adata = AnnData(sp.csr_matrix(rng.poisson(3, (40, 6)).astype(np.float32)))
    SCVAE.setup_anndata(adata)
    model = SCVAE(adata, n_hidden=8, n_latent=2, **options)
    model.train(max_steps=40, enable_progress_bar=False)
    found = _predict(model, indices=range(10), n_samples=20, n_optimisation_steps=10)
    np.testing.assert_allclose(np.exp(found.log_mean).sum(1), 18, rtol=0.6)
    assert (found.deviation > 0).all()


def test_the_spread_over_equally_likely_samples_is_that_of_a_sample():
    log_mean = torch.randn(7, 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mean, deviation = _without_own_gene(log_mean, torch.full((7, 3, 2), -2.0, dtype=torch.float64))
    torch.testing.assert_close(mean, log_mean.mean(0))
    torch.testing.assert_close(deviation, log_mean.std(0, correction=1))


@pytest.mark.parametrize(("dispersion", "column"), [("gene-batch", "batch"), ("gene-label", "type")])
def test_cells_have_the_dispersion_of_their_batch_or_label(dispersion, column):
    rng = np.random.default_rng(1)
    adata = AnnData(sp.csr_matrix(rng.poisson(3.0, (40, 6)).astype(np.float32)))
    adata.obs["batch"] = np.array(["x", "y"])[np.arange(40) % 2]
    adata.obs["type"] = np.array(["a", "b", "c"])[np.arange(40) % 3]
    SCVAE.setup_anndata(adata, batch_key="batch", labels_key="type")
    model = SCVAE(adata, n_hidden=4, n_latent=1, dispersion=dispersion)
    model.train(max_steps=2, enable_progress_bar=False)
    found = _predict(model, indices=range(10), n_samples=4, n_optimisation_steps=1)
    np.testing.assert_array_equal(found.category, np.unique(adata.obs[column], return_inverse=True)[1][:10])
    assert found.log_theta.shape == (adata.obs[column].nunique(), 6)
