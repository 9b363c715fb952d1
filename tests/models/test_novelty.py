import json

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from anndata import AnnData
from scipy.special import kolmogi
from scipy.stats import binom, kstest, norm

from scvae_ext import SCVAE
from scvae_ext.analysis import AggregatedPosterior
from scvae_ext.datasets import pbmc68k_reduced, synthetic_counts
from scvae_ext.distributions import Poisson, ZeroInflated
from scvae_ext.models import novelty
from scvae_ext.models.cells import evaluating
from scvae_ext.models.novelty import _possible_rate, replicate_of

QUIET = {"enable_progress_bar": False, "accelerator": "cpu"}
COLUMNS = ["elbo", "expected_elbo", "elbo_z", "elbo_p", "latent_log_density", "latent_p", "p"]


def auc(low, high):
    """Probability that a cell of the first kind has the lower value."""
    low, high = np.asarray(low)[:, None], np.asarray(high)[None]
    return ((low < high) + 0.5 * (low == high)).mean()


def test_is_written_with_where_it_came_from(model, adata):
    frame = model.get_novelty(n_replicates=10).to_frame()
    assert frame.columns.tolist() == COLUMNS
    assert frame.index.equals(adata.obs_names)
    for name in COLUMNS:
        np.testing.assert_array_equal(adata.obs[f"scvae_novelty_{name}"], frame[name])
    entry = json.loads(adata.uns["scvae_ext"])["results"]['obs["scvae_novelty_p"]']
    assert entry["arguments"]["n_replicates"] == 10


def test_density_is_that_of_the_other_cells_and_p_its_rank(model, adata):
    found = model.get_novelty(n_replicates=10)
    adata.obs["all"] = "all"
    density = model.differential_abundance(sample_key="all", key_added=None).log_prob["all"].to_numpy()
    np.testing.assert_allclose(found.latent_log_density, density, rtol=1e-6)
    np.testing.assert_allclose(np.sort(found.latent_p), np.arange(1, 121) / 120)
    assert (np.argsort(found.latent_p) == np.argsort(density)).all()


def test_some_known_cells_stand_for_all(model, adata):
    options = {"n_replicates": 10, "key_added": None}
    everywhere = model.get_novelty(**options).to_frame()
    pd.testing.assert_frame_equal(model.get_novelty(**options, num_cells_posterior=120).to_frame(), everywhere)
    adata.obs["all"] = "all"
    found = model.get_novelty(**options, num_cells_posterior=40, seed=3)
    density = model.differential_abundance(sample_key="all", num_cells_posterior=40, seed=3, key_added=None)
    np.testing.assert_allclose(found.latent_log_density, density.log_prob["all"], rtol=1e-6)
    # Of the forty each has a rank among them, and any other cell has one among them and itself.
    among = np.sort(np.random.default_rng(3).permutation(120)[:40])
    np.testing.assert_allclose(np.sort(found.latent_p[among]), np.arange(1, 41) / 40)
    others = np.delete(np.arange(120), among)
    below = (found.latent_log_density[among] <= found.latent_log_density[others, None]).sum(1)
    np.testing.assert_allclose(found.latent_p[others], np.minimum((1 + below) / 41, 1))


def test_work_is_bounded_by_the_cells_asked_for_and_those_that_stand_for_all(model, adata, monkeypatch):
    pairs, log_density = [], AggregatedPosterior.log_density

    def counted(self, mean, *arguments):
        pairs.append(len(mean) * len(self.mean))
        return log_density(self, mean, *arguments)

    monkeypatch.setattr(AggregatedPosterior, "log_density", counted)
    for options, expected in (
        ({}, [120 * 120]),
        ({"num_cells_posterior": 40}, [40 * 40, 80 * 40]),
        ({"adata": adata[:10].copy(), "num_cells_posterior": 40}, [40 * 40, 10 * 40]),
    ):
        pairs.clear()
        model.get_novelty(**options, n_replicates=10, key_added=None)
        assert pairs == expected


def test_scores_are_those_of_the_elbo(model):
    found = model.get_novelty(n_replicates=10, n_samples=50)
    expected = model.get_elbo(return_mean=False, n_samples=50)
    assert np.corrcoef(found.elbo, expected)[0, 1] > 0.99


@pytest.mark.parametrize("kind", ["zinb", "poisson", "simplex", "latent library"])
def test_other_models_have_it_as_well(load, kind):
    frame = load(kind).get_novelty(n_replicates=10, indices=[5, 3], key_added=None).to_frame()
    assert frame.index.tolist() == ["cell_5", "cell_3"]
    assert np.isfinite(frame).all(axis=None)


def test_the_same_seed_gives_the_same_and_leaves_the_random_state_alone(model):
    state = torch.get_rng_state()
    one, two = (model.get_novelty(n_replicates=10, key_added=None).to_frame() for _ in range(2))
    assert one.equals(two)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.fixture(scope="module")
