"""How much figures vary from week to week: of one cell little is known, of many cells together much.

Empirical Bayes of variances as in limma (Smyth 2004, Linear models and empirical Bayes methods for assessing
differential expression, section 6): each variance is shrunk towards the common one, the more the more alike they are.
A cell that varies far more than the others is not of their kind; it stands for itself, and the others are judged
without it (in the spirit of Phipson et al. 2016, Robust hyperparameter estimation).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from fraud.events import BoolArray, FloatArray
from fraud.monitoring.tails import digamma, trigamma, trigamma_inverse

_FEWEST = 3
_MOST_DF = 60.0  # however alike the cells are, a dozen weeks are no proof of it
_FENCE = 3.0  # interquartile ranges above the upper quartile of log variances: Tukey's "far out"
_SMALLEST = 1e-6


class Prior(NamedTuple):
    """The common variance, how many degrees of freedom it is worth, and from where on a variance stands for itself."""

    variance: float
    df: float
    fence: float


def prior_of(variance_G: FloatArray, df_G: FloatArray) -> Prior:
    """Return what variances have in common, by the moments of their logarithms.

    Of hardly any nothing is known: then they are taken to be about 1, with the doubt of four degrees of freedom.
    """
    if len(variance_G) < _FEWEST:
        return Prior(1.0, 4.0, math.inf)
    log_G = np.log(np.maximum(variance_G, _SMALLEST))
    low, high = np.percentile(log_G, [25, 75])
    fence = float(high + _FENCE * max(high - low, 0.1))
    kept_G = log_G <= fence
    df_G = df_G[kept_G]
    e_G = log_G[kept_G] - (digamma(df_G / 2) - np.log(df_G / 2))
    excess = float(e_G.var(ddof=1) - trigamma(df_G / 2).mean())
    df = min(_MOST_DF, 2 * trigamma_inverse(excess)) if excess > _SMALLEST else _MOST_DF
    log_bias = float(digamma(np.array([df / 2]))[0]) - math.log(df / 2)
    return Prior(math.exp(float(e_G.mean()) + log_bias), df, math.exp(fence))


def moderated(
    variance_C: FloatArray, df_C: FloatArray, is_known_C: BoolArray, prior: Prior
) -> tuple[FloatArray, FloatArray]:
    """Return the variances, shrunk, and their degrees of freedom; where nothing of its own is known, the common one."""
    is_apart_C = is_known_C & (variance_C > prior.fence)
    prior_df_C = np.where(is_apart_C, 0.0, prior.df)
    own_df_C = np.where(is_known_C, df_C, 0.0)
    df_C = prior_df_C + own_df_C
    return (prior_df_C * prior.variance + own_df_C * variance_C) / df_C, df_C
