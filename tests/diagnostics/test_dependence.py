import numpy as np
import pytest
from scipy import stats

from scvae_ext.diagnostics._dependence import (
    correlated_pairs,
    eigenvalue_threshold,
    marchenko_pastur_edge,
    modules_of,
    null_of_mean_square,
)


def correlation_of(values):
    return np.corrcoef(values, rowvar=False)


@pytest.mark.parametrize(("n_cells", "n_genes"), [(50, 20), (30, 60)])
def test_mean_square_of_independent_columns(n_cells, n_genes):
    rng = np.random.default_rng(0)
    upper = np.triu_indices(n_genes, k=1)
    found = [np.square(correlation_of(rng.normal(size=(n_cells, n_genes)))[upper]).mean() for _ in range(400)]
    mean, deviation = null_of_mean_square(n_cells, n_genes)
    assert np.mean(found) == pytest.approx(mean, abs=4 * deviation / np.sqrt(400))
    assert np.std(found) == pytest.approx(deviation, rel=0.12)


def test_eigenvalues_end_at_the_edge():
    values = np.random.default_rng(0).normal(size=(1500, 500))
    largest = np.linalg.eigvalsh(correlation_of(values))[-1]
    assert largest == pytest.approx(marchenko_pastur_edge(1500, 500), rel=0.02)


@pytest.mark.parametrize("level", [0.01, 0.05, 0.2])
def test_the_threshold_is_a_quantile_of_the_largest_eigenvalue(level):
    n_cells, n_genes, n_sets = 101, 50, 600
    rng = np.random.default_rng(0)
    # Covariances of columns whose variance is known to be one are what the distribution was derived for.
    data = rng.normal(size=(n_sets, n_cells, n_genes))
    data -= data.mean(1, keepdims=True)
    largest = np.linalg.eigvalsh(data.transpose(0, 2, 1) @ data / (n_cells - 1))[:, -1]
    share = (largest > eigenvalue_threshold(n_cells, n_genes, level)).mean()
    assert share == pytest.approx(level, abs=4 * np.sqrt(level * (1 - level) / n_sets))
    # Those of correlations vary less.
    deviation = data.std(1, keepdims=True, ddof=1)
    scaled = data / deviation
    of_correlations = np.linalg.eigvalsh(scaled.transpose(0, 2, 1) @ scaled / (n_cells - 1))[:, -1]
    assert (of_correlations > eigenvalue_threshold(n_cells, n_genes, level)).mean() <= share


def test_pairs_are_those_of_pearson_and_of_benjamini_and_hochberg():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(80, 12))
    values[:, :4] += 0.9 * rng.normal(size=(80, 1))
    first, second = np.triu_indices(12, k=1)
    p_values = np.array([stats.pearsonr(values[:, i], values[:, j]).pvalue for i, j in zip(first, second, strict=True)])
    chosen = np.flatnonzero(stats.false_discovery_control(p_values) <= 0.1)
    expected = chosen[np.argsort(p_values[chosen])]
    pairs, found = correlated_pairs(correlation_of(values), 80, 0.1)
    assert 4 <= len(pairs) < 66
    np.testing.assert_array_equal(pairs, np.column_stack([first[expected], second[expected]]))
    np.testing.assert_allclose(found, p_values[expected], rtol=1e-8)


def test_independent_columns_have_no_pairs_and_no_modules():
    correlation = correlation_of(np.random.default_rng(0).normal(size=(200, 60)))
    pairs, p_values = correlated_pairs(correlation, 200, 0.05)
    assert pairs.shape == (0, 2)
    assert p_values.shape == (0,)
    eigenvalues, loadings = modules_of(correlation, 200, 0.05)
    assert loadings.shape == (60, 0)
    assert eigenvalues.sum() == pytest.approx(60)
    assert (np.diff(eigenvalues) <= 0).all()


