import json

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from known_model import KnownModel
from scipy.stats import ks_2samp
from torch.distributions import Normal

from scvae_ext import SCVAE
from scvae_ext.analysis import LibrarySizes
from scvae_ext.diagnostics import two_sample_test
from scvae_ext.models.cells import Cells, evaluating
from scvae_ext.models.generation import Depth, draw_cells
from scvae_ext.models.settings import read_setting

RNG = np.random.default_rng(0)
KNOWN = KnownModel(RNG.normal(0.5, 1, 25), RNG.normal(0, 1, (25, 2)), theta=3.0)


@pytest.mark.slow
@pytest.mark.parametrize("like", ["prior", "cells"])
@pytest.mark.parametrize("likelihood", ["nb", "zinb", "poisson"])
def test_cells_of_a_known_model_are_those_of_its_simulator(likelihood, like):
    """Its posterior is its prior, so that both ways to draw states are exact."""
    adata = KNOWN.simulate(likelihood, 700, seed=1)
    generated = KNOWN.model(adata, likelihood).generate(700, like=like, seed=2)
    counts, real = generated.X.toarray(), adata.X
    error = np.sqrt(counts.var(0) / 700 + real.var(0) / 700)
    assert (np.abs(counts.mean(0) - real.mean(0)) < 4.5 * error).all()
    assert not two_sample_test(adata, generated, n_permutations=50).is_told_apart
    assert set(generated.obs["size"].astype(np.float32)) <= set(adata.obs["size"].astype(np.float32))


def test_new_cells_are_counts_with_covariates_latent_and_provenance(model):
    generated = model.generate(40, seed=3)
    assert sp.issparse(generated.X)
    assert generated.shape == (40, 30)
    assert (generated.X.data == np.rint(generated.X.data)).all()
    assert (generated.X.sum(1) > 0).all()
    assert list(generated.var_names) == list(model.registry.var_names)
    assert list(generated.obs) == ["batch", "cell_type", "scvae_library_size", "scvae_source"]
    # Covariates come from one real cell each.
    lender = model.adata.obs.loc[generated.obs["scvae_source"]]
    assert (lender["batch"].astype(str).to_numpy() == generated.obs["batch"].astype(str).to_numpy()).all()
    assert generated.obsm["X_scvae"].shape == (40, 3)
    content = json.loads(generated.uns["scvae_ext"])["results"]["X"]
    assert content["arguments"]["like"] == "prior"
    assert {row["mean"] for row in content["arguments"]["library_size"]} == {"batch", "linear", "quadratic"}
    # Set up as it is: the model reads it, and another can be built on it.
    assert model.get_latent_representation(generated).shape == (40, 3)
    assert SCVAE(generated).registry.hash == model.registry.hash
    same, other = model.generate(40, seed=3), model.generate(40, seed=4)
    assert (same.X != generated.X).nnz == 0
    assert (other.X != generated.X).nnz > 0


def test_means_are_those_of_the_decoder_in_the_batch_that_is_set(model):
    n = 4000
    cells = np.flatnonzero(model.adata.obs["cell_type"] == "type_1")
    generated = model.generate(n, groupby="cell_type", group="type_1", set={"batch": "batch_1"}, library_size=500)
    assert set(generated.obs["scvae_source_group"]) == {"type_1"}
    assert set(generated.obs["batch"]) == {"batch_1"}
    assert (generated.obs["scvae_library_size"] == 500).all()
    expected, elsewhere = (
        model.get_normalized_expression(
            indices=cells, transform_batch=batch, library_size=500, n_samples=200, return_numpy=True, key_added=None
        ).mean(0)
        for batch in ("batch_1", "batch_0")
    )
    counts = generated.X.toarray()
    z = (counts.mean(0) - expected) / (counts.std(0) / np.sqrt(n))
    # Cells are drawn with replacement: their own spread comes on top.
    assert np.abs(z).max() < 5.5
    assert np.abs((counts.mean(0) - elsewhere) / (counts.std(0) / np.sqrt(n))).max() > 10


def test_states_come_from_the_chosen_cells(model):
    latent = model.get_latent_representation(key_added=None)
    chosen = [3, 4]
    generated = model.generate(300, indices=chosen)
    assert set(generated.obs["scvae_source"]) == set(model.adata.obs_names[chosen])
    of_first = generated.obs["scvae_source"].to_numpy() == model.adata.obs_names[3]
    _, variance = model.get_latent_representation(indices=[3], return_dist=True)
    error = np.sqrt(variance[0] / of_first.sum())
    assert (np.abs(generated.obsm["X_scvae"][of_first].mean(0) - latent[3]) < 4.5 * error).all()


