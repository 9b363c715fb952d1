r"""Parts of the gamma function that stay exact where differences of ``lgamma`` and ``digamma`` cancel.

Everything here is built on what Stirling's formulas leave out, Binet's function and its digamma counterpart

.. math::

    \mu(a) = \log\Gamma(a) - \left(a - \tfrac12\right) \log a + a - \tfrac12 \log 2\pi,
    \qquad \psi(a) - \log a = \mu'(a) - \frac{1}{2a}.

Both are small for every a of at least one (:math:`\mu(1) = 0.081`, and about 1 / 12a beyond), so the large terms of a
log-probability can be combined on paper, before anything is rounded. The functions return plain values: they are
meant for the inside of a :class:`torch.autograd.Function`, and work in place where that saves memory.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["binet_above_one", "log_one_minus", "stirling_remainders"]

# Minimax fit of mu(a) = sum_k c_k a^-k over a >= 1, jointly with its derivative: both are within 2.6e-7.
_MINIMAX = (8.332339408e-2, 1.228939127e-4, -3.298013908e-3, 1.025482266e-3, -1.122301309e-4)
# B_2k / (2k (2k - 1)), the asymptotic series: within 1e-17 of mu from 16 on.
_ASYMPTOTIC = (1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188, -691 / 360360, 1 / 156)
_ASYMPTOTIC_FROM = 16.0


def binet_above_one(a: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    r"""Return Binet's function :math:`\mu` of arguments of at least one.

    Parameters
    ----------
    a
        Arguments, one or greater. Below one, the result has no meaning in float32.

    Returns
    -------
    Values within 3e-7 in float32 and 1e-14 in float64.
    """
    if a.dtype == torch.float64:
        return _double_remainders(a)[0]
    y = a.reciprocal()
    value, power = y * _MINIMAX[0], y
    for coefficient in _MINIMAX[1:]:
        power = power * y
        value.add_(power, alpha=coefficient)
    return value


def stirling_remainders(a: Float[Tensor, "*shape"]) -> tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"]]:
    r"""Return :math:`\mu(a)` and :math:`\psi(a) - \log a` of arguments of at least one.

    Parameters
    ----------
    a
        Arguments, one or greater. Below one, the result has no meaning in float32.

    Returns
    -------
    Values within 3e-7 in float32 and 1e-14 in float64.
    """
    if a.dtype == torch.float64:
        return _double_remainders(a)
    y = a.reciprocal()
    value, slope, power = y * _MINIMAX[0], y * -_MINIMAX[0], y
    for order, coefficient in enumerate(_MINIMAX[1:], start=2):
        power = power * y
        value.add_(power, alpha=coefficient)
        slope.add_(power, alpha=-order * coefficient)
    return value, slope.sub_(0.5).mul_(y)


def _double_remainders(a: Float[Tensor, "*shape"]) -> tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"]]:
    log_a = a.log()
    value = a.lgamma() - (a - 0.5) * log_a + a - 0.5 * math.log(2 * math.pi)
    slope = a.digamma() - log_a
    y = a.clamp(min=_ASYMPTOTIC_FROM).reciprocal()
    series, series_slope = torch.zeros_like(y), -0.5 * y
    for k, coefficient in enumerate(_ASYMPTOTIC):
        series += coefficient * y ** (2 * k + 1)
        series_slope -= (2 * k + 1) * coefficient * y ** (2 * k + 2)
    far = a >= _ASYMPTOTIC_FROM
    return torch.where(far, series, value), torch.where(far, series_slope, slope)


def log_one_minus(gap: Float[Tensor, "*shape"], ratio: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    r"""Return :math:`\log(1 - g)`, relatively exact where 1 - g is tiny and also where g is.

    With :math:`g = (x - m) / x`, half the Poisson deviance :math:`x \log(x/m) + m - x` of x observed where m is
    expected is :math:`-x [\log(1 - g) + g]`, in which nothing large cancels.

    Parameters
    ----------
    gap
        g, correct to rounding even where it is tiny.
    ratio
        1 - g (above, m / x), correct to rounding even where it is tiny.

    References
    ----------
    Loader (2000), Fast and Accurate Computation of Binomial Probabilities.
    """
    # Down to a ratio of one half the first term does all and the second is log(1); below, the second continues.
    return gap.clamp(max=0.5).neg_().log1p_().add_(ratio.clamp(max=0.5).mul_(2).log_())