def pbmc():
    """A model of 700 blood cells that has seen no B cell, and those, and held-out cells of the other types."""
    adata = pbmc68k_reduced()
    adata = adata[:, np.asarray(adata.X.sum(0)).ravel() > 60].copy()
    is_b = (adata.obs["cell_type"] == "CD19+ B").to_numpy()
    held = ~is_b & (np.random.default_rng(0).random(700) < 0.2)
    train = adata[~is_b & ~held].copy()
    SCVAE.setup_anndata(train)
    model = SCVAE(train, n_hidden=64)
    model.train(max_steps=800, **QUIET)
    return model, adata[is_b].copy(), adata[held].copy()


@torch.no_grad()
def drawn_from(model, seed):
    """Draw cells at states of random known cells, with the library sizes or size factors of the known cells."""
    rng = np.random.default_rng(seed)
    n = model.adata.n_obs
    mean, variance = model.get_latent_representation(return_dist=True)
    parent = rng.integers(n, size=n)
    state = mean[parent] + np.sqrt(variance[parent]) * rng.normal(size=mean.shape)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        px = model.module.decode(
            torch.from_numpy(state.astype(np.float32)), model._own_source().minibatch(np.arange(n))
        )
        counts = px.sample().numpy()
    return AnnData(sp.csr_matrix(counts), obs=model.adata.obs, var=model.adata.var[[]])[counts.sum(1) > 0].copy()


@pytest.mark.slow
def test_p_is_uniform_for_cells_drawn_from_the_model(pbmc):
    model, _, _ = pbmc
    drawn = drawn_from(model, 3)
    n = drawn.n_obs
    found = model.get_novelty(drawn, n_replicates=40, n_samples=2)
    # Of a discrete p, a uniform draw from the interval that it stands for.
    assert kstest(found.elbo_p - np.random.default_rng(3).random(n) / 41, "uniform").pvalue > 0.01
    # Four standard errors, of cells as they scatter.
    z2 = found.elbo_z**2
    assert abs(found.elbo_z.mean()) < 4 * found.elbo_z.std() / np.sqrt(n)
    assert abs(z2.mean() - 1) < 4 * z2.std() / np.sqrt(n)


@pytest.mark.parametrize(("likelihood", "size_factor_key"), [("nb", None), ("zinb", None), ("nb", "size")])
def test_p_is_as_low_as_it_says_however_far_totals_deviate_from_library_sizes(likelihood, size_factor_key):
    """With few and dispersed genes the total of a cell lies far from its library size, by 30 % and more."""
    adata = synthetic_counts(1000, 40, n_types=3, library_size=400, seed=3)
    adata.obs["size"] = np.asarray(adata.X.sum(1)).ravel() / 400
    SCVAE.setup_anndata(adata, size_factor_key=size_factor_key)
    model = SCVAE(adata, n_hidden=16, n_latent=3, gene_likelihood=likelihood)
    model.train(max_steps=100, batch_size=256, **QUIET)
    drawn = drawn_from(model, 1)
    p = model.get_novelty(drawn, n_replicates=99, n_samples=1, batch_size=1000, key_added=None).elbo_p
    for level in (0.01, 0.05, 0.5):
        low, high = binom.ppf([1e-3, 1 - 1e-3], len(p), level)
        assert low <= (p <= level + 1e-9).sum() <= high, (level, (p <= level + 1e-9).mean())


def test_replicates_have_the_total_of_their_cell(load):
    for kind in ("nb", "zinb", "poisson", "latent library"):
        model = load(kind)
        minibatch = model._own_source().minibatch(np.arange(120))
        with torch.random.fork_rng(), torch.no_grad():
            drawn = replicate_of(model.module.eval(), minibatch, torch.randn(120, model.module.n_latent))
        total = drawn.counts.dense().sum(1)
        assert torch.equal(total, minibatch.library_size)
        assert torch.equal(drawn.library_size, total)


def test_a_cell_in_which_nothing_is_expressed_is_drawn_as_expected():
    dead = torch.tensor([[1e3, 1e3], [-1e3, -1e3]])
    px = ZeroInflated(Poisson(torch.tensor([[1.0, 3.0], [1.0, 3.0]])), dead)
    assert _possible_rate(px).tolist() == [[0.0, 0.0], [1.0, 3.0]]


def test_cells_of_a_type_that_the_model_has_not_seen_are_novel(pbmc):
    model, new, held = pbmc
    new, held = (model.get_novelty(each, n_replicates=20, n_samples=2) for each in (new, held))
    assert auc(new.latent_log_density, held.latent_log_density) > 0.95
    assert auc(new.elbo_z, held.elbo_z) > 0.8
    assert auc(new.p, held.p) > 0.9
    # Held-out cells of known types lie where those do. All are ranked among the same known cells: the distance from
    # uniform is that of Kolmogorov and Smirnov for two samples.
    n, m = len(held.latent_p), model.adata.n_obs
    at = np.sort(held.latent_p)
    above, below = (np.arange(1, n + 1) / n - at).max(), (at - np.arange(n) / n).max()
    assert max(above, below) < kolmogi(1e-4) * np.sqrt(1 / n + 1 / m) + 1 / m, (above, below)