def test_the_prior_is_the_one_that_the_model_has(simulated):
    for prior in ("standard", "mixture", "vamp"):
        model = SCVAE(simulated.copy(), n_hidden=8, n_latent=2, prior=prior)
        model.train(max_steps=10, enable_progress_bar=False)
        found = model.generate(2000).obsm["X_scvae"]
        pz = model.module.pz()
        mean = np.zeros(2) if pz is None else pz.mean.detach().numpy()
        sd = np.ones(2) if pz is None else pz.variance.sqrt().detach().numpy()
        assert (np.abs(found.mean(0) - mean) < 4.5 * sd / np.sqrt(2000)).all()
        np.testing.assert_allclose(found.std(0), sd, rtol=0.1)


def test_library_sizes_are_fitted_observed_or_given(model):
    observed = np.asarray(model.adata.X.sum(1)).ravel()
    fitted = model.generate(600, like="cells").obs["scvae_library_size"]
    assert ks_2samp(np.log(fitted), np.log(observed)).pvalue > 1e-3
    same = model.generate(50, like="cells", library_size="observed").obs
    of_source = dict(zip(model.adata.obs_names, observed, strict=True))
    assert same["scvae_library_size"].tolist() == [of_source[name] for name in same["scvae_source"]]
    given = model.generate(3, library_size=[10.0, 100.0, 1000.0])
    assert given.obs["scvae_library_size"].tolist() == [10, 100, 1000]
    totals = np.asarray(given.X.sum(1)).ravel()
    assert totals[0] < totals[1] < totals[2]


def test_a_latent_library_size_has_its_own_distribution(load):
    model = load("latent library")
    of_batch = model.generate(1500, set={"batch": "batch_1"}).obs["scvae_library_size"]
    mean, variance = (
        float(values[1]) for values in (model.module.library_log_means, model.module.library_log_variances)
    )
    assert np.log(of_batch).mean() == pytest.approx(mean, abs=4.5 * np.sqrt(variance / 1500))
    assert np.log(of_batch).std() == pytest.approx(np.sqrt(variance), rel=0.1)
    assert (model.generate(5, library_size=77.0).obs["scvae_library_size"].round(2) == 77).all()


@pytest.mark.parametrize("kind", ["zinb", "normal", "simplex", "size factor"])
def test_every_kind_of_model_generates(load, adata, kind):
    if kind == "size factor":
        SCVAE.setup_anndata(adata, size_factor_key="depth", continuous_covariate_keys=["age"])
    model = load(kind)
    generated = model.generate(20)
    assert (generated.X.sum(1) > 0).all()
    if kind == "size factor":
        lender = adata.obs.loc[generated.obs["scvae_source"]]
        np.testing.assert_allclose(generated.obs["depth"], lender["depth"], rtol=1e-6)
        np.testing.assert_allclose(generated.obs["age"], lender["age"], atol=1e-3)
        with pytest.raises(ValueError, match=r"library_size=100 has no meaning with size_factor_key='depth'"):
            model.generate(5, library_size=100)


def test_other_covariates_follow_those_that_are_set_with_the_prior(model):
    model.adata.obs["batch"] = np.where(model.adata.obs["cell_type"] == "type_0", "batch_0", "batch_1")
    generated = model.generate(100, set={"batch": "batch_0"})
    assert set(generated.obs["cell_type"]) == {"type_0"}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_obs": 0}, "n_obs=0 must be a whole number"),
        ({"like": "posterior"}, "like='posterior' is not known"),
        ({"like": "prior", "indices": [1]}, 'like="prior" draws from no cells'),
        ({"group": "type_1"}, r"group='type_1' needs groupby"),
        ({"groupby": "type"}, r"groupby='type' is not a column .*'cell_type'"),
        ({"groupby": "cell_type", "group": "type_11"}, r"group='type_11' is not in .*'type_0'.*Did you mean 'type_1'"),
        ({"set": {"batch": "b"}}, r"set sets 'batch' to 'b'.*'batch_0', 'batch_1'"),
        ({"library_size": "latent"}, "library_size='latent' is not known: use \"fitted\""),
        ({"library_size": [1.0, 2.0]}, r"one for each of the 1000 new cells"),
        ({"library_size": -3}, r"library_size=-3 must be a positive number"),
        ({"library_size": 1e-12, "n_obs": 3}, r"new cells got no counts in 100 attempts"),
    ],
    ids=str,
)
def test_what_cannot_be_generated_is_named(model, options, message):
    with pytest.raises(ValueError, match=message):
        model.generate(**options)


