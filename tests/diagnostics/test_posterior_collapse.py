import inspect

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from anndata import AnnData
from scipy import stats
from torch.distributions import Normal, kl_divergence

from scvae_ext import SCVAE, Autoencoder
from scvae_ext.diagnostics import posterior_collapse
from scvae_ext.modules import MixturePrior
from scvae_ext.nn import Encoder


@pytest.fixture
def encoded(linear_model):
    """Diagnose an encoder with these means and one scale a dimension; a last dimension ignores the cells."""

    def encode(means, scale, **options):
        means = np.asarray(means, dtype=float).reshape(len(means), -1)
        n_latent = means.shape[1]
        # Values that models accept: none below zero, and no cell without any.
        low = means.min(0) - 1
        x = means - low
        weight = np.vstack([np.eye(n_latent), np.zeros((1, n_latent))])
        return posterior_collapse(linear_model(x, weight, [*low, 0.0], np.array([*scale, 1.0])), **options)

    return encode


def test_dimensions_have_their_closed_forms(encoded):
    means = np.random.default_rng(0).normal(size=(50, 2)) * [1.5, 0.09]
    found = encoded(means, [0.3, 0.8])
    frame = found.to_frame()
    expected = kl_divergence(Normal(torch.tensor(means), torch.tensor([0.3, 0.8])), Normal(0.0, 1.0)).mean(0)
    np.testing.assert_allclose(frame["kl"], [*expected, 0.0], atol=1e-5)
    np.testing.assert_allclose(frame["variance_of_mean"], [*np.var(means, axis=0), 0.0], atol=1e-6)
    np.testing.assert_allclose(frame["mean_variance"], [0.09, 0.64, 1.0], rtol=1e-6)
    assert frame["is_active"].tolist() == [True, False, False]
    assert found.rate == pytest.approx(float(expected.sum()), abs=1e-5)
    assert frame.index.name == "dimension"
    assert list(frame.index) == [0, 1, 2]


def test_the_threshold_is_the_variance_of_the_mean(encoded):
    means = np.tile([-0.2, 0.2], 10)
    assert encoded(means, [0.5], threshold=0.0399).n_active == 1
    assert encoded(means, [0.5], threshold=0.0401).n_active == 0


@pytest.mark.parametrize("n_cells", [2, 37])
def test_cells_that_are_far_apart_have_the_information_of_their_number(encoded, n_cells):
    found = encoded(np.arange(n_cells), [1e-3], n_samples=500)
    assert found.mutual_information == pytest.approx(np.log(n_cells), abs=1e-9)
    assert found.marginal_kl == pytest.approx(found.rate - np.log(n_cells))
    assert f"at most log({n_cells})" in str(found)
    assert "the most that so few cells can show" in str(found)


def test_groups_of_equal_cells_have_the_information_of_their_shares(encoded):
    found = encoded([0.0] * 30 + [5.0] * 10, [0.01])
    assert found.mutual_information == pytest.approx(stats.entropy([0.75, 0.25]), abs=1e-9)
    assert "so few cells" not in str(found)


def test_equal_cells_have_none(encoded):
    found = encoded([0.7] * 20, [0.5])
    assert found.mutual_information == pytest.approx(0.0, abs=1e-9)
    assert found.marginal_kl == pytest.approx(0.5 * (0.7**2 + 0.25 - 1) - np.log(0.5), abs=1e-5)


def test_a_gaussian_channel_has_its_closed_form(encoded):
    spread, scale = 0.9, 0.6
    means = spread * stats.norm.ppf((np.arange(2000) + 0.5) / 2000)
    found = encoded(means, [scale])
    information = 0.5 * np.log1p((spread / scale) ** 2)
    assert found.mutual_information_error < 0.01
    assert found.mutual_information == pytest.approx(information, abs=4 * found.mutual_information_error)
    variance = spread**2 + scale**2
    assert found.marginal_kl == pytest.approx(0.5 * (variance - 1 - np.log(variance)), abs=0.03)


