import numpy as np
import pytest
import torch
from minibatches import make_minibatch

from scvae_ext.likelihoods import depth, gene_statistics
from scvae_ext.likelihoods.statistics import INVERSE_DISPERSION_RANGE, MIN_LOG_STD
from scvae_ext.minibatch import Minibatch, SparseCounts


def _as_minibatch(counts, size_factor=None):
    counts = torch.as_tensor(counts, dtype=torch.float32)
    zeros = torch.zeros(len(counts), dtype=torch.int64)
    return Minibatch(
        SparseCounts.from_dense(counts),
        counts.sum(1),
        zeros,
        zeros,
        zeros.new_zeros(len(counts), 0),
        counts.new_zeros(len(counts), 0),
        size_factor,
    )


@pytest.mark.parametrize("compositional", [True, False])
def test_moments_are_those_of_the_dense_matrix(compositional):
    minibatches = [make_minibatch(50, 6, rate=3.0, size_factor=not compositional, seed=seed) for seed in range(3)]
    counts = torch.cat([each.counts.dense() for each in minibatches]).double().numpy()
    size = torch.cat([depth(each) for each in minibatches]).double().numpy()[:, None]
    found = gene_statistics(minibatches, compositional=compositional)
    expression = counts.sum(0) / size.sum()
    mean = size * expression
    theta = (mean**2).sum(0) / ((counts - mean) ** 2 - counts).sum(0)
    theta = np.clip(np.where(theta > 0, theta, np.inf), *INVERSE_DISPERSION_RANGE)
    logs = np.log1p(counts / size * (1e4 if compositional else 1))
    np.testing.assert_allclose(found.expression, expression, rtol=1e-5)
    np.testing.assert_allclose(found.inverse_dispersion, theta, rtol=1e-4)
    np.testing.assert_allclose(found.log_mean, logs.mean(0), rtol=1e-5)
    np.testing.assert_allclose(found.log_std, logs.std(0), rtol=1e-5)


def test_expression_sums_to_one_where_depth_is_the_library_size():
    assert float(gene_statistics([make_minibatch()]).expression.sum()) == pytest.approx(1, abs=1e-6)


def test_inverse_dispersion_of_simulated_counts_is_recovered():
    generator = np.random.default_rng(0)
    theta = np.array([0.3, 0.8, 1.0, 2.0, 5.0])
    mean = np.array([4.0, 10.0, 20.0, 8.0, 30.0])
    counts = generator.poisson(generator.gamma(theta, mean / theta, (40_000, 5)))
    counts = counts[counts.sum(1) > 0]
    found = gene_statistics([_as_minibatch(counts, torch.ones(len(counts)))], compositional=False)
    np.testing.assert_allclose(found.inverse_dispersion, theta, rtol=0.08)


def test_counts_without_overdispersion_get_the_largest_value():
    generator = np.random.default_rng(0)
    constant = np.full((100, 3), 5.0)
    spread = generator.poisson(1e-3 * np.ones((100, 1))) + generator.poisson(0.02, (100, 1)) * 50.0
    found = gene_statistics([_as_minibatch(np.hstack([constant, spread]), torch.ones(100))], compositional=False)
    np.testing.assert_allclose(found.inverse_dispersion[:3], INVERSE_DISPERSION_RANGE[1])
    assert float(found.inverse_dispersion[3]) == pytest.approx(INVERSE_DISPERSION_RANGE[0])


def test_gene_without_counts_has_finite_moments():
    counts = np.ones((10, 3))
    counts[:, 1] = 0
    found = gene_statistics([_as_minibatch(counts)])
    assert float(found.expression[1]) == 0
    assert float(found.log_std[1]) == pytest.approx(MIN_LOG_STD)
    for moments in (found.expression, found.inverse_dispersion, found.log_mean, found.log_std):
        assert bool(moments.isfinite().all())


def test_no_cells_are_refused():
    with pytest.raises(ValueError, match="no cells"):
        gene_statistics([])


def test_depth_is_the_size_factor_where_there_is_one():
    with_factor = make_minibatch(size_factor=True)
    assert torch.equal(depth(with_factor), with_factor.size_factor)
    without = make_minibatch()
    assert torch.equal(depth(without), without.library_size)
