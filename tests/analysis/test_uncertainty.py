import numpy as np
from scipy.stats import multivariate_normal, norm

from scvae_ext.analysis import gaussian_entropy, gaussian_information, label_probabilities


def test_entropy_is_that_of_scipy():
    variance = np.random.default_rng(0).uniform(0.1, 3, (5, 4))
    expected = [multivariate_normal(cov=np.diag(row)).entropy() for row in variance]
    np.testing.assert_allclose(gaussian_entropy(variance), expected, rtol=1e-12)


def test_information_is_the_entropy_that_the_counts_took_away():
    rng = np.random.default_rng(0)
    known_variance = np.tile([0.2, 1.0], (20_000, 1))
    # The first coordinate is used, with a total variance of one; the second is the prior for every cell.
    known_mean = rng.normal(size=(20_000, 2)) * np.sqrt([0.8, 0.0])
    variance = np.array([[0.2, 1.0], [1.0, 1.0]])
    found = gaussian_information(variance, known_mean, known_variance)
    # Half the relative error of the total variance, of which the sample's own is 0.8 with a relative error of
    # sqrt(2 / n): four standard errors.
    np.testing.assert_allclose(found, [0.5 * np.log(1 / 0.2), 0.0], rtol=0, atol=4 * 0.5 * 0.8 * np.sqrt(2 / 20_000))
    # The units of z do not matter.
    scale = np.array([7.0, 0.1])
    np.testing.assert_allclose(
        gaussian_information(variance * scale**2, known_mean * scale, known_variance * scale**2), found, atol=1e-9
    )


def test_labels_are_those_of_the_nearest_without_the_cell_itself():
    rng = np.random.default_rng(0)
    known, label = rng.normal(size=(30, 2)), np.arange(30) % 3
    draws = known[:10] + 0.5 * rng.normal(size=(4, 10, 2))
    own = np.where(np.arange(10) < 5, np.arange(10), -1)
    found = label_probabilities(draws, known, label, 3, own, 4)
    expected = np.zeros((10, 3))
    for draw in draws:
        for cell, point in enumerate(draw):
            nearest = [m for m in np.argsort(np.square(known - point).sum(1)) if m != own[cell]][:4]
            expected[cell] += np.bincount(label[nearest], minlength=3) / 16
    np.testing.assert_allclose(found, expected)


def test_labels_are_open_between_types_and_settled_within():
    known = np.concatenate([np.full((50, 1), -2.0), np.full((50, 1), 2.0)])
    rng = np.random.default_rng(0)
    draws = np.array([0.0, 1.0])[None, :, None] + 0.5 * rng.normal(size=(400, 2, 1))
    found = label_probabilities(draws, known, np.arange(100) // 50, 2, np.array([-1, -1]), 5)
    # All neighbours of a draw have the label of its side: shares are those of normal draws below and above zero.
    for cell, below in enumerate(norm.cdf(0, loc=[0.0, 1.0], scale=0.5)):
        assert abs(400 * found[cell, 0] - 400 * below) < 4 * np.sqrt(400 * below * (1 - below))
    np.testing.assert_allclose(found.sum(1), 1)