def test_the_standard_error_is_that_of_many_repetitions(encoded):
    means = np.random.default_rng(0).normal(size=60)
    runs = [encoded(means, [0.5], n_samples=120, seed=seed) for seed in range(100)]
    values = [run.mutual_information for run in runs]
    # Even spread over cells can only make the estimate better than independent draws.
    assert 0.5 < np.std(values) / np.mean([run.mutual_information_error for run in runs]) < 1.2
    exact = encoded(means, [0.5], n_samples=100_000).mutual_information
    assert np.mean(values) == pytest.approx(exact, abs=4 * np.std(values) / 10)


def test_draws_do_not_depend_on_how_many_fit_into_memory(encoded, monkeypatch):
    means = np.random.default_rng(0).normal(size=30)
    whole = encoded(means, [0.5], n_samples=100)
    monkeypatch.setitem(inspect.unwrap(posterior_collapse).__globals__, "MAX_ENTRIES", 210)
    assert encoded(means, [0.5], n_samples=100).mutual_information == pytest.approx(whole.mutual_information)


def test_a_collapsed_model_is_named_and_an_ordinary_one_is_not(trained):
    ordinary = posterior_collapse(trained(gene_likelihood="poisson"))
    assert ordinary.n_active == 2
    assert ordinary.verdict == "No posterior collapse: all 2 latent dimensions are active."
    collapsed = posterior_collapse(trained(gene_likelihood="poisson", plan_kwargs={"max_kl_weight": 50}))
    assert collapsed.n_active == 0
    assert str(collapsed).startswith("Posterior collapse: none of the 2 latent dimensions is active")
    assert collapsed.rate < 0.05
    for found in (ordinary, collapsed):
        assert found.mutual_information <= np.log(found.n_cells)
        assert found.mutual_information <= found.rate + 4 * found.mutual_information_error
    assert ordinary.mutual_information > 10 * collapsed.rate


def _weak():
    """Counts that say little about a cell: heavy weights of the divergence drown them."""
    rng = np.random.default_rng(0)
    shares = rng.dirichlet(np.ones(12), 3)[np.arange(150) % 3]
    adata = AnnData(sp.csr_matrix(rng.poisson(1 + 20 * shares).astype(np.float32)))
    SCVAE.setup_anndata(adata)
    return adata


REMEDIES = {"beta": {"max_kl_weight": 1.0}, "warm-up": {"kl_warmup": 0.9}, "free bits": {"free_bits": 0.3}}


@pytest.fixture(scope="module")
def diagnose():
    adata = _weak()

    def train(**options):
        model = SCVAE(adata, n_hidden=16, n_latent=2, gene_likelihood="poisson")
        collapsing = {"max_steps": 150, "enable_progress_bar": False, "kl_warmup": 0.0, "max_kl_weight": 3.0}
        model.train(**(collapsing | options))
        return posterior_collapse(model, n_samples=1000)

    return train


@pytest.mark.slow
def test_each_remedy_cures_a_model_that_is_diagnosed_as_collapsed(diagnose):
    collapsed = diagnose()
    assert collapsed.verdict.startswith("Posterior collapse: none of the 2")
    for name, remedy in REMEDIES.items():
        cured = diagnose(**remedy)
        assert cured.n_active >= 1, name
        assert cured.mutual_information > 0.1, name


def test_a_learned_prior_takes_the_mismatch_with_the_aggregated_posterior_away(trained):
    standard = posterior_collapse(trained(gene_likelihood="poisson"))
    for prior in ("mixture", "vamp"):
        learned = posterior_collapse(trained(gene_likelihood="poisson", prior=prior, n_prior_components=5))
        assert learned.n_active >= 1
        assert learned.mutual_information > 0.9 * standard.mutual_information
        assert learned.marginal_kl < 0.85 * standard.marginal_kl


def _with_prior(model, means, scales, weights):
    module = model.module
    module.prior = MixturePrior(len(weights), np.shape(means)[1]).double()
    with torch.no_grad():
        module.prior.mean.copy_(torch.as_tensor(means))
        module.prior.log_scale.copy_(torch.as_tensor(scales).log())
        module.prior.logits.copy_(torch.as_tensor(weights).log())
    # The mixture does not ask the encoder anything, and that of these tests is not one of the package.
    module.encoder = _AnEncoder(module.encoder)
    return model


