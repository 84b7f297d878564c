"""The rules on values: the vectorised way agrees with a slow and obvious one, cell by cell."""

from __future__ import annotations

import re
import unicodedata
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fraud.cells import CsvCells, JsonCells, as_floats, as_integers, as_labels, as_times
from fraud.config import parse_config
from fraud.errors import ConfigError, DataError
from fraud.quarantine import WORDS, Fault, Quarantine
from fraud.timestamps import MAX_TIME_US, times_of_text, times_of_timestamps
from fraud.validation import canonical_table

ZONES = ["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Pacific/Apia"]
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
RFC_3339 = re.compile(
    r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?([Zz]|[+-](?:[01]\d|2[0-3]):[0-5]\d)?", re.ASCII
)


def slow_time_us(text: str, zone: str | None) -> int | None:
    """Return the microseconds that the text means, or None where it is refused; one cell at a time."""
    found = RFC_3339.fullmatch(text)
    if found is None:
        return None
    day, clock, fraction, offset = found.groups()
    try:
        wall = datetime.fromisoformat(f"{day}T{clock}")
    except ValueError:
        return None
    if offset is None:
        if zone is None:
            return None
        aware = wall.replace(tzinfo=ZoneInfo(zone))
        if aware.astimezone(UTC).astimezone(ZoneInfo(zone)).replace(tzinfo=None) != wall:
            return None
    else:
        hours, minutes = (0, 0) if offset in "Zz" else (int(offset[1:3]), int(offset[4:6]))
        sign = -1 if offset[0] == "-" else 1
        # Subtracted here: a datetime cannot stand before year 1.
        aware = (wall.replace(tzinfo=UTC) if wall.year > 1 else EPOCH.replace(year=1000)) - sign * timedelta(
            hours=hours, minutes=minutes
        )
    time_us = (aware - EPOCH) // timedelta(microseconds=1) + int((fraction or "0").ljust(9, "0")[:6])
    return time_us if 0 <= time_us <= MAX_TIME_US else None


RIGHT_PARTS = [
    ["1969", "1970", "2000", "2024", "2026", "2100", "2199", "2200"],
    ["01", "02", "11", "12"],
    ["01", "28", "29", "30", "31"],
    ["00", "02", "23"],
    ["00", "59"],
    ["00", "59"],
    ["", ".5", ".999999", ".9999999", ".123456789"],
    ["", "Z", "z", "+00:00", "-00:00", "+01:30", "-23:59", "+14:00"],
]
WRONG_PARTS = [
    ["0000", "0001", "1900", "2201", "9999", "20O6", "202:"],
    ["00", "13", "1"],
    ["00", "32", "0:", "1"],
    ["24", "1:", "99"],
    ["60", "5:", "6"],
    ["60", "61", "5/"],
    [".", ".1234567890", ",5", ".12 ", ".:0"],
    ["+24:00", "+01:60", "+0100", "+01", "Q", "+01-00", "+1:000", " Z"],
]


@st.composite
def time_texts(draw: st.DrawFn) -> str:
    """Times that are right, or wrong in one part or one character."""
    parts = [draw(st.sampled_from(choices)) for choices in RIGHT_PARTS]
    wrong = draw(st.integers(0, 2 * len(parts)))
    if wrong < len(parts):
        parts[wrong] = draw(st.sampled_from(WRONG_PARTS[wrong]))
    mark = draw(st.sampled_from("TTTt _"))
    text = "{0}-{1}-{2}{mark}{3}:{4}:{5}{6}{7}".format(*parts, mark=mark)
    at = draw(st.integers(0, 3 * len(text)))
    return (
        text if at >= len(text) else text[:at] + draw(st.sampled_from(["", "0", "-", ":", "é", " "])) + text[at + 1 :]
    )


@st.composite
def good_times(draw: st.DrawFn) -> str:
    """Times that are right, often near a change of the clocks."""
    near = draw(st.sampled_from(["2026-03-29T02", "2026-10-25T02", "2026-11-01T01", "2011-12-30T12", "2050-04-03T02"]))
    wall = datetime.fromisoformat(f"{near}:00:00") + timedelta(seconds=draw(st.integers(-90000, 90000)))
    fraction = draw(st.one_of(st.just(""), st.from_regex(r"\.[0-9]{1,9}", fullmatch=True)))
    return wall.isoformat() + fraction + draw(st.sampled_from(["", "", "Z", "+05:30", "-08:00"]))


