import importlib
import itertools
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import optimize, special, stats

from scvae_ext import SCVAE, Autoencoder
from scvae_ext.diagnostics import evidence

NOISE, OFFSET = 0.7, 6.0
ORTHOGONAL = np.array([[1.0, 0.5], [1.0, -0.5], [-0.6, 0.0], [0.0, 0.8]])
CORRELATED = np.array([[1.0, 0.5], [0.8, 0.5], [0.5, -0.2], [0.0, 0.6]])


@pytest.fixture
def linear_gaussian(linear_model):
    """Make the model of given loadings, with its evidence and the precision of its exact posterior.

    The encoder gives the best diagonal Gaussian, moved by ``shift`` standard deviations and stretched by ``stretch``.
    """

    def make(loadings, shift=0.0, stretch=1.0, n_cells=40):
        rng = np.random.default_rng(1)
        noise = NOISE * rng.normal(size=(n_cells, len(loadings)))
        x = (OFFSET + rng.normal(size=(n_cells, 2)) @ loadings.T + noise).astype(np.float32)
        precision = np.eye(2) + loadings.T @ loadings / NOISE**2
        weight = np.linalg.solve(precision, loadings.T) / NOISE**2
        scale = 1 / np.sqrt(np.diag(precision))
        bias = shift * scale - OFFSET * weight.sum(1)
        model = linear_model(x, weight, bias, stretch * scale, loadings=loadings, offset=OFFSET, noise=NOISE)
        covariance = loadings @ loadings.T + NOISE**2 * np.eye(len(loadings))
        return model, stats.multivariate_normal.logpdf(x, np.full(len(loadings), OFFSET), covariance), precision

    return make


def _all(model, **options):
    return evidence(model, indices=np.arange(model.adata.n_obs), **options)


@pytest.mark.parametrize("proposal", ["encoder", "optimised"])
def test_the_exact_posterior_gives_the_evidence_without_error(linear_gaussian, proposal):
    model, truth, _ = linear_gaussian(ORTHOGONAL)
    found = _all(model, n_samples=20, n_optimisation_steps=30, proposal=proposal)
    np.testing.assert_allclose(found.log_evidence, truth, atol=1e-4)
    np.testing.assert_allclose(found.elbo, truth, atol=1e-4)
    np.testing.assert_allclose(found.optimised_elbo, truth, atol=1e-4)
    np.testing.assert_allclose(found.standard_error, 0, atol=1e-4)
    np.testing.assert_allclose(found.effective_sample_size, 20, rtol=1e-6)


def test_the_amortization_gap_is_the_divergence_of_a_perturbed_encoder(linear_gaussian):
    shift, stretch = 1.5, 0.6
    model, truth, _ = linear_gaussian(ORTHOGONAL, shift, stretch)
    found = _all(model, n_samples=400)
    divergence = 2 * (0.5 * (shift**2 + stretch**2 - 1) - np.log(stretch))
    np.testing.assert_allclose(found.log_evidence, truth, atol=1e-3)
    np.testing.assert_allclose(found.approximation_gap, 0, atol=1e-3)
    # Over cells and samples the error of the mean is that of 16,000 draws.
    assert found.amortization_gap.mean() == pytest.approx(divergence, abs=0.05)
    np.testing.assert_allclose(found.gap, found.amortization_gap + found.approximation_gap)


def test_the_approximation_gap_is_the_divergence_of_the_best_diagonal_gaussian(linear_gaussian):
    model, truth, precision = linear_gaussian(CORRELATED, shift=1.0, stretch=1.3)
    found = _all(model, n_samples=1000)
    divergence = 0.5 * (np.log(np.diag(precision)).sum() - np.linalg.slogdet(precision)[1])
    assert divergence > 0.1
    assert found.mean == pytest.approx(truth.mean(), abs=4 * found.mean_standard_error)
    assert found.approximation_gap.mean() == pytest.approx(divergence, abs=0.02)
    # What a shift by one standard deviation and a stretch by 1.3 cost against the best diagonal Gaussian.
    scale = 1 / np.sqrt(np.diag(precision))
    cost = 0.5 * scale @ precision @ scale + 2 * (0.5 * (1.3**2 - 1) - np.log(1.3))
    assert found.amortization_gap.mean() == pytest.approx(cost, abs=0.05)


def test_effective_sample_size_of_a_proposal_that_is_too_wide(linear_gaussian):
    model, _, _ = linear_gaussian(ORTHOGONAL, stretch=1.5)
    found = _all(model, n_samples=4000, n_optimisation_steps=1, proposal="encoder")
    per_dimension = np.sqrt(2 * 1.5**2 - 1) / 1.5**2
    np.testing.assert_allclose(found.effective_sample_size / 4000, per_dimension**2, rtol=0.05)


