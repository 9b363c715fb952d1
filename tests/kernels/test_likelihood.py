import numpy as np
import pytest
import torch
from distributions import exact

from scvae_ext.kernels import composed_log_prob
from scvae_ext.minibatch import SparseCounts


def _softmax_chain(by_mean, mean, shares, total_depth):
    """Derivatives by logits, to 50 digits, of what has given derivatives by the means."""
    by_log_mean = [slope * share * total_depth for slope, share in zip(by_mean, shares, strict=True)]
    total = sum(by_log_mean)
    return [own - share * total for own, share in zip(by_log_mean, shares, strict=True)], total


@pytest.fixture(scope="module")
def cells():
    """Counts, logits and dispersions over many orders of magnitude; 37 genes, which no vector divides."""
    rng = np.random.default_rng(0)
    n_cells, n_genes = 24, 37
    logits = rng.normal(0, 3, (n_cells, n_genes)).astype(np.float32)
    depth = np.geomspace(5, 1e5, n_cells).astype(np.float32)
    theta = np.geomspace(1e-3, 1e9, n_genes).astype(np.float32)
    inflation = rng.normal(-1, 3, (n_cells, n_genes)).astype(np.float32)
    shares = np.exp(logits - logits.max(1, keepdims=True).astype(float))
    mean = shares / shares.sum(1, keepdims=True) * depth[:, None]
    counts = rng.poisson(mean * rng.gamma(np.minimum(theta, 1e3), 1 / np.minimum(theta, 1e3)))
    counts[0], counts[1, 5] = 0, 100_000
    return logits, depth, theta, inflation, torch.from_numpy(counts).float()


@pytest.mark.parametrize("inflated", [False, True])
def test_log_prob_and_derivatives_against_50_digits(cells, inflated):
    logits, depth, theta, inflation, counts = cells
    mpf, mp = exact.mpf, exact.mpmath
    result = composed_log_prob(
        logits, depth, 1e-30, theta, inflation if inflated else None, SparseCounts.from_dense(counts).by_cell
    )
    truth = {"log_prob": [], "logits": [], "depth": [], "theta": [], "inflation": []}
    for row in range(0, len(logits), 3):
        terms = [mp.exp(mpf(float(value))) for value in logits[row]]
        shares = [term / sum(terms) for term in terms]
        each = []
        for gene, share in enumerate(shares):
            x = counts[row, gene].item()
            base = exact.negative_binomial(x, share * mpf(float(depth[row])), float(theta[gene]))
            each.append(exact.zero_inflated(x, base, float(inflation[row, gene])) if inflated else (*base, mpf(0)))
        log_prob, by_mean, by_theta, by_inflation = zip(*each, strict=True)
        by_logits, by_log_depth = _softmax_chain(by_mean, None, shares, mpf(float(depth[row])))
        truth["log_prob"].append(sum(log_prob))
        truth["logits"] += by_logits
        truth["depth"].append(by_log_depth)
        truth["theta"] += by_theta
        truth["inflation"] += by_inflation
    log_prob, by_logits, by_log_depth, minus_by_theta, by_inflation = (
        None if part is None else torch.from_numpy(part)[::3] for part in result[:5]
    )
    assert exact.worst_error(log_prob, truth["log_prob"]) < 2e-6
    # Derivatives by logits are small differences of terms as large as the largest count.
    scale = float(counts.max())
    assert exact.worst_error(by_logits / scale, [value / scale for value in truth["logits"]]) < 2e-6
    assert exact.worst_error(by_log_depth / scale, [value / scale for value in truth["depth"]]) < 2e-6
    assert exact.worst_error(-minus_by_theta, truth["theta"]) < 5e-4
    if inflated:
        assert exact.worst_error(by_inflation, truth["inflation"]) < 1e-6


def test_rows_of_several_samples_meet_the_counts_of_their_cell_whatever_the_number_of_threads(cells):
    logits, depth, theta, inflation, counts = cells
    parts = SparseCounts.from_dense(counts).by_cell
    one = composed_log_prob(logits, depth, 1e-30, theta, inflation, parts)
    before = torch.get_num_threads()
    torch.set_num_threads(8)
    try:
        twice = composed_log_prob(
            np.tile(logits, (2, 1)), np.tile(depth, 2), 1e-30, theta, np.tile(inflation, (2, 1)), parts
        )
    finally:
        torch.set_num_threads(before)
    for once, both in zip(one[:5], twice[:5], strict=True):
        np.testing.assert_array_equal(np.concatenate([once, once]), both)


def test_logits_of_additional_zeros_may_be_shared_by_all_rows(cells):
    logits, depth, theta, inflation, counts = cells
    parts = SparseCounts.from_dense(counts).by_cell
    shared = composed_log_prob(logits, depth, 1e-30, theta, inflation[:1], parts)
    repeated = composed_log_prob(logits, depth, 1e-30, theta, np.tile(inflation[:1], (len(logits), 1)), parts)
    for one, other in zip(shared[:5], repeated[:5], strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("where", ["logits", "depth", "theta", "inflation"])
def test_a_value_that_is_not_a_number_is_not_lost(cells, where):
    arrays = dict(zip(("logits", "depth", "theta", "inflation"), (array.copy() for array in cells[:4]), strict=True))
    arrays[where].flat[7] = np.nan
    log_prob = composed_log_prob(
        arrays["logits"],
        arrays["depth"],
        1e-30,
        arrays["theta"],
        arrays["inflation"],
        SparseCounts.from_dense(cells[4]).by_cell,
    )[0]
    touched = {"logits": [0], "depth": [7], "theta": range(len(log_prob)), "inflation": [0]}[where]
    assert np.isnan(log_prob[list(touched)]).all()
    assert np.isfinite(np.delete(log_prob, list(touched))).all()


def test_without_derivatives_the_log_probability_is_the_same(cells):
    logits, depth, theta, inflation, counts = cells
    parts = SparseCounts.from_dense(counts).by_cell
    for zero_logits in (None, inflation):
        full = composed_log_prob(logits, depth, 1e-30, theta, zero_logits, parts)
        alone = composed_log_prob(logits, depth, 1e-30, theta, zero_logits, parts, derivatives=False)
        np.testing.assert_array_equal(alone[0], full[0])
        assert alone[1].size == alone[3].size == 0


def test_sums_over_rows_are_those_of_the_rows(cells):
    logits, depth, theta, inflation, counts = cells
    parts = SparseCounts.from_dense(counts).by_cell
    for zero_logits in (None, inflation):
        _, by_logits, _, minus_by_theta, by_zeros, none = composed_log_prob(
            logits, depth, 1e-30, theta, zero_logits, parts
        )
        _, same, _, no_rows, _, sums = composed_log_prob(logits, depth, 1e-30, theta, zero_logits, parts, sums=True)
        assert none is None
        assert no_rows.size == 0
        np.testing.assert_array_equal(same, by_logits)
        for of_rows, total in zip((by_logits, minus_by_theta, by_zeros), sums, strict=True):
            if of_rows is None:
                assert not total.any()
                continue
            # Rounding of a sum of 24 terms, each within half a unit of 2^-24 of the sum of their magnitudes.
            bound = 24 * 2.0**-24 * np.abs(of_rows.astype(float)).sum(0)
            assert (np.abs(total - of_rows.astype(float).sum(0)) <= bound).all()
