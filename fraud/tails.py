"""Tail probabilities, as far out as many tests need them, and the moments of the logarithm of a variance.

In NumPy alone: what watches a log needs no scipy. Checked against scipy in the tests.
"""

from __future__ import annotations

import math

import numpy as np

from fraud.events import FloatArray

_SMALLEST = 1e-300
_MOST_TERMS = 500
_log_gamma = np.vectorize(math.lgamma, otypes=[np.float64])
_log1p = np.log1p


def two_sided_t(t: FloatArray, df: FloatArray) -> FloatArray:
    """Return the chance that Student's t of df degrees of freedom lies at least as far from 0, elementwise."""
    return beta_below(df / 2, np.full_like(df, 0.5), df / (df + t**2))


def t_beyond(p: float, df: FloatArray) -> FloatArray:
    """Return the t that is reached, on either side together, with probability p: by bisection, to one in a million."""
    known, place = np.unique(df, return_inverse=True)
    low, high = np.full_like(known, 1e-3), np.full_like(known, 1e6)
    for _ in range(26):
        middle = np.sqrt(low * high)
        is_beyond = two_sided_t(middle, known) < p
        low, high = np.where(is_beyond, low, middle), np.where(is_beyond, middle, high)
    return high[place].reshape(df.shape)


def beta_below(a: FloatArray, b: FloatArray, x: FloatArray) -> FloatArray:
    """Return the regularised incomplete beta function I_x(a, b), elementwise; a, b > 0, 0 <= x <= 1.

    By the continued fraction of Lentz (Press et al., Numerical Recipes, 6.4), on the side where it converges fast.
    """
    a, b, x = (np.asarray(one, dtype=np.float64) for one in np.broadcast_arrays(a, b, x))
    is_far = x > (a + 1) / (a + b + 2)
    from_a, from_b = np.where(is_far, b, a), np.where(is_far, a, b)
    at = np.clip(np.where(is_far, 1 - x, x), 0.0, 1.0)
    with np.errstate(divide="ignore", over="ignore", under="ignore"):
        log_front = _log_gamma(a + b) - _log_gamma(a) - _log_gamma(b) + from_a * np.log(at) + from_b * _log1p(-at)
        front = np.where(at > 0, np.exp(log_front), 0.0)
    value = front * _beta_fraction(from_a, from_b, at) / from_a
    return np.clip(np.where(is_far, 1 - value, value), 0.0, 1.0)


def _beta_fraction(a: FloatArray, b: FloatArray, x: FloatArray) -> FloatArray:
    def kept(value: FloatArray) -> FloatArray:
        return np.where(np.abs(value) < _SMALLEST, _SMALLEST, value)

    c = np.ones_like(x)
    d = 1 / kept(1 - (a + b) * x / (a + 1))
    fraction = d.copy()
    for m in range(1, _MOST_TERMS):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        d, c = 1 / kept(1 + even * d), kept(1 + even / c)
        fraction = fraction * d * c
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        d, c = 1 / kept(1 + odd * d), kept(1 + odd / c)
        step = d * c
        fraction = fraction * step
        if np.all(np.abs(step - 1) < 1e-12):
            break
    return fraction


def digamma(x: float) -> float:
    """Return the derivative of the logarithm of the gamma function, x > 0."""
    shift = 0.0
    while x < 8:
        shift -= 1 / x
        x += 1
    square = 1 / x**2
    return shift + math.log(x) - 0.5 / x - square * (1 / 12 - square * (1 / 120 - square / 252))


def trigamma(x: float) -> float:
    """Return the second derivative of the logarithm of the gamma function, x > 0."""
    shift = 0.0
    while x < 8:
        shift += 1 / x**2
        x += 1
    square = 1 / x**2
    return shift + 1 / x + square / 2 + square / x * (1 / 6 - square * (1 / 30 - square / 42))


def trigamma_inverse(y: float) -> float:
    """Return the x whose trigamma is y > 0, by bisection: trigamma falls from infinity to 0."""
    low, high = 1e-8, 1e8
    for _ in range(200):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if trigamma(middle) > y else (low, middle)
    return math.sqrt(low * high)