def test_standard_errors_are_those_of_many_repetitions(linear_gaussian):
    model, truth, _ = linear_gaussian(ORTHOGONAL, shift=0.5, stretch=1.4)
    runs = [
        _all(model, n_samples=200, n_optimisation_steps=1, proposal="encoder", batch_size=40, seed=seed)
        for seed in range(60)
    ]
    scores = np.array([(run.log_evidence - truth) / run.standard_error for run in runs])
    assert scores.std() == pytest.approx(1.0, abs=0.08)
    of_mean = np.array([(run.mean - truth.mean()) / run.mean_standard_error for run in runs])
    # 60 repetitions know a standard deviation to 9 percent.
    assert of_mean.std() == pytest.approx(1.0, abs=0.3)
    assert abs(of_mean.mean()) < 0.6


def _grid(n_axes, n_points):
    """Return points and log weights of a rule for the standard normal."""
    axis = np.linspace(-6, 6, n_points)
    log_weight = stats.norm.logpdf(axis) + np.log(axis[1] - axis[0])
    points = np.array(list(itertools.product(axis, repeat=n_axes)))
    return points, np.array(list(itertools.product(log_weight, repeat=n_axes))).sum(1)


@torch.no_grad()
def _log_likelihood(model, z, x, library):
    """Return log p(x given z) by scipy, of shape (points, cells)."""
    module = model.module
    hidden = module.decoder(torch.as_tensor(z, dtype=torch.float32), torch.zeros(len(z), 0))
    mean = library * module.likelihood.expression(hidden).double().numpy()[:, None]
    if model._options["gene_likelihood"] == "poisson":
        return stats.poisson.logpmf(x, mean).sum(-1)
    theta = model.get_likelihood_parameters(indices=[0])["dispersions"][0].astype(float)
    return stats.nbinom.logpmf(x, theta, theta / (theta + mean)).sum(-1)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The effective sample size")
@pytest.mark.parametrize(
    ("gene_likelihood", "proposal"), [("nb", "encoder"), ("nb", "optimised"), ("poisson", "optimised")]
)
@pytest.mark.parametrize(("n_latent", "n_points"), [(1, 401), (2, 121)])
def test_evidence_of_counts_is_the_integral_over_the_latent_space(
    trained, gene_likelihood, n_latent, n_points, proposal
):
    # Gaussians that are fitted to each cell are to hold all of them, once the decoder has settled.
    is_fitted = proposal == "optimised"
    model = trained(n_latent, max_steps=400 if is_fitted else 150, gene_likelihood=gene_likelihood)
    found = evidence(model, indices=range(8), n_samples=4000, n_optimisation_steps=100, proposal=proposal)
    # The encoder of this small model misses a cell.
    trusted = found.effective_sample_size > 100
    assert trusted.sum() >= (8 if is_fitted else 7)
    x = model.adata.X[:8].toarray()
    points, log_weight = _grid(n_latent, n_points)
    at_points = _log_likelihood(model, points, x, x.sum(1, keepdims=True))
    truth = special.logsumexp(at_points + log_weight[:, None], axis=0)
    assert np.abs((found.log_evidence - truth) / found.standard_error)[trusted].max() < 4
    assert (found.optimised_elbo >= found.elbo).all()
    assert (found.approximation_gap > -4 * found.standard_error)[trusted].all()


def test_evidence_integrates_over_a_latent_library_size(trained):
    model = trained(1, use_observed_lib_size=False)
    found = evidence(model, indices=range(4), n_samples=4000, n_optimisation_steps=100)
    x = model.adata.X[:4].toarray()
    points, log_weight = _grid(2, 241)
    prior_mean, prior_variance = float(model.module.library_log_means), float(model.module.library_log_variances)
    library = np.exp(prior_mean + prior_variance**0.5 * points[:, 1])[:, None, None]
    at_points = _log_likelihood(model, points[:, :1], x, library)
    truth = special.logsumexp(at_points + log_weight[:, None], axis=0)
    assert np.abs((found.log_evidence - truth) / found.standard_error).max() < 4
    assert found.standard_error.max() < 0.05
    assert found.gap.min() > 0


def test_the_optimised_elbo_is_the_best_that_a_search_finds(trained):
    model = trained(1, gene_likelihood="nb")
    found = evidence(model, indices=range(3), n_samples=20_000)
    x = model.adata.X[:3].toarray()
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    weights /= weights.sum()

    for cell in range(3):

        def loss(parameters, cell=cell):
            mean, log_scale = parameters
            at_nodes = _log_likelihood(model, (mean + np.exp(log_scale) * nodes)[:, None], x[[cell]], x[cell].sum())
            divergence = 0.5 * (mean**2 + np.exp(2 * log_scale) - 1) - log_scale
            return divergence - weights @ at_nodes[:, 0]

        best = -optimize.minimize(loss, [0.0, -1.0], method="Nelder-Mead", options={"xatol": 1e-3, "fatol": 1e-4}).fun
        # The error of an ELBO by samples is at most that of log weights: sqrt(2 gap / n_samples).
        assert found.optimised_elbo[cell] == pytest.approx(best, abs=0.02)


