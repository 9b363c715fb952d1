import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from scvae_ext.diagnostics._two_samples import CellFeatures, area_under_curve, told_apart


def test_the_area_is_that_of_all_pairs():
    rng = np.random.default_rng(0)
    scores, is_made = rng.integers(0, 8, 60).astype(float), rng.random(60) < 0.4
    area, _ = area_under_curve(scores, is_made)
    higher = scores[is_made][:, None] - scores[~is_made]
    assert area == pytest.approx(np.mean((higher > 0) + 0.5 * (higher == 0)))
    assert area == pytest.approx(roc_auc_score(is_made, scores))


def test_the_standard_error_is_the_spread_over_samples():
    is_made = np.arange(120) < 60
    found = np.array(
        [area_under_curve(np.random.default_rng(seed).normal(is_made * 0.8, 1.0), is_made) for seed in range(400)]
    )
    assert found[:, 0].mean() == pytest.approx(norm.cdf(0.8 / np.sqrt(2)), abs=0.01)
    assert found[:, 1].mean() == pytest.approx(found[:, 0].std(), rel=0.12)


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
