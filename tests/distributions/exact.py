"""Log-probabilities and their derivatives to 50 digits, and how far results are from them."""

from collections.abc import Callable, Iterable

import mpmath
from mpmath import mpf
from torch import Tensor

mpmath.mp.dps = 50

COUNTS = [0, 1, 2, 3, 5, 10, 100, 1_000, 10_000, 100_000]


def poisson(x: float, rate: float) -> tuple[mpf, mpf]:
    """Log-probability; derivative by the rate."""
    x, rate = mpf(x), mpf(rate)
    return x * mpmath.log(rate) - rate - mpmath.loggamma(x + 1), x / rate - 1


def negative_binomial(x: float, mean: float, theta: float) -> tuple[mpf, mpf, mpf]:
    """Log-probability; derivatives by the mean and by the inverse dispersion."""
    x, mean, theta = mpf(x), mpf(mean), mpf(theta)
    log_zero = -theta * mpmath.log1p(mean / theta)
    log_ratio = mpmath.log(mean / (mean + theta))
    log_prob = mpmath.loggamma(x + theta) - mpmath.loggamma(theta) - mpmath.loggamma(x + 1) + log_zero + x * log_ratio
    by_mean = theta * (x - mean) / (mean * (mean + theta))
    by_theta = mpmath.digamma(x + theta) - mpmath.digamma(theta) + log_zero / theta + (mean - x) / (mean + theta)
    return log_prob, by_mean, by_theta


def zero_inflated(x: float, base: tuple[mpf, ...], logit: float) -> tuple[mpf, ...]:
    """Log-probability; derivatives by the parameters of the base; derivative by the logit."""
    extra = 1 / (1 + mpmath.exp(-mpf(logit)))
    if x > 0:
        return (mpmath.log1p(-extra) + base[0], *base[1:], -extra)
    p_base = mpmath.exp(base[0])
    p = extra + (1 - extra) * p_base
    share = (1 - extra) * p_base / p
    return (mpmath.log(p), *(share * slope for slope in base[1:]), extra * (1 - extra) * (1 - p_base) / p)


def evaluate(function: Callable[..., tuple[mpf, ...]], *arguments: Tensor) -> list[list[mpf]]:
    """Evaluate a reference at every element; one list for each thing that it returns."""
    columns = (argument.detach().flatten().tolist() for argument in arguments)
    return [list(column) for column in zip(*(function(*row) for row in zip(*columns, strict=True)), strict=True)]


def worst_error(result: Tensor, truth: Iterable[mpf]) -> float:
    """Return the largest error, absolute where the truth is below one and relative above."""
    pairs = zip(result.detach().flatten().tolist(), truth, strict=True)
    errors = [abs(mpf(value) - exact) / max(1, abs(exact)) for value, exact in pairs]
    assert not any(mpmath.isnan(error) for error in errors)
    return float(max(errors))