def test_results_do_not_depend_on_the_minibatch(trained):
    model = trained()
    options = {"indices": range(9), "n_samples": 400, "n_optimisation_steps": 50}
    whole, parts = evidence(model, **options), evidence(model, batch_size=4, **options)
    pd.testing.assert_frame_equal(whole.to_frame(), parts.to_frame(), rtol=1e-5)
    assert whole.mean == pytest.approx(np.mean(whole.log_evidence))


@pytest.mark.filterwarnings("ignore:The effective sample size")
def test_held_out_cells_by_default_and_others_in_the_order_asked_for(trained):
    model = trained()
    options = {"n_samples": 400, "n_optimisation_steps": 50}
    names = model.adata.obs_names
    assert list(evidence(model, **options).to_frame().index) == list(names[model.validation_indices])
    assert list(evidence(model, indices=[names[5], names[2]], **options).to_frame().index) == [names[5], names[2]]
    assert list(evidence(model, model.adata[:7].copy(), **options).obs_names) == list(names[:7])


def test_the_model_and_the_random_state_are_left_alone(trained):
    model = trained()
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    state = torch.get_rng_state()
    evidence(model, indices=range(3), n_samples=400, n_optimisation_steps=50)
    assert torch.equal(torch.get_rng_state(), state)
    assert not model.module.training
    assert all(torch.equal(value, before[name]) for name, value in model.module.state_dict().items())
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in model.module.parameters())


def test_seeds(trained):
    model = trained()
    options = {"indices": range(3), "n_samples": 400, "n_optimisation_steps": 50}
    first, same, other = (evidence(model, seed=seed, **options).to_frame() for seed in (1, 1, 2))
    pd.testing.assert_frame_equal(first, same)
    assert (first["log_evidence"] != other["log_evidence"]).all()


def test_a_proposal_that_misses_the_posterior_is_warned_of(linear_gaussian):
    model, _, _ = linear_gaussian(ORTHOGONAL, shift=6.0)
    options = {"n_samples": 100, "n_optimisation_steps": 150}
    with pytest.warns(UserWarning, match=r"below 10 in \d+ of 40 cells \(smallest \d+\.\d of 100 samples\)"):
        found = _all(model, proposal="encoder", **options)
    assert found.is_trusted.tolist() == (found.effective_sample_size >= 10).tolist()
    assert "below 10 in" in found.summary()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert _all(model, **options).is_trusted.all()


def test_summary_says_which_gap_is_larger(linear_gaussian):
    model, truth, _ = linear_gaussian(ORTHOGONAL, shift=1.0)
    found = _all(model, n_samples=50)
    assert f"log p(x) = {truth.mean():.2f} nats per cell" in str(found)
    assert "Most of the gap is the encoder's" in str(found)
    model, _, _ = linear_gaussian(CORRELATED)
    assert "Most of the gap is that of the family" in _all(model, n_samples=50).summary()


@pytest.mark.usefixtures("unchecked")
def test_mistakes_are_named(trained, counts):
    model = trained()
    for options, message in (
        ({"n_samples": 9}, "n_samples=9 must be a whole number of at least 10"),
        ({"n_optimisation_steps": 0}, "n_optimisation_steps=0 must be a whole number of at least 1"),
        ({"proposal": "prior"}, r"proposal='prior' is not known: use \"optimised\" or \"encoder\""),
        ({"indices": []}, "indices selects no cell"),
    ):
        with pytest.raises(ValueError, match=message):
            evidence(model, **options)
    with pytest.raises(TypeError, match="a likelihood, which Autoencoder has not"):
        evidence(Autoencoder(counts))
    with pytest.raises(RuntimeError, match="has not been trained"):
        evidence(SCVAE(counts))
    without = SCVAE(counts, n_hidden=4, n_latent=1)
    without.train(max_steps=1, train_size=1.0, enable_progress_bar=False)
    with pytest.raises(ValueError, match=r"holds out no cells of its AnnData: pass indices=\.\.\."):
        evidence(without)


def test_the_best_gaussian_of_a_cell_is_found_without_noise(linear_gaussian, monkeypatch):
    """Samples of a step come in pairs, of which the errors of the gradient of the mean cancel."""
    model, _, precision = linear_gaussian(CORRELATED, shift=1.0, stretch=1.3)
    module, best = importlib.import_module(evidence.__module__), []
    optimise = module.optimised
    monkeypatch.setattr(module, "optimised", lambda *arguments: (best.append(optimise(*arguments)), best[-1])[1])
    _all(model, n_samples=100, n_optimisation_steps=150)
    (found,) = best
    mean = (model.adata.X - OFFSET) @ np.linalg.solve(precision, CORRELATED.T).T / NOISE**2
    scale = 1 / np.sqrt(np.diag(precision))
    np.testing.assert_allclose((found.qz.loc.detach().numpy() - mean) / scale, 0, atol=1e-3)
    np.testing.assert_allclose(found.qz.scale.detach().numpy() / np.broadcast_to(scale, (40, 2)), 1, atol=0.05)
