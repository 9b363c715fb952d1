r"""Parts of the log-gamma function that stay exact where differences of ``lgamma`` cancel.

Everything here is built on Binet's function

.. math:: \mu(a) = \log\Gamma(a) - \left(a - \tfrac12\right) \log a + a - \tfrac12 \log 2\pi,

which is small for every a of at least one (0.081 at a = 1, about 1 / 12a beyond) and carries all that Stirling's
formula leaves out. The large terms of a log-probability can then be combined on paper, before they are rounded.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["binet", "binet_above_one", "log_plus_gap"]

# Minimax fit of mu(a) = sum_k c_k a^-k over a >= 1, jointly with its derivative: both are within 2.6e-7.
_MINIMAX = (8.332339408e-2, 1.228939127e-4, -3.298013908e-3, 1.025482266e-3, -1.122301309e-4)
# B_2k / (2k (2k - 1)): the asymptotic series, within 1e-17 of mu where a >= 16.
_ASYMPTOTIC = (1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188, -691 / 360360, 1 / 156)
_ASYMPTOTIC_FROM = 16.0


def binet_above_one(a: Float[Tensor, "*shape"]) -> tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"]]:
    """Return Binet's function and its derivative for arguments of at least one.

    Parameters
    ----------
    a
        Arguments, one or greater. Below one the result of float32 has no meaning.

    Returns
    -------
    The values and the derivatives, within 3e-7 in float32 and within 1e-14 in float64.
    """
    if a.dtype == torch.float64:
        return _binet_double(a)
    y = a.reciprocal()
    value = y * _MINIMAX[0]
    slope = y * -_MINIMAX[0]
    power = y
    for k, coefficient in enumerate(_MINIMAX[1:], start=2):
        power = power * y
        value = value.add(power, alpha=coefficient)
        slope = slope.add(power, alpha=-k * coefficient)
    return value, slope * y


def binet(a: Float[Tensor, "*shape"]) -> tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"]]:
    r"""Return Binet's function and its derivative for any positive argument.

    Below one, the recurrence :math:`\mu(a) = \mu(a + 1) + (a + \tfrac12) \log(1 + 1/a) - 1` leads back to
    :func:`binet_above_one`.

    Parameters
    ----------
    a
        Arguments greater than zero.

    Returns
    -------
    The values and the derivatives.
    """
    if a.dtype == torch.float64:
        return _binet_double(a)
    below = (a < 1).to(a.dtype)
    value, slope = binet_above_one(a + below)
    inverse = a.reciprocal()
    log_ratio = inverse.log1p()
    value = value + below * ((a + 0.5) * log_ratio - 1)
    slope = slope + below * (log_ratio - (a + 0.5) / (a + 1) * inverse)
    return value, slope


def _binet_double(a: Float[Tensor, "*shape"]) -> tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"]]:
    log_a = a.log()
    value = a.lgamma() - (a - 0.5) * log_a + a - 0.5 * math.log(2 * math.pi)
    slope = a.digamma() - log_a + 0.5 / a
    y = a.clamp(min=_ASYMPTOTIC_FROM).reciprocal()
    series, series_slope = torch.zeros_like(y), torch.zeros_like(y)
    for k, coefficient in enumerate(_ASYMPTOTIC):
        series = series + coefficient * y ** (2 * k + 1)
        series_slope = series_slope - (2 * k + 1) * coefficient * y ** (2 * k + 2)
    far = a >= _ASYMPTOTIC_FROM
    return torch.where(far, series, value), torch.where(far, series_slope, slope)


def log_plus_gap(ratio: Float[Tensor, "*shape"], gap: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    r"""Return :math:`\log(1 - g) + g`, the deviance of one unit, without cancellation.

    For x observed where m is expected, half the Poisson deviance :math:`x \log(x/m) + m - x` is
    :math:`-x [\log(1 - g) + g]` with :math:`g = (x - m) / x`.

    Parameters
    ----------
    ratio
        1 - g (that is, m / x), correct to rounding even where it is tiny.
    gap
        g, correct to rounding even where it is tiny.

    References
    ----------
    Loader (2000), Fast and Accurate Computation of Binomial Probabilities.
    """
    # The ratio is a rounded 1 - gap: near 1, what was lost is put back to first order; far from 1 it does not matter.
    lost = (1 - ratio - gap) / ratio.clamp(min=0.25)
    return ratio.log() + gap + lost
