import numpy as np
from known_model import KnownModel
from scipy import stats

from scvae_ext.diagnostics.replicates import N_BINS, draw_replicates


def _draw(known, adata, likelihood, latent="prior", n_samples=50, seed=0):
    model = known.model(adata, likelihood)
    _, cells = model._cells(None, slice(None), None, fill_missing_genes=False)
    return draw_replicates(model.module, cells, n_samples, latent, np.arange(len(known.bias)), seed)


def test_covariance_of_replicates_is_that_of_the_latent_points():
    known = KnownModel(np.full(2, 30.0), [[3.0], [-3.0]])
    adata = known.simulate("poisson", 400, size_sd=0.0)
    # Where softplus is linear, x has mean 30 + 3 z: variance 30 + 9 and covariance -9.
    found = _draw(known, adata, "poisson", n_samples=100)
    assert found.pairs.tolist() == [[0, 1]]
    np.testing.assert_allclose(found.correlation.expected, -9 / 39, atol=0.02)
    np.testing.assert_allclose(found.genes["variance"].expected, 39, rtol=0.03)


def test_transforms_of_rare_counts_are_randomised_to_be_uniform():
    # The first gene keeps cells from being empty.
    known = KnownModel([20.0, -3.0, -3.0])
    adata = known.simulate("poisson", 4000)
    found = _draw(known, adata, "poisson", n_samples=40)
    assert found.pit_counts.shape == (3, N_BINS)
    assert (found.pit_counts.sum(1) == 4000).all()
    assert stats.chisquare(found.pit_counts, axis=1).pvalue.min() > 1e-4


def test_each_cell_keeps_its_own_size_factor():
    known = KnownModel(np.full(50, 1.0))
    adata = known.simulate("poisson", 40, size_sd=1.0)
    found = _draw(known, adata, "poisson")
    mean = adata.obs["size"] * np.log1p(np.e)
    np.testing.assert_allclose(found.cells["mean"].expected, mean, rtol=0.15)
    np.testing.assert_allclose(found.cells["zeros"].expected, np.exp(-mean), atol=0.04)