def test_depth_alone_makes_no_cell_novel(pbmc):
    """The ELBO falls with the number of counts; what is compared with cells of the same depth does not."""
    model, _, held = pbmc
    rng = np.random.default_rng(4)
    thinned = held.copy()
    thinned.X = sp.csr_matrix(rng.binomial(held.X.toarray().astype(int), 0.5).astype(np.float32))
    whole, half = (model.get_novelty(each, n_replicates=20, n_samples=2) for each in (held, thinned))
    assert auc(whole.elbo, half.elbo) > 0.9
    # Of two samples of as many independent cells of one kind, but once in 10,000 times.
    n = held.n_obs
    assert abs(auc(whole.elbo_z, half.elbo_z) - 0.5) < norm.isf(5e-5) * np.sqrt((2 * n + 1) / (12 * n**2))


def test_log_normalised_values_are_refused(load):
    with pytest.raises(ValueError, match='gene_likelihood="nb", "zinb" or "poisson"'):
        load("normal").get_novelty()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_replicates": 5}, "n_replicates=5 must be a whole number of at least 10"),
        ({"num_cells_posterior": 0}, "num_cells_posterior=0 must be a whole number"),
        ({"bandwidth": -1.0}, r"bandwidth=-1\.0 must be a positive number"),
        ({"indices": ["cell_999"]}, "'cell_999', not among adata.obs_names"),
    ],
)
def test_says_what_is_wrong(model, options, message):
    with pytest.raises(ValueError, match=message):
        model.get_novelty(**options)


def test_cells_of_a_view_or_copy_are_left_out_of_the_density_at_themselves(model, adata):
    expected = model.get_novelty(n_replicates=10, indices=range(50), key_added=None).to_frame()
    for some in (adata[:50], adata[:50].copy()):
        found = model.get_novelty(some, n_replicates=10, key_added=None).to_frame()
        pd.testing.assert_frame_equal(found, expected)


def test_states_of_replicates_are_drawn_from_the_posteriors_of_known_cells(model, cells, monkeypatch):
    seen = []
    monkeypatch.setattr(
        novelty,
        "replicate_of",
        lambda module, minibatch, sample: (seen.append(sample), replicate_of(module, minibatch, sample))[1],
    )
    monkeypatch.setattr(novelty, "elbo_of", lambda module, minibatch, n_samples: np.zeros(minibatch.n_cells))
    loc, scale = torch.tensor([[-9.0, 1.0, 0.0], [9.0, 2.0, 4.0]]), torch.tensor([[0.1, 0.5, 3.0], [1.0, 0.2, 0.7]])
    monkeypatch.setattr(novelty, "_states", lambda module, known: (loc, scale))
    with evaluating(model.module):
        novelty._scores(model.module, cells(), cells(), 10, 1, 0)
    samples = torch.cat(seen)
    assert samples.shape == (1200, 3)
    parent = (samples[:, 0] > 0).long()
    assert abs(float(parent.float().mean()) - 0.5) < 4.5 * 0.5 / 1200**0.5
    z = (samples - loc[parent]) / scale[parent]
    for of_one in (z[parent == 0], z[parent == 1]):
        assert float(of_one.mean(0).abs().max()) < 4.5 / len(of_one) ** 0.5
        assert float((of_one.std(0) - 1).abs().max()) < 4.5 / (2 * len(of_one)) ** 0.5


def test_replicates_are_scored_with_as_many_samples_as_their_cell(model, cells, monkeypatch):
    asked = []
    monkeypatch.setattr(
        novelty,
        "elbo_of",
        lambda module, minibatch, n_samples: (asked.append(n_samples), np.zeros(minibatch.n_cells))[1],
    )
    with evaluating(model.module):
        novelty._scores(model.module, cells(), cells(), 10, 7, 0)
    assert asked == [7] * 11


def test_replicates_with_a_size_factor_have_the_total_that_they_got(load, adata):
    SCVAE.setup_anndata(adata, size_factor_key="depth", continuous_covariate_keys=["age"])
    model = load("size factor")
    minibatch = model._own_source().minibatch(np.arange(120))
    with torch.random.fork_rng(), evaluating(model.module):
        drawn = replicate_of(model.module, minibatch, model.module.encode(minibatch).qz.loc)
    total = drawn.counts.dense().sum(1)
    assert torch.equal(drawn.library_size, total)
    assert not torch.equal(total, minibatch.library_size)
    assert torch.equal(drawn.size_factor, minibatch.size_factor)
