import numpy as np
import pytest
from scipy.stats import kstest, norm

from scvae_ext.analysis import fit_library_sizes


def _cells(n=2000, slope=0.0, curve=0.0, tails=False, seed=0):
    """Log sizes by two batches (means 7 and 8, spreads 0.2 and 0.5) and by the first of three coordinates."""
    rng = np.random.default_rng(seed)
    batch, latent = rng.integers(0, 2, n), rng.normal(size=(n, 3)).astype(np.float32)
    noise = rng.standard_t(3, n) / np.sqrt(3) if tails else rng.normal(size=n)
    state = slope * latent[:, 0] + curve * (np.square(latent[:, 0]) - 1)
    return np.exp(7.0 + batch + state + np.array([0.2, 0.5])[batch] * noise), latent, batch


@pytest.mark.parametrize(
    ("truth", "mean"), [({}, "batch"), ({"slope": 0.3}, "linear"), ({"curve": 0.3}, "quadratic")], ids=str
)
def test_the_dependence_on_the_state_is_found(truth, mean):
    found = fit_library_sizes(*_cells(**truth), 2)
    assert found.mean == mean or found.scores[mean, found.residual] > found.scores[found.mean, found.residual] - 0.003
    if truth:
        assert found.scores[mean, "normal"] > found.scores["batch", "normal"] + 0.05
    np.testing.assert_allclose(found.scale, [0.2, 0.5], rtol=0.06)


def test_scores_are_of_cells_that_were_not_fitted_to():
    """A parabola in twelve coordinates that say nothing fits fifty cells best, and predicts others worst."""
    rng = np.random.default_rng(2)
    latent = rng.normal(size=(50, 12)).astype(np.float32)
    found = fit_library_sizes(np.exp(rng.normal(7, 0.3, 50)), latent, np.zeros(50, dtype=int), 1)
    assert found.mean == "batch"
    scores = [found.scores[mean, "normal"] for mean in ("batch", "linear", "quadratic")]
    assert scores[0] > scores[1] + 0.05 > scores[2] + 0.1


def test_scores_are_the_log_density_of_the_truth():
    size, latent, batch = _cells(4000, slope=0.3)
    found = fit_library_sizes(size, latent, batch, 2)
    exact = norm.logpdf(np.log(size), 7.0 + batch + 0.3 * latent[:, 0], np.array([0.2, 0.5])[batch])
    np.testing.assert_allclose(found.log_prob(np.log(size), latent, batch).mean(), exact.mean(), atol=0.01)
    assert found.scores["linear", "normal"] == pytest.approx(exact.mean(), abs=0.01)


def test_heavy_tails_get_a_mixture_and_density_and_draws_agree():
    size, latent, batch = _cells(4000, tails=True)
    found = fit_library_sizes(size, latent, batch, 2)
    assert found.residual == "mixture"
    grid = np.linspace(2, 13, 4001)
    nothing = np.zeros((len(grid), 3), dtype=np.float32)
    density = np.exp(found.log_prob(grid, nothing, np.ones(len(grid), dtype=int)))
    assert np.trapezoid(density, grid) == pytest.approx(1.0, abs=1e-4)
    drawn = np.log(found.sample(latent, batch, np.random.default_rng(1)))
    for b in (0, 1):
        assert kstest(drawn[batch == b], np.log(size)[batch == b]).pvalue > 1e-3


def test_rare_batches_borrow_and_empty_ones_follow_the_rest():
    size, latent, batch = _cells(500)
    batch = np.append(batch, 2)
    found = fit_library_sizes(np.append(size, 1000.0), np.vstack([latent, latent[:1]]), batch, 4)
    assert 0.2 < found.scale[2] < 0.5
    assert 0.2 < found.scale[3] < 0.5
    assert np.isfinite(found.sample(latent[:5], np.full(5, 3), np.random.default_rng(0))).all()


def test_few_cells_and_cells_of_one_size_are_fitted():
    latent = np.zeros((4, 2), dtype=np.float32)
    found = fit_library_sizes(np.full(4, 500.0), latent, np.zeros(4, dtype=int), 1)
    np.testing.assert_allclose(found.sample(latent, np.zeros(4, dtype=int), np.random.default_rng(0)), 500, rtol=0.01)


def test_the_table_and_the_words_say_what_was_gained():
    found = fit_library_sizes(*_cells(800, slope=0.3), 2)
    frame = found.to_frame()
    assert frame["score"].is_monotonic_decreasing
    assert frame.loc[0, "mean"] == found.mean
    gain = found.scores[found.mean, found.residual] - found.scores["batch", "normal"]
    assert f"gain {gain:.3f} nats" in found.summary()
