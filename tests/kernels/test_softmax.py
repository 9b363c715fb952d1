import mpmath
import numpy as np
import pytest
import torch

from scvae_ext.kernels import write_compositions
from scvae_ext.kernels.softmax import softmax, sum_of

mpmath.mp.dps = 50

# Half a unit of the last place of a difference of logits between 16 and 32, and one of the exponential, the sum and the
# quotient each.
MOST = 2.0**-20 + 4 * 2.0**-23


def _shares(logits):
    """Softmax to 50 digits."""
    terms = [mpmath.exp(mpmath.mpf(float(value))) for value in logits]
    total = mpmath.fsum(terms)
    return [term / total for term in terms]


def _logits(n_rows, n_genes, shift=0.0):
    return (np.random.default_rng(n_genes).normal(shift, 4, (n_rows, n_genes))).astype(np.float32)


# 128 to a chunk of a sum: none, one, one and a rest, many.
@pytest.mark.parametrize("n_genes", [1, 5, 128, 131, 700])
@pytest.mark.parametrize("shift", [0.0, -3e4, 3e4])
def test_shares_against_50_digits(n_genes, shift):
    (logits,) = _logits(1, n_genes, shift)
    share = np.empty_like(logits)
    softmax(logits, share)
    truth = _shares(logits)
    assert max(abs(float(found) / exact - 1) for found, exact in zip(share, truth, strict=True)) < MOST


def test_logits_of_one_sign_and_of_zero():
    for logits in ([-3, -1, -2], [1, 2, 3], [-0.0, 0.0], [-1e-30, -2.0], [-np.inf, 0.0, -np.inf]):
        values = np.array(logits, dtype=np.float32)
        share = np.empty_like(values)
        softmax(values, share)
        np.testing.assert_allclose(share, torch.from_numpy(values).softmax(0), rtol=1e-6, atol=1e-37)


@pytest.mark.parametrize("wrong", [np.nan, -np.nan, np.inf])
@pytest.mark.parametrize("place", [0, 130, 199])
def test_what_is_no_number_makes_its_row_none_and_no_other(wrong, place):
    logits = _logits(3, 200)
    logits[1, place] = wrong
    result = np.empty_like(logits)
    write_compositions(logits, np.ones(3, dtype=np.float32), None, result, add=False)
    assert np.isnan(result[1]).any()
    assert np.isfinite(result[[0, 2]]).all()


@pytest.mark.parametrize("n_values", [0, 1, 127, 128, 129, 100_000])
def test_rounding_of_a_sum_does_not_grow_with_its_length(n_values):
    values = np.random.default_rng(0).random(n_values).astype(np.float32)
    assert sum_of(values) == pytest.approx(values.astype(np.float64).sum(), rel=2e-6)


@pytest.mark.parametrize("columns", [None, [3, 0, 3, 170], []])
@pytest.mark.parametrize("n_threads", [1, 8])
def test_compositions_are_scaled_selected_and_added(columns, n_threads):
    logits, scale = _logits(21, 171), np.geomspace(1e-3, 1e4, 21).astype(np.float32)
    expected = np.array([[float(share) for share in _shares(row)] for row in logits]) * scale[:, None]
    columns = None if columns is None else np.array(columns, dtype=np.int64)
    expected = expected if columns is None else expected[:, columns]
    result = np.full(expected.shape, np.nan, dtype=np.float32)
    before = torch.get_num_threads()
    torch.set_num_threads(n_threads)
    try:
        write_compositions(logits, scale, columns, result, add=False)
        np.testing.assert_allclose(result, expected, rtol=MOST)
        write_compositions(logits, 2 * scale, columns, result, add=True)
    finally:
        torch.set_num_threads(before)
    np.testing.assert_allclose(result, 3 * expected, rtol=MOST)