@given(st.lists(time_texts() | good_times() | st.text(max_size=30), min_size=1, max_size=30), st.sampled_from(ZONES))
@settings(max_examples=250)
def test_times_in_text_mean_what_a_slow_reader_says(texts: list[str], zone: str) -> None:
    for read_in in (None, zone):
        times = times_of_text(pa.array(texts), read_in)
        fast = [t if f == 0 else None for t, f in zip(times.time_us_N.tolist(), times.faults_N.tolist(), strict=True)]
        assert fast == [slow_time_us(text, read_in) for text in texts]


@pytest.mark.parametrize("place", range(len(WRONG_PARTS)))
def test_one_wrong_part_of_a_time_is_enough(place: int) -> None:
    for wrong in WRONG_PARTS[place]:
        parts = ["2026", "11", "20", "10", "30", "15", ".5", "+01:00"]
        parts[place] = wrong
        text = "{}-{}-{}T{}:{}:{}{}{}".format(*parts)
        assert times_of_text(pa.array([text]), "UTC").faults_N[0] != 0, text


@given(st.lists(st.integers(-(10**9), 8 * 10**9) | st.none(), min_size=1, max_size=20), st.sampled_from(ZONES))
def test_timestamps_without_a_zone_mean_what_their_text_means(seconds: list[int | None], zone: str) -> None:
    values = pa.array(seconds, pa.timestamp("s"))
    texts = pa.array(
        [None if s is None else (EPOCH + timedelta(seconds=s)).isoformat()[:19] for s in seconds], pa.string()
    )
    of_values, of_text = times_of_timestamps(values, zone), times_of_text(texts, zone)
    assert of_values.faults_N.tolist() == of_text.faults_N.tolist()
    good = (of_text.faults_N == 0) & np.array([s is not None for s in seconds])
    assert of_values.time_us_N[good].tolist() == of_text.time_us_N[good].tolist()


@pytest.mark.parametrize(
    ("text", "zone", "reason"),
    [
        ("2026-11-20T10:00:00", None, Fault.NO_ZONE),
        ("2026-03-29T02:30:00", "Europe/Berlin", Fault.NONEXISTENT_TIME),
        ("1969-12-31T23:59:59Z", None, Fault.TIME_OUT_OF_RANGE),
        ("2200-01-01T00:00:00Z", None, Fault.TIME_OUT_OF_RANGE),
        ("20/11/2026 10:59", None, Fault.BAD_TIME),
    ],
)
def test_a_refused_time_says_why(text: str, zone: str | None, reason: Fault) -> None:
    assert times_of_text(pa.array([text]), zone).faults_N.tolist() == [reason]


