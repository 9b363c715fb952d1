import numpy as np
import pytest
import torch
from known_model import KnownModel
from scipy import stats

from scvae_ext.diagnostics.replicates import N_BINS, draw_replicates
from scvae_ext.models.cells import Cells


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


def test_correlations_are_those_of_logarithms_of_counts():
    known = KnownModel([1.0, 1.0, 2.0], [[2.0], [2.0], [-1.0]])
    adata = known.simulate("poisson", 200)
    found = _draw(known, adata, "poisson", n_samples=3)
    expected = np.corrcoef(np.log1p(np.asarray(adata.X, dtype=float)), rowvar=False)
    np.testing.assert_allclose(found.correlation.observed, expected[tuple(found.pairs.T)], rtol=1e-4)


@pytest.mark.parametrize("latent", ["posterior", "prior"])
def test_latent_library_sizes_are_drawn_anew_for_each_replicate(trained, latent, monkeypatch):
    module, given = trained(1, use_observed_lib_size=False).module, []
    decode = module.decode
    monkeypatch.setattr(module, "decode", lambda *arguments: (given.append(arguments[2]), decode(*arguments))[1])
    cells = Cells(trained(1, use_observed_lib_size=False)._own_source(), np.arange(10), torch.device("cpu"))
    draw_replicates(module, cells, 200, latent, np.arange(3), 0)
    with torch.no_grad():
        minibatch = cells.source.minibatch(np.arange(10))
        of_library = module.encode(minibatch).log_library if latent == "posterior" else module.library_prior(minibatch)
    drawn = torch.cat(given)
    assert drawn.shape == (200, 10)
    z = (drawn - of_library.loc) / of_library.scale
    assert float(z.mean(0).abs().max()) < 4.5 / 200**0.5
    assert float((z.std(0) - 1).abs().max()) < 4.5 / 400**0.5


def test_correlations_of_replicates_are_those_of_the_chosen_genes():
    known = KnownModel(np.full(4, 30.0), [[0.0], [3.0], [0.0], [-3.0]])
    adata = known.simulate("poisson", 400, size_sd=0.0)
    model = known.model(adata, "poisson")
    _, cells = model._cells(None, slice(None), None, fill_missing_genes=False)
    found = draw_replicates(model.module, cells, 50, "prior", np.array([1, 3]), 0)
    assert found.pairs.tolist() == [[1, 3]]
    np.testing.assert_allclose(found.correlation.expected, -9 / 39, atol=0.03)
