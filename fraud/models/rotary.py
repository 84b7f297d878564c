"""Where an event stands, by its index in the window and by the time that has passed: the angles of rotary positions.

A pair of a query's or key's numbers is turned by an angle that grows with the position, so a product of the two depends
on the distance alone (Su et al. 2021, equation 16). Half of the pairs of each head turn with the index, half with the
elapsed time, which is the sum of the gaps that the tokens themselves tell: the middle of each bucket. Without a clock
all pairs turn with the index. Neither torch nor ONNX here: both read the same constants.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fraud.errors import ConfigError
from fraud.tokens import FIRST_ID, FieldShape

DoubleArray = npt.NDArray[np.float64]

_INDEX_PERIODS = (6.0, 512.0)  # events
_TIME_PERIODS_S = (20.0, 4 * 7 * 86400.0)
_TENTHS = 10.0  # of a second: the unit of the buckets


@dataclass(frozen=True, slots=True)
class Rotary:
    """The periods of the pairs of all heads, and how a gap's id becomes time.

    index_period_HI: events. time_period_HJ: tenths of a second. The heads share both ranges: each has short and long
    ones. gap_field: which field of a token row is the gap, None without a clock. tenths_of_id: float64 [size], the
    middle of the bucket of each id of that field, 0 where the gap is not known.
    """

    index_period_HI: DoubleArray
    time_period_HJ: DoubleArray
    gap_field: int | None
    tenths_of_id: DoubleArray


def rotary(fields: tuple[FieldShape, ...], *, width: int, heads: int) -> Rotary:
    """Return the positions' arithmetic; raise ConfigError where a head would not be of whole pairs."""
    if width % (2 * heads):
        raise ConfigError(
            f"model.heads = {heads}: a width of {width} is no multiple of 2 x heads; change one of the two"
        )
    gap_field = next((f for f, field in enumerate(fields) if field.name == "gap" and field.is_ordered), None)
    n_pairs = width // (2 * heads)
    n_time = 0 if gap_field is None else n_pairs // 2
    size = FIRST_ID if gap_field is None else fields[gap_field].size
    return Rotary(
        index_period_HI=_periods(_INDEX_PERIODS, heads, n_pairs - n_time),
        time_period_HJ=_periods((_TIME_PERIODS_S[0] * _TENTHS, _TIME_PERIODS_S[1] * _TENTHS), heads, n_time),
        gap_field=gap_field,
        tenths_of_id=_tenths_of_id(size),
    )


def _periods(ends: tuple[float, float], heads: int, n_pairs: int) -> DoubleArray:
    """Return heads x n_pairs periods, spaced evenly on a log scale and dealt out to the heads in turn."""
    return np.geomspace(*ends, heads * n_pairs).reshape(n_pairs, heads).T.copy()


def _tenths_of_id(size: int) -> DoubleArray:
    """Return the middle of each bucket of `fraud.tokens.half_octave`, whole tenths: then sums are exact."""
    bucket = np.arange(size - FIRST_ID)
    lower = 2.0 ** (bucket // 2) * (1.0 + 0.5 * (bucket % 2))
    middle = lower + 2.0 ** (bucket // 2) / 4 - 1.0
    return np.concatenate([np.zeros(FIRST_ID), np.rint(middle)])