def test_groups_of_none_of_the_chosen_cells_are_named(model):
    others = np.flatnonzero(model.adata.obs["cell_type"] != "type_0")
    with pytest.raises(ValueError, match=r"None of the chosen cells is in group='type_0'"):
        model.generate(5, indices=others, groupby="cell_type", group="type_0")


@pytest.mark.parametrize("like", ["cells", "prior"])
def test_states_and_latent_library_sizes_are_drawn_from_posterior_or_prior(load, like, monkeypatch):
    model = load("latent library")
    module, given = model.module, []
    decode = module.decode
    monkeypatch.setattr(module, "decode", lambda *arguments: (given.append(arguments), decode(*arguments))[1])
    generated = model.generate(800, like=like, indices=[7] if like == "cells" else None, seed=1)
    states, log_library = (torch.cat([each[place] for each in given]) for place in (0, 2))
    with torch.no_grad():
        minibatch = model._own_source().minibatch(np.array([7]))
        posterior = module.encode(minibatch)
    if like == "cells":
        of_states, of_library = posterior.qz, posterior.log_library
    else:
        assert len(np.unique(generated.obs["scvae_source"])) > 50
        of_states = Normal(torch.zeros(3), torch.ones(3))
        # Each cell has its batch's prior.
        batch = torch.cat([each[1].batch for each in given])
        of_library = Normal(module.library_log_means[batch], module.library_log_variances[batch].sqrt())
    for drawn, expected in ((states, of_states), (log_library, of_library)):
        z = (drawn - expected.loc) / expected.scale
        assert float(z.mean(0).abs().max()) < 4.5 / 800**0.5
        assert float((z.std(0) - 1).abs().max()) < 4.5 / 1600**0.5


def test_observed_library_sizes_take_the_place_of_latent_ones(load):
    model = load("latent library")
    generated = model.generate(50, like="prior", library_size="observed", seed=1)
    lender = model.adata[generated.obs["scvae_source"]]
    np.testing.assert_allclose(generated.obs["scvae_library_size"], np.asarray(lender.X.sum(1)).ravel(), rtol=1e-5)


def test_cells_that_got_no_counts_are_drawn_again_by_themselves(model, monkeypatch):
    """Each with its own library size and state, as if those without counts had not been seen."""
    monkeypatch.setattr("scvae_ext.models.generation.ATTEMPTS", 10_000)
    size = np.where(np.arange(400) % 2, 0.5, 50.0)
    generated = model.generate(400, like="cells", indices=[3], library_size=size, seed=2)
    total = np.asarray(generated.X.sum(1)).ravel()
    assert total[size == 0.5].min() == 1
    # A negative binomial cell with half a count in the mean has hardly ever more than a few.
    assert total[size == 0.5].max() < 8
    assert total[size == 50].mean() == pytest.approx(50, rel=0.15)


def test_fitted_library_sizes_are_those_of_the_state_and_batch_that_were_drawn(model):
    """Of a distribution that all but says them: the first latent coordinate in nats, and three for the second batch."""
    columns = np.array([0.0, 3.0, 1.0, 0.0, 0.0])
    nothing, one = np.zeros(5), np.ones(1)
    scale = np.full(2, 1e-6)
    sizes = LibrarySizes("linear", "normal", 2, np.r_[5.0, columns], nothing, np.ones(5), scale, one, 0 * one, one, {})
    cells = Cells(model._own_source(), np.arange(120), model.device)
    setting = read_setting("set", {"batch": "batch_1"}, model.registry)
    for like in ("prior", "cells"):
        for changed in (None, setting):
            with evaluating(model.module):
                drawn = draw_cells(model.module, cells, like, changed, Depth("fitted", sizes), 0)
            own = model.adata.obs["batch"].cat.codes.to_numpy()
            batch = own if changed is None else np.ones(120)
            np.testing.assert_array_equal(drawn.batch, batch)
            np.testing.assert_allclose(np.log(drawn.depth), 5 + 3 * batch + drawn.latent[:, 0], atol=1e-4)
