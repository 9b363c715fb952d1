import numpy as np
import pytest
import scipy.sparse as sp
import torch

KINDS = ["nb", "zinb", "poisson", "normal", "simplex", "latent library", "size factor"]
every_kind = pytest.mark.parametrize("kind", KINDS)


def _dense(samples):
    return np.stack([sample.toarray() for sample in samples])


@every_kind
def test_samples_are_sparse_counts(load, kind):
    model = load(kind)
    sample = model.posterior_predictive_sample()
    assert sp.issparse(sample)
    assert sample.format == "csr"
    assert sample.shape == (120, 30)
    assert (sample.data == np.round(sample.data)).all()
    assert (sample.data >= 0).all()
    samples = model.posterior_predictive_sample(n_samples=2, gene_list=["gene_3", "gene_1"], indices=[5, 4, 3])
    assert [each.shape for each in samples] == [(3, 2), (3, 2)]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["nb", "zinb", "poisson", "latent library", "size factor"])
def test_samples_have_the_moments_of_the_posterior_predictive_distribution(load, adata, kind):
    model = load(kind)
    samples = _dense(model.posterior_predictive_sample(n_samples=600))
    parameters = model.get_likelihood_parameters(n_samples=200)
    mean = parameters["mean"].astype(float)
    if "dropout" in parameters:
        mean = mean * (1 - parameters["dropout"])
    np.testing.assert_allclose(samples.mean(), mean.mean(), rtol=0.05)
    np.testing.assert_allclose(samples.mean((0, 1)), mean.mean(0), rtol=0.2, atol=0.05)
    within = mean
    if "dispersions" in parameters:
        within = mean + mean**2 / parameters["dispersions"]
    assert samples.var(0).sum() > 0.8 * within.sum()


def test_samples_of_some_genes_are_those_of_all(model, adata):
    everything = model.posterior_predictive_sample(seed=3)
    some = model.posterior_predictive_sample(seed=3, gene_list=["gene_9", "gene_2"])
    np.testing.assert_array_equal(some.toarray(), everything[:, [9, 2]].toarray())
    assert (model.posterior_predictive_sample(seed=4) != everything).nnz > 0


def test_samples_of_normalised_values_come_back_on_the_scale_of_the_counts(load, adata):
    model = load("normal")
    samples = _dense(model.posterior_predictive_sample(n_samples=50))
    ratio = samples.sum(-1).mean(0) / np.asarray(adata.X.sum(1)).ravel()
    assert 0.3 < np.median(ratio) < 3


def test_states_and_latent_library_sizes_are_drawn_anew_for_each_sample(load, monkeypatch):
    model = load("latent library")
    module, given = model.module, []
    decode = module.decode
    monkeypatch.setattr(module, "decode", lambda *arguments: (given.append(arguments), decode(*arguments))[1])
    model.posterior_predictive_sample(indices=[7], n_samples=800, seed=1)
    with torch.no_grad():
        posterior = module.encode(model._own_source().minibatch(np.array([7])))
    for place, expected in ((0, posterior.qz), (2, posterior.log_library)):
        z = (torch.cat([each[place] for each in given]) - expected.loc) / expected.scale
        assert len(z) == 800
        assert float(z.mean(0).abs().max()) < 4.5 / 800**0.5
        assert float((z.std(0) - 1).abs().max()) < 4.5 / 1600**0.5