@pytest.mark.parametrize(("unit", "per_us"), [("s", 1e-6), ("ms", 1e-3), ("us", 1), ("ns", 1000)])
def test_a_timestamp_of_any_unit_is_in_range_or_refused(unit: str, per_us: float) -> None:
    last = int((MAX_TIME_US + 1) * per_us) - 1
    values = pa.array([0, last, -1, last + 1, 2**63 - 1, -(2**63), None], pa.timestamp(unit, "UTC"))
    times = times_of_timestamps(values, None)
    assert times.faults_N.tolist() == [0, 0, *[Fault.TIME_OUT_OF_RANGE] * 4, 0]
    assert times.time_us_N[:2].tolist() == [0, last * 10**6 // int(10**6 * per_us)]


def test_a_time_that_is_no_finite_number_says_so() -> None:
    faults_N = as_times(JsonCells([float("nan"), float("inf")]), unit="s", zone=None).faults_N
    assert faults_N is not None
    assert faults_N.tolist() == [Fault.NOT_FINITE] * 2


def test_a_local_time_that_came_twice_is_the_earlier_one() -> None:
    times = times_of_text(pa.array(["2026-10-25T02:30:00", "2026-10-25T02:30:00+02:00"]), "Europe/Berlin")
    assert times.time_us_N[0] == times.time_us_N[1]


def test_a_zone_nobody_knows_is_an_error_of_the_configuration() -> None:
    with pytest.raises(ConfigError, match=r"log\.zone = 'Mars/Olympus'"):
        times_of_text(pa.array(["2026-10-25T02:30:00"]), "Mars/Olympus")


@given(st.integers(0, MAX_TIME_US))
def test_seconds_with_decimals_keep_their_microsecond(time_us: int) -> None:
    text = f"{time_us // 10**6}.{time_us % 10**6:06}"
    typed = as_times(CsvCells(pa.array([text])), unit="s", zone=None)
    # A float64 holds microseconds exactly until 2112; to 2199 it may be off by one.
    assert abs(typed.values[0].as_py() - time_us) <= (0 if time_us < 2**52 else 1)


@pytest.mark.parametrize(
    ("cell", "unit", "reason"),
    [
        ("1795168800", None, Fault.NO_TIME_UNIT),
        ("1795168800000.5", "ms", Fault.FRACTION_OF_UNIT),
        ("1795168800000000", "s", Fault.TIME_OUT_OF_RANGE),
        ("-1", "s", Fault.TIME_OUT_OF_RANGE),
        ("0x10", "s", Fault.BAD_TIME),
    ],
)
def test_a_number_as_time_obeys_its_unit(cell: str, unit: str | None, reason: Fault) -> None:
    faults_N = as_times(CsvCells(pa.array([cell])), unit=unit, zone=None).faults_N
    assert faults_N is not None
    assert faults_N.tolist() == [reason]
    assert "log.time_unit" in WORDS[Fault.NO_TIME_UNIT]


def test_texts_and_numbers_may_share_a_column_of_times() -> None:
    cells = JsonCells(["1970-01-01T00:00:02Z", 3, 4.5, None, True, "5"])
    typed = as_times(cells, unit="s", zone=None)
    assert typed.faults_N is not None
    assert typed.faults_N.tolist() == [0, 0, 0, 0, Fault.WRONG_TYPE, Fault.BAD_TIME]
    assert typed.values.to_pylist()[:4] == [2_000_000, 3_000_000, 4_500_000, None]


_NUMBER_LIKE = st.from_regex(r"[-+]?[0-9.]{0,6}(e[-+]?[0-9]{0,3})?", fullmatch=True)
_ODD_NUMBERS = st.sampled_from(
    ["NaN", "inf", "-inf", "1_000", "0x1f", "1,5", " 1", "1 ", "١", "1e999", "-.5", "5.", "+1"]
)


@given(st.lists(_NUMBER_LIKE | _ODD_NUMBERS | st.text(max_size=5), min_size=1, max_size=20))
def test_numbers_of_a_csv_are_plain_decimals(cells: list[str]) -> None:
    grammar = re.compile(r"-?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?")
    expected = [float(cell) if grammar.fullmatch(cell) else None for cell in cells]
    assert as_floats(CsvCells(pa.array(cells))).values.to_pylist() == expected


LARGE = st.sampled_from([2**63 - 1, 2**63, 2**64, 1 - 2**63, -(2**63) - 1]).map(str)


@given(
    st.lists(
        st.integers(-(2**70), 2**70).map(str) | LARGE | st.sampled_from(["1.0", "+1", "007", "", "-0"]), min_size=1
    )
)
def test_integers_of_a_csv_fit_in_64_bits(cells: list[str]) -> None:
    expected = [int(c) if re.fullmatch("-?[0-9]+", c) and abs(int(c)) < 2**63 else None for c in cells]
    assert as_integers(CsvCells(pa.array(cells))).values.to_pylist() == expected


def test_labels_are_zero_one_true_false_or_nothing() -> None:
    in_csv = as_labels(CsvCells(pa.array(["0", "1", "true", "False", "", "2", "yes"])))
    in_json = as_labels(JsonCells([0, 1, True, False, None, 2, "1"]))
    for labels in (in_csv, in_json):
        assert labels.faults_N is not None
        assert labels.values.to_pylist() == [0, 1, 1, 0, None, None, None]
        assert labels.faults_N.tolist() == [0, 0, 0, 0, 0, Fault.BAD_LABEL, Fault.BAD_LABEL]


def table_of(**columns: object) -> pa.Table:
    first = next(iter(columns.values()))
    n_rows = len(first)  # type: ignore[arg-type]
    whole = {
        "user_id": pa.array(["u"] * n_rows),
        "ts": pa.array([0] * n_rows, pa.timestamp("us", "UTC")),
        "type": pa.array(["login"] * n_rows),
        "amount": pa.nulls(n_rows, pa.float64()),
    }
    return pa.table({**whole, **columns})


def canonical(table: pa.Table, log: str = "", fields: str = "") -> tuple[pa.Table, Quarantine]:
    config = parse_config(f'[log]\n{log}\n[fields]\namount = "amount"\n{fields}', source="test", root=Path())
    quarantine = Quarantine()
    return canonical_table(table, config, quarantine, source="table", first_row=0), quarantine


ascii_ids = st.text("ab \x7f", max_size=3) | st.sampled_from(["x" * 256, "x" * 257])
any_ids = st.text(max_size=4) | st.sampled_from(["é" * 256, "é" * 257])


@given(st.lists(ascii_ids, min_size=1) | st.lists(any_ids, min_size=1))
@example(["  ", "a"])
@example(["a\x7f"])
@example(["x" * 257, " a"])
def test_an_id_has_1_to_256_characters_none_of_them_control_and_not_all_blank(ids: list[str]) -> None:
    def is_good(text: str) -> bool:
        has_control = any(unicodedata.category(c) == "Cc" for c in text)
        return 1 <= len(text) <= 256 and bool(text.strip()) and not has_control

    table, quarantine = canonical(table_of(user_id=pa.array(ids)))
    assert table["user"].to_pylist() == [text for text in ids if is_good(text)]
    assert len(quarantine) == sum(not is_good(text) for text in ids)


@pytest.mark.parametrize(
    ("column", "values", "log"),
    [
        ("user_id", pa.array([1.0]), ""),
        ("user_id", pa.array([b"u"]), ""),
        ("user_id", pa.array([True]), ""),
        ("type", pa.array([["login"]]), ""),
        ("ts", pa.array([5]), ""),
        ("ts", pa.array([5.0]), ""),
        ("ts", pa.array([5], pa.timestamp("us")), ""),
        ("ts", pa.array([5], pa.date32()), 'zone = "UTC"'),
        ("amount", pa.array(["5"]), ""),
        ("amount", pa.array([True]), ""),
    ],
)
def test_a_column_of_the_wrong_type_is_refused_by_name(column: str, values: pa.Array, log: str) -> None:
    with pytest.raises(DataError, match=f"table: column '{column}'"):
        canonical(table_of(**{column: values}), log)


@pytest.mark.parametrize(
    "values",
    [
        pa.array([7, 12]),
        pa.array([7, 12], pa.uint8()),
        pa.array(["7", "12"], pa.large_string()),
        pa.array(["7", "12"], pa.string_view()),
        pa.array(["7", "12"]).dictionary_encode(),
        pa.array(["0", "7", "12"])[1:],
    ],
)
def test_ids_of_any_text_or_integer_type_are_their_text(values: pa.Array) -> None:
    assert canonical(table_of(user_id=values))[0]["user"].to_pylist() == ["7", "12"]


def test_bytes_that_are_no_text_cost_their_row_alone() -> None:
    offsets = pa.py_buffer(np.array([0, 1, 3, 4], dtype=np.int32))
    ids = pa.Array.from_buffers(pa.string(), 3, [None, offsets, pa.py_buffer(b"a\xff\xfec")])
    table, quarantine = canonical(table_of(user_id=ids))
    assert table["user"].to_pylist() == ["a", "c"]
    assert quarantine.table().to_pylist() == [
        {
            "file": "table", "row": 1, "column": "user_id", "value": "\\xff\\xfe", "reason": "invalid_utf8",
            "text": WORDS[Fault.INVALID_UTF8],
        }
    ]  # fmt: skip


def test_amounts_are_finite_not_negative_and_not_too_large() -> None:
    amounts = pa.array([0.0, -0.0, 1e12, None, -1.0, 1.1e12, float("nan"), float("inf")])
    table, quarantine = canonical(table_of(amount=amounts))
    assert table["amount"].to_pylist() == [0.0, 0.0, 1e12, None]
    assert quarantine.table()["reason"].to_pylist() == ["negative", "too_large", "not_finite", "not_finite"]
    allowed, refused = canonical(table_of(amount=amounts), fields='negative = "allow"')
    assert allowed["amount"].to_pylist() == [0.0, 0.0, 1e12, None, -1.0]
    assert len(refused) == 3


def test_the_first_failing_column_is_reported_once() -> None:
    table, quarantine = canonical(
        table_of(user_id=pa.array(["", "u"]), type=pa.array([None, None], pa.string()), amount=pa.array([-1.0, -1.0]))
    )
    assert len(table) == 0
    refused = quarantine.table()
    assert list(zip(refused["column"].to_pylist(), refused["reason"].to_pylist(), strict=True)) == [
        ("user_id", "empty"),
        ("type", "empty"),
    ]


def test_a_type_of_several_columns_is_joined_and_no_column_is_event() -> None:
    table = table_of(type=pa.array(["a"]), part=pa.array(["b"]))
    assert canonical(table, 'type = ["type", "part"]')[0]["type"].to_pylist() == ["a|b"]
    assert canonical(table, 'type = ""')[0]["type"].to_pylist() == ["event"]


def test_a_position_is_a_whole_number_from_0() -> None:
    table, quarantine = canonical(table_of(pos=pa.array([0, 5, -1, None])), 'time = "position"\nposition = "pos"')
    assert table["time_us"].to_pylist() == [0, 5]
    assert quarantine.table()["reason"].to_pylist() == ["bad_integer", "empty"]


def test_every_fault_has_its_words() -> None:
    assert set(WORDS) == set(Fault) - {Fault.NONE}