class _AnEncoder(Encoder):
    def __init__(self, encoder):
        super().__init__(1, 1, 1)
        self.encoder = encoder

    def forward(self, x, covariates):
        return self.encoder(x, covariates)


def test_the_divergence_from_a_learned_prior_is_that_of_numerical_integration(linear_model):
    means, scale = np.linspace(-2, 2, 9), 0.4
    x = means.reshape(-1, 1) + 3
    model = linear_model(x, [[1.0]], [-3.0], np.array([scale]))
    _with_prior(model, [[-1.5], [1.0]], [[0.5], [0.8]], [0.3, 0.7])
    found = posterior_collapse(model, n_samples=40_000)
    z = np.linspace(-9, 9, 20_001)
    log_pz = np.log(0.3 * stats.norm.pdf(z, -1.5, 0.5) + 0.7 * stats.norm.pdf(z, 1.0, 0.8))
    qz = stats.norm.pdf(z, means[:, None], scale)
    exact = (qz * (stats.norm.logpdf(z, means[:, None], scale) - log_pz)).sum(1).mean() * (z[1] - z[0])
    assert found.kl == pytest.approx([exact], abs=1e-4)
    assert 0 < found.rate_error < 0.02
    assert found.rate == pytest.approx(exact, abs=4.5 * found.rate_error)


def test_dimensions_of_a_single_gaussian_sum_to_the_rate(linear_model):
    x = 2 + np.random.default_rng(0).uniform(size=(40, 2))
    model = linear_model(x, np.eye(2), [-2.0, -2.5], np.array([0.3, 0.7]))
    _with_prior(model, [[0.5, 0.0]], [[0.6, 1.5]], [1.0])
    found = posterior_collapse(model, n_samples=40_000)
    qz = Normal(torch.as_tensor(x - [2.0, 2.5]), torch.tensor([0.3, 0.7]).double())
    exact = kl_divergence(qz, Normal(torch.tensor([0.5, 0.0]).double(), torch.tensor([0.6, 1.5]).double())).mean(0)
    np.testing.assert_allclose(found.kl, exact, rtol=1e-5)
    assert found.rate == pytest.approx(float(exact.sum()), abs=4.5 * found.rate_error)


def test_the_rate_of_the_standard_prior_has_no_error(trained):
    found = posterior_collapse(trained(gene_likelihood="poisson"), n_samples=10)
    assert found.rate_error == 0
    assert found.rate == pytest.approx(found.kl.sum())


def test_unused_dimensions_are_named(encoded):
    found = encoded(np.arange(8), [0.1])
    assert found.verdict == "Unused dimensions: 1 of 2 latent dimensions are active; not those numbered 1."


def test_cells_and_seeds(trained):
    model = trained()
    assert posterior_collapse(model, n_samples=10).n_cells == model.adata.n_obs
    some = posterior_collapse(model, indices=range(5), n_samples=10)
    assert some.n_cells == 5
    pd.testing.assert_frame_equal(
        some.to_frame(), posterior_collapse(model, model.adata[:5].copy(), n_samples=10).to_frame(), rtol=1e-5
    )
    again = posterior_collapse(model, indices=range(5), n_samples=10)
    other = posterior_collapse(model, indices=range(5), n_samples=10, seed=1)
    assert again.mutual_information == some.mutual_information != other.mutual_information


def test_mistakes_are_named(trained, counts):
    model = trained()
    for options, message in (
        ({"n_samples": 1}, "n_samples=1 must be a whole number of at least 2"),
        ({"threshold": 0.0}, r"threshold=0\.0 must be a positive number"),
        ({"indices": [3]}, "selects one: pass at least two"),
    ):
        with pytest.raises(ValueError, match=message):
            posterior_collapse(model, **options)
    with pytest.raises(TypeError, match="a posterior, which Autoencoder has not"):
        posterior_collapse(Autoencoder(counts))
    with pytest.raises(RuntimeError, match="has not been trained"):
        posterior_collapse(SCVAE(counts))
