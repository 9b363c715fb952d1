from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp
from anndata import AnnData
from scipy.stats import mannwhitneyu

from scvae_ext.datasets import synthetic_counts
from scvae_ext.diagnostics import two_sample_test

N = 600


@pytest.fixture(scope="module")
def cells():
    """Twice as many cells of one simulator as are called real."""
    return synthetic_counts(2 * N, 80, n_types=3, seed=3)


def _redrawn(cells, *, theta=1.0, size=1.0, seed=0):
    """Draw counts anew from the simulator's own means, with dispersions or library sizes times a factor."""
    rng = np.random.default_rng(seed)
    shape = theta * cells.var["inverse_dispersion"].to_numpy()
    mean = cells.layers["mean"] * np.broadcast_to(size, cells.n_obs)[:, None]
    counts = rng.poisson(rng.gamma(shape, mean / shape))
    return AnnData(sp.csr_matrix(counts, dtype=np.float32), obs=cells.obs, var=cells.var)


def test_an_exact_generator_is_not_told_apart(cells):
    # New cells of the same simulator, and the same means with counts drawn anew.
    for generated in (cells[N:], _redrawn(cells[N:])):
        found = two_sample_test(cells[:N], generated, n_permutations=100)
        assert not found.is_told_apart
        for result in (*found.generated, *found.reference):
            assert abs(result.auc - 0.5) < 3.5 * result.standard_error
        assert "cannot be told from real ones" in found.summary()
        assert "No gene differs by itself" in found.summary()


def test_a_wrong_dispersion_is_caught(cells):
    found = two_sample_test(cells[:N], _redrawn(cells[N:], theta=0.3), n_permutations=50)
    assert found.is_told_apart
    assert found.features.index[0] == "genes detected"
    assert found.features.loc["genes detected", "auc"] < 0.35
    assert found.auc > 0.7


def test_wrong_library_sizes_are_caught_by_the_trees_alone_where_only_their_spread_is_wrong(cells):
    spread = np.exp(np.random.default_rng(0).normal(0, 0.6, N))
    found = two_sample_test(cells[:N], _redrawn(cells[N:], size=spread / np.median(spread)), n_permutations=50)
    linear, trees = found.generated
    assert found.is_told_apart
    assert trees.auc > 0.57
    assert trees.auc > linear.auc + 0.02
    shifted = two_sample_test(cells[:N], _redrawn(cells[N:], size=1.5), n_permutations=50)
    assert shifted.features.index[0] == "library size"


def test_a_gene_that_differs_is_named_with_the_rank_test_of_scipy(cells):
    generated = _redrawn(cells[N:])
    counts = generated.X.toarray()
    counts[:, 7] = 0
    generated.X = sp.csr_matrix(counts)
    found = two_sample_test(cells[:N], generated, n_permutations=10)
    row = found.features.loc["gene_7"]
    assert found.features.index[0] == "gene_7"
    assert (row["mean_generated"], row["zeros_generated"]) == (0, 1)
    real = cells[:N].X.toarray()
    assert row["mean_real"] == pytest.approx(real[:, 7].mean())
    values = [np.log1p(1e4 * x / x.sum(1, keepdims=True)) for x in (real, counts)]
    # Equal shares of different totals are equal but for rounding, and count as ties or not.
    for gene in (3, 7):
        expected = mannwhitneyu(values[1][:, gene], values[0][:, gene], use_continuity=False, method="asymptotic")
        assert found.features.loc[f"gene_{gene}", "auc"] == pytest.approx(expected.statistic / N**2, abs=1e-4)
        assert found.features.loc[f"gene_{gene}", "p_value"] == pytest.approx(expected.pvalue, rel=0.01)
    assert "gene_7 (lower" in found.summary()


def test_genes_are_matched_by_name_and_samples_are_thinned(cells):
    shuffled = cells[N:, ::-1]
    one, two = (
        two_sample_test(cells[:N], other, classifiers=["linear"], n_permutations=5, max_cells=150)
        for other in (cells[N:], shuffled)
    )
    assert one.generated[0].auc == pytest.approx(two.generated[0].auc)
    assert (one.generated[0].n_first, one.generated[0].n_second, one.reference[0].n_first) == (150, 150, 75)
    frame = one.to_frame()
    assert frame["comparison"].tolist() == ["generated", "real"]
    other = two_sample_test(cells[:200], cells[200:400], reference=cells[400:500], classifiers=["linear"])
    assert other.reference[0].n_second == 100


def test_how_counts_are_stored_makes_no_difference(cells):
    counts = cells[N : N + 100].X.toarray().astype(np.float64)
    n_cells, n_genes = counts.shape
    # Every entry twice, zeros as well: one of its counts, and the others.
    parts = np.concatenate([counts > 0, counts - (counts > 0)], axis=1).ravel()
    offsets = np.arange(n_cells + 1) * 2 * n_genes
    stored = sp.csr_matrix((parts, np.tile(np.arange(n_genes), 2 * n_cells), offsets), shape=counts.shape)
    n_stored = stored.nnz
    one, two = (
        two_sample_test(cells[:100], AnnData(matrix, var=cells.var), classifiers=["linear"], n_permutations=5)
        for matrix in (sp.csr_matrix(counts), stored)
    )
    assert one.to_frame().equals(two.to_frame())
    assert one.features.equals(two.features)
    assert stored.nnz == n_stored


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda real, fake: (real, fake[:, :5]), r"generated lacks 75 of the genes of real"),
        (lambda real, fake: (real[:5], fake), r"real has 5 cells: at least 20"),
        (lambda real, fake: (real, AnnData(fake.X * 0.5, var=fake.var)), r"generated does not hold counts"),
    ],
)
def test_what_cannot_be_compared_is_named(cells, change, message):
    with pytest.raises(ValueError, match=message):
        two_sample_test(*change(cells[:N], cells[N:]))


@pytest.mark.usefixtures("unchecked")
def test_options_that_make_no_sense_are_named(cells):
    with pytest.raises(ValueError, match="classifiers='linear' must be a list"):
        two_sample_test(cells[:N], cells[N:], classifiers="linear")
    with pytest.raises(ValueError, match=r"real has no layer 'raw'; it has .*'mean'"):
        two_sample_test(cells[:N], cells[N:], layer="raw")


@pytest.mark.parametrize(("z", "is_told_apart"), [(1.9, False), (2.0, True)])
def test_the_level_is_shared_out_between_two_classifiers(cells, z, is_told_apart):
    """A normal score of 1.96 is exceeded in 25 of 1,000 cases."""
    found = two_sample_test(cells[:40], cells[40:80], n_permutations=1)
    assert len(found.generated) == 2
    first, second = (replace(one, auc=0.5, standard_error=0.01, p_value=None) for one in found.generated)
    assert replace(found, generated=(first, replace(second, auc=0.5 + z * 0.01))).is_told_apart == is_told_apart


def test_ranks_of_samples_of_different_sizes_are_compared_as_by_scipy(cells):
    found = two_sample_test(cells[:40], cells[40:100], n_permutations=1)
    real, generated = (np.asarray(part.X.sum(1)).ravel() for part in (cells[:40], cells[40:100]))
    expected = mannwhitneyu(generated, real, use_continuity=False, method="asymptotic")
    row = found.features.loc["library size"]
    assert row["auc"] == pytest.approx(expected.statistic / (40 * 60))
    assert row["p_value"] == pytest.approx(expected.pvalue)
