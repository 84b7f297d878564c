"""Tail probabilities and the moments of the log of a variance, from SciPy, which is loaded when first asked for."""

from __future__ import annotations

import numpy as np

from fraud.events import FloatArray


def two_sided_t(t: FloatArray, df: FloatArray) -> FloatArray:
    """Return the chance that Student's t of df degrees of freedom lies at least as far from 0, elementwise."""
    from scipy.special import stdtr

    return np.asarray(2.0 * stdtr(df, -np.abs(t)), dtype=np.float64)


def t_beyond(p: float, df: FloatArray) -> FloatArray:
    """Return the t that is reached, on either side together, with probability p, elementwise."""
    from scipy.special import stdtrit

    return np.asarray(-stdtrit(df, p / 2.0), dtype=np.float64)


def beta_below(a: FloatArray, b: FloatArray, x: FloatArray) -> FloatArray:
    """Return the regularised incomplete beta function I_x(a, b), elementwise; a, b > 0, 0 <= x <= 1."""
    from scipy.special import betainc

    return np.asarray(betainc(a, b, x), dtype=np.float64)


def digamma(x: FloatArray) -> FloatArray:
    """Return the derivative of the logarithm of the gamma function, elementwise, x > 0."""
    from scipy.special import digamma as derivative

    return np.asarray(derivative(x), dtype=np.float64)


def trigamma(x: FloatArray) -> FloatArray:
    """Return the second derivative of the logarithm of the gamma function, elementwise, x > 0."""
    from scipy.special import polygamma

    return np.asarray(polygamma(1, x), dtype=np.float64)


def trigamma_inverse(y: float) -> float:
    """Return the x whose trigamma is y > 0: trigamma falls from infinity to 0."""
    from scipy.optimize import brentq

    def excess(log_x: float) -> float:
        return float(trigamma(np.exp([log_x]))[0]) - y

    return float(np.exp(brentq(excess, -18.0, 18.0)))
