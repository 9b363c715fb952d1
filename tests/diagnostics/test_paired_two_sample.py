import numpy as np
import pytest
from scipy.stats import norm

from scvae_ext.diagnostics._paired_two_sample import CellFeatures, told_apart
from scvae_ext.diagnostics._two_sample import area_under_curve


@pytest.mark.slow
def test_real_cells_are_not_told_from_real_ones():
    # Each cell has a twin in the other sample, as cells of the same library size have.
    found = []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        size = rng.normal(size=(60, 1))
        samples = [np.hstack([size, rng.normal(size=(60, 3))]) for _ in range(2)]
        found.append(told_apart(*samples, seed))
    areas, errors = np.array(found).T
    assert abs(areas.mean() - 0.5) < 3 * errors.mean() / np.sqrt(len(areas))


@pytest.mark.slow
def test_the_error_is_no_smaller_than_the_spread_where_nothing_differs():
    rng = np.random.default_rng(3)
    found = np.array([told_apart(*rng.normal(size=(2, 60, 4)), seed) for seed in range(12)])
    z = (found[:, 0] - 0.5) / found[:, 1]
    # A chi-squared variable with 11 degrees of freedom is below 19.7 in 95 of 100 cases.
    assert np.square(z - z.mean()).sum() < 19.7


def test_a_shift_is_found_as_far_as_it_can_be():
    rng = np.random.default_rng(1)
    real, made = rng.normal(size=(300, 2)), rng.normal(size=(300, 2))
    made[:, 0] += 2.0
    area, error = told_apart(real, made, 0)
    best = norm.cdf(2.0 / np.sqrt(2))
    assert best - 0.06 < area < best + 3 * error
    assert told_apart(real, made + 10.0, 0)[0] == 1.0


def test_features_of_a_cell():
    rng = np.random.default_rng(2)
    plane = rng.normal(size=(50, 20)) @ rng.normal(size=(20, 30))
    features = CellFeatures.fit(plane, 0)
    on_plane = features.of(plane)
    np.testing.assert_allclose(on_plane[:, -2], 0, atol=1e-6)
    direction = np.linalg.svd(plane - plane.mean(0))[2][-1]
    np.testing.assert_allclose(features.of(plane + 3 * direction)[:, -2], 3, atol=1e-6)
    assert (features.of(np.where(np.arange(30) < 7, plane, 0.0))[:, -1] == 7).all()


def test_twins_are_learned_from_or_judged_together():
    """Of two that are equal one would be taken for the other's opposite, were it alone learned from."""
    real = np.random.default_rng(4).normal(size=(60, 3))
    assert told_apart(real, real.copy(), 0)[0] == 0.5


def test_the_variance_is_twice_that_of_independent_scores(monkeypatch):
    seen = []

    def area_of(scores, is_made):
        seen.append((scores, is_made))
        return area_under_curve(scores, is_made)

    monkeypatch.setattr("scvae_ext.diagnostics._paired_two_sample.area_under_curve", area_of)
    rng = np.random.default_rng(5)
    area, error = told_apart(rng.normal(size=(50, 2)), rng.normal(0.5, size=(50, 2)), 0)
    ((scores, is_made),) = seen
    won = scores[is_made][:, None] > scores[~is_made]
    won = won + 0.5 * (scores[is_made][:, None] == scores[~is_made])
    assert area == pytest.approx(won.mean())
    independent = won.mean(1).var(ddof=1) / 50 + won.mean(0).var(ddof=1) / 50
    assert error**2 == pytest.approx(2 * independent)
