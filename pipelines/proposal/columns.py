"""What one column of a sample holds: the words of its name, how often its values repeat, and what it can be read as.

Everything is asked of the functions that the readers use, so nothing is called a time or a number here that a log's
reader would refuse. This file knows no role: `roles` says what a column is for.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from fraud.cells import ArrowCells, Cells, CsvCells, as_floats, as_integers, as_labels, as_text, as_times
from fraud.errors import DataError
from fraud.json_cells import Typed
from fraud.quarantine import FaultArray, printable
from pipelines.proposal.sample import Sample

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]

_MOSTLY = 0.8  # of the cells that are there: what they are read as; what it costs is tried on the sample at the end
_SECONDS_PER_UNIT = {"s": 1.0, "ms": 1e-3, "us": 1e-6}
_EPOCH_S = (631_152_000.0, 4_102_444_800.0)  # 1990 to 2100: numbers in between may well be times


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeReading:
    """A column read as time. time_us_N: int64, -1 where it has none. unit: of numbers. is_epoch: plausible dates."""

    time_us_N: IntArray
    kind: Literal["zoned", "naive", "number"]
    unit: Literal["s", "ms", "us"] | None
    is_epoch: bool
    share: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Column:
    """One column of N sampled rows.

    words: of its name, lower case. code_N: int32, equal for equal values, -1 where there is none; n_values of them.
    is_id: can be read as ids or types (text or integers). number_N: NaN where there is none; None where most cells are
    no numbers. is_integer: the numbers are integers. label_N: 1, 0 or -1; None where it holds anything else.
    values: the text of each code; count_V: how often each stands.
    """

    name: str
    words: tuple[str, ...]
    code_N: npt.NDArray[np.int32]
    n_values: int
    n_null: int
    is_id: bool
    number_N: FloatArray | None
    is_integer: bool
    label_N: npt.NDArray[np.int8] | None
    time: TimeReading | None
    values: pa.Array
    count_V: IntArray
    mean_characters: float

    @property
    def n_there(self) -> int:
        """Return how many cells hold something."""
        return len(self.code_N) - self.n_null

    @property
    def share_null(self) -> float:
        """Return the share of cells that hold nothing."""
        return self.n_null / len(self.code_N)

    @property
    def per_value(self) -> float:
        """Return how many rows a value has on average."""
        return self.n_there / max(self.n_values, 1)

    @property
    def shown(self) -> str:
        """Return the most frequent value, for a person."""
        return repr(printable(self.values[int(self.count_V.argmax())].as_py())) if self.n_there else "nothing"

    @property
    def texts(self) -> pa.Array:
        """Return the cells as text, null where there is none."""
        return self.values.take(pa.array(self.code_N, mask=self.code_N < 0))


def columns_of(sample: Sample) -> list[Column]:
    """Return a profile of each column that a configuration can name."""
    names = [name for name in sample.cells if name and _is_encodable(name)]
    return [_column(name, sample.cells[name], sample.n_rows) for name in names]


def words_of(name: str) -> tuple[str, ...]:
    """Return the words of a name: `TX_DATETIME`, `txDatetime` and `tx datetime` are all tx, datetime."""
    apart = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", name)
    return tuple(word.lower() for word in re.split(r"[\W_]+|(?<=\D)(?=\d+$)", apart) if word)


def word_set(text: str) -> frozenset[str]:
    """Return the words of a text as a set: a list of words stays readable in the source."""
    return frozenset(text.split())


def _column(name: str, cells: Cells, n_rows: int) -> Column:
    text, text_faults_N = _text(cells)
    values = text if text is not None and text_faults_N is None else _any_value(cells)
    is_id = text is not None and _share_good(text_faults_N, len(values) - values.null_count) >= _MOSTLY
    encoded = values.dictionary_encode()
    code_N = pc.fill_null(encoded.indices, -1).to_numpy(zero_copy_only=False).astype(np.int32)
    count_V = np.bincount(code_N[code_N >= 0], minlength=len(encoded.dictionary))
    n_there = int(count_V.sum())
    numbers, number_faults_N = _numbers(cells, as_floats)
    number_N = numbers if n_there and _share_good(number_faults_N, n_there) >= _MOSTLY else None
    integers, integer_faults_N = _numbers(cells, as_integers)
    return Column(
        name=name,
        words=words_of(name),
        code_N=code_N,
        n_values=int((count_V > 0).sum()),
        n_null=n_rows - n_there,
        is_id=is_id and n_there > 0,
        number_N=number_N,
        is_integer=number_N is not None and integers is not None and _share_good(integer_faults_N, n_there) >= _MOSTLY,
        label_N=_labels(cells) if n_there else None,
        time=_time(cells, number_N, n_there),
        values=encoded.dictionary,
        count_V=count_V,
        mean_characters=float(pc.mean(pc.utf8_length(text)).as_py() or 0.0) if text is not None else 0.0,
    )


def _text(cells: Cells) -> tuple[pa.Array | None, FaultArray | None]:
    try:
        typed = as_text(cells)
        typed.values.validate(full=True)
    except (DataError, pa.ArrowInvalid):
        return None, None
    return typed.values, typed.faults_N


def _any_value(cells: Cells) -> pa.Array:
    """Return the cells as text for counting alone: floats, booleans and whatever else a file can hold."""
    if isinstance(cells, ArrowCells):
        kind = cells.values.type
        if pa.types.is_floating(kind) or pa.types.is_boolean(kind) or pa.types.is_timestamp(kind):
            return cells.values.cast(pa.string())
        if pa.types.is_date(kind) or pa.types.is_decimal(kind) or pa.types.is_time(kind):
            return cells.values.cast(pa.string())
        return pa.array([None if cell is None else str(cell) for cell in cells.values.to_pylist()], pa.string())
    if isinstance(cells, CsvCells):
        good = [cell.decode("utf-8", "replace") or None for cell in cells.text.cast(pa.binary()).to_pylist()]
        return pa.array(good, pa.string())
    return pa.array([None if cell is None else printable(str(cell)[:200]) for cell in cells.objects], pa.string())


def _numbers(cells: Cells, read: Callable[[Cells], Typed]) -> tuple[FloatArray | None, FaultArray | None]:
    """Return (numbers with NaN where there is none, faults); (None, None) where the whole column is refused."""
    try:
        typed = read(cells)
    except DataError:
        return None, None
    number_N = typed.values.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    is_bad_N = ~np.isfinite(number_N) & pc.is_valid(typed.values).to_numpy(zero_copy_only=False)
    faults_N = is_bad_N.astype(np.int8) if typed.faults_N is None else np.maximum(typed.faults_N, is_bad_N)
    return np.where(is_bad_N, np.nan, number_N), faults_N


def _share_good(faults_N: FaultArray | None, n_there: int) -> float:
    return 1.0 - (0 if faults_N is None else np.count_nonzero(faults_N)) / max(n_there, 1)


def _labels(cells: Cells) -> npt.NDArray[np.int8] | None:
    try:
        typed = as_labels(cells)
    except DataError:
        return None
    if typed.faults_N is not None:
        return None
    return pc.fill_null(typed.values, -1).to_numpy(zero_copy_only=False).astype(np.int8)


def _time(cells: Cells, number_N: FloatArray | None, n_there: int) -> TimeReading | None:
    if number_N is not None:
        return _number_time(cells, number_N, n_there)
    for zone, kind in ((None, "zoned"), ("UTC", "naive")):
        try:
            typed = as_times(cells, unit=None, zone=zone)
        except DataError:
            continue
        faults_N = np.zeros(len(typed.values), np.int8) if typed.faults_N is None else typed.faults_N
        share = _share_good(faults_N, n_there)
        if share >= 0.5:
            time_us_N = pc.fill_null(typed.values, -1).to_numpy(zero_copy_only=False)
            is_naive = kind == "naive"
            time_us_N = np.where(faults_N == 0, time_us_N, -1)
            return TimeReading(
                time_us_N=time_us_N, kind="naive" if is_naive else "zoned", unit=None, is_epoch=True, share=share
            )
    return None


def _number_time(cells: Cells, number_N: FloatArray, n_there: int) -> TimeReading | None:
    """Return the numbers as times in the unit that makes them dates of our age; else as seconds."""
    middle = float(np.nanmedian(number_N))
    fitting = [unit for unit, size in _SECONDS_PER_UNIT.items() if _EPOCH_S[0] <= middle * size <= _EPOCH_S[1]]
    unit: Literal["s", "ms", "us"] = fitting[0] if fitting else "s"  # type: ignore[assignment]
    try:
        typed = as_times(cells, unit=unit, zone="UTC")
    except DataError:
        return None
    faults_N = np.zeros(len(typed.values), np.int8) if typed.faults_N is None else typed.faults_N
    time_us_N = pc.fill_null(typed.values, -1).to_numpy(zero_copy_only=False)
    return TimeReading(
        time_us_N=np.where(faults_N == 0, time_us_N, -1),
        kind="number",
        unit=unit,
        is_epoch=bool(fitting),
        share=_share_good(faults_N, n_there),
    )


def _is_encodable(name: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in name)