def test_equal_columns_are_a_pair():
    values = np.random.default_rng(0).normal(size=(60, 3))
    values[:, 2] = -values[:, 0]
    pairs, p_values = correlated_pairs(correlation_of(values), 60, 0.05)
    assert pairs.tolist() == [[0, 2]]
    assert 0 <= p_values[0] < 1e-50


def test_modules_of_a_factor_model_are_its_blocks_and_their_loadings():
    rng = np.random.default_rng(0)
    truth = np.zeros((80, 2))
    truth[:12, 0], truth[12:20, 1] = 0.8, np.resize([0.7, -0.7], 8)
    truth[13, 1] = 0.7
    noise = np.sqrt(1 - np.square(truth).sum(1))
    values = rng.normal(size=(600, 2)) @ truth.T + noise * rng.normal(size=(600, 80))
    _, loadings = modules_of(correlation_of(values), 600, 0.05)
    np.testing.assert_array_equal(loadings != 0, truth != 0)
    np.testing.assert_allclose(loadings, truth, atol=0.12)


def test_noise_alone_gives_no_loading():
    rng = np.random.default_rng(0)
    truth = np.where(np.arange(100) < 10, 0.8, 0.0)
    wrong = 0
    for _ in range(40):
        values = rng.normal(size=(150, 1)) * truth + np.sqrt(1 - np.square(truth)) * rng.normal(size=(150, 100))
        _, loadings = modules_of(correlation_of(values), 150, 0.05)
        assert (loadings[:10, 0] != 0).all()
        wrong += bool(loadings[10:].any())
    assert stats.binomtest(wrong, 40, 0.05, "greater").pvalue > 0.01


def test_loadings_of_a_block_of_equal_correlations_have_their_closed_form():
    """Of k genes with the correlation r the first eigenvalue is 1 + (k - 1) r, of which one is each gene's own."""
    k, r = 12, 0.4
    correlation = np.eye(50)
    correlation[:k, :k] += r * (1 - np.eye(k))
    eigenvalues, loadings = modules_of(correlation, 10**6, 0.05)
    assert eigenvalues[0] == pytest.approx(1 + (k - 1) * r)
    np.testing.assert_allclose(loadings[:k, 0], np.sqrt((k - 1) * r / k))
    assert (loadings[k:] == 0).all()


def test_a_loading_is_kept_where_noise_would_give_none_of_all_modules_as_large():
    """Of two blocks of equal correlations, and a gene of which the correlation with all of the first is raised."""
    k, r, n_genes, n_cells, level = 12, 0.5, 60, 500, 0.05
    ratio = n_genes / (n_cells - 1)
    kept, above = [], []
    for c in np.linspace(0.09, 0.14, 26):
        correlation = np.eye(n_genes)
        for block in (slice(0, k), slice(k, 2 * k)):
            correlation[block, block] += r * (1 - np.eye(k))
        correlation[2 * k, :k] = correlation[:k, 2 * k] = c
        _, loadings = modules_of(correlation, n_cells, level)
        assert loadings.shape == (n_genes, 2)
        kept.append(loadings[2 * k].any())
        # The first eigenvalue less one, and the loading of the gene, in closed form.
        common = ((k - 1) * r + np.sqrt(((k - 1) * r) ** 2 + 4 * k * c**2)) / 2
        loading = np.sqrt(common / (1 + common**2 / (k * c**2)))
        # The true eigenvalue l, of which l + ratio l / (l - 1) is observed, and the share of noise in its eigenvector.
        true = max(np.roots([1, ratio - 2 - common, 1 + common]))
        share = 1 - (1 - ratio / (true - 1) ** 2) / (1 + ratio / (true - 1))
        # A loading of noise is larger than this with the probability that each of 60 genes in two modules is left.
        bound = np.sqrt(common * share / n_genes) * stats.norm.isf(level / (2 * n_genes * 2))
        above.append(loading > bound)
    assert 0 < sum(above) < 26
    assert kept == above
