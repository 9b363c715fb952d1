import mpmath
import numpy as np
import pytest

from scvae_ext.kernels import elementary
from scvae_ext.kernels.compiled import compiled

mpmath.mp.dps = 50


def _everywhere(function):
    """Apply a part of kernels to an array, as a kernel would."""

    def loop(x, out):
        for k in range(x.size):
            out[k] = function(x[k])

    kernel = compiled()(loop)

    def apply(x):
        out = np.empty_like(x)
        kernel(x, out)
        return out

    return apply


def _above_one(n=400):
    return np.concatenate([np.linspace(1, 3, n // 2), np.geomspace(3, 1e30, n // 2)]).astype(np.float32)


@pytest.mark.parametrize(
    ("name", "reference", "x"),
    [
        ("exp", mpmath.exp, np.linspace(-87, 88, 700)),
        ("log", mpmath.log, np.concatenate([np.geomspace(1.2e-38, 3e38, 500), 1 + np.linspace(-0.4, 0.5, 301)])),
        ("log1p", mpmath.log1p, np.concatenate([np.geomspace(1e-30, 1e30, 500), np.linspace(-0.999, 1, 301)])),
        ("binet", lambda a: mpmath.loggamma(a) - (a - 0.5) * mpmath.log(a) + a - mpmath.log(2 * mpmath.pi) / 2, None),
        ("stirling_slope", lambda a: mpmath.digamma(a) - mpmath.log(a), None),
    ],
)
def test_within_rounding_of_50_digits(name, reference, x):
    x = _above_one() if x is None else x.astype(np.float32)
    values = _everywhere(getattr(elementary, name))(x)
    # Binet's function is added to logarithms and need not be relatively exact where it is small.
    least = {"exp": 0.0, "log": 0.0, "log1p": 0.0}.get(name, 1.0)
    for argument, value in zip(x.tolist(), values.tolist(), strict=True):
        exact = reference(mpmath.mpf(argument))
        assert abs(value - exact) <= 3e-7 * max(least, abs(exact))


def test_beyond_its_range_exp_stays_at_the_bounds_and_nan_stays_nan():
    low, high, nan = _everywhere(elementary.exp)(np.array([-1e4, 1e4, np.nan], dtype=np.float32))
    assert low == pytest.approx(np.exp(-87), rel=1e-6)
    assert high == pytest.approx(np.exp(88), rel=1e-5)
    assert np.isnan(nan)
    assert np.isnan(_everywhere(elementary.log1p)(np.array([np.nan], dtype=np.float32)))
