"""Who reports fraud is watched: a sudden flood is held back, and what a source always does is not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fraud.config import parse_config
from fraud.errors import DataError
from fraud.instants import instant_us
from fraud.label_guard import WEEK_US, SourceReport, watch_sources
from fraud.quarantine import Quarantine
from fraud.readers import read_labels

AS_OF_US = instant_us("as_of", "2026-06-03T00:00:00Z")
Counts = npt.NDArray[np.int64]


def _table(**counts_by_source: Sequence[int]) -> pa.Table:
    """Return a label table in which each source reports so many frauds a week, the last week ending at the as-of.

    A source may begin later than another: its counts end together with theirs. An honest row begins the table, so that
    the first week of all is whole.
    """
    n_weeks = max(map(len, counts_by_source.values()))
    rows: list[tuple[str, int, int, str | None]] = [("first", 0, AS_OF_US - n_weeks * WEEK_US - 1, None)]
    for source, counts in counts_by_source.items():
        for weeks_ago, n_frauds in enumerate(reversed(counts)):
            rows += [
                (f"{source}-{weeks_ago}-{i}", 1, AS_OF_US - weeks_ago * WEEK_US - i * (WEEK_US // n_frauds), source)
                for i in range(n_frauds)
            ]
    return _of_rows(rows)


def _of_rows(rows: Sequence[tuple[str, int, int | None, str | None]]) -> pa.Table:
    names = {"event_id": pa.string(), "label": pa.int8(), "known_us": pa.int64(), "source": pa.string()}
    columns = zip(*rows, strict=True)
    return pa.table({name: pa.array(cells, kind) for (name, kind), cells in zip(names.items(), columns, strict=True)})


def _watched(table: pa.Table, **options: Any) -> dict[str, SourceReport]:  # Any: those of `watch_sources`
    return {report.source: report for report in watch_sources(table, as_of_us=AS_OF_US, **options)}


USUAL = (58, 66, 61, 49, 63, 70, 57, 61, 64, 52, 60, 67)


def test_a_sudden_flood_is_held_back_and_said_in_words() -> None:
    reports = _watched(_table(app_form=[*USUAL, 412], branch=[*USUAL, 66]))
    flood, quiet = reports["app_form"], reports["branch"]
    assert flood.text == "source app_form sent 412 fraud labels in the week to 3 June 2026, 61 ± 8 before: held back"
    assert flood.held_from_us == AS_OF_US - WEEK_US
    assert flood.n_frauds_W == (*USUAL, 412)
    assert quiet.text == "source branch sent 66 fraud labels in the week to 3 June 2026, 61 ± 8 before"
    assert not quiet.is_held_back


@pytest.mark.parametrize("n_history", [4, 12])
def test_what_lies_just_below_three_sigma_passes_and_just_above_is_held(n_history: int) -> None:
    # Weeks that are all alike: the spread of Poisson counts, and no smaller one is believed. What the next week may
    # be is known the less, the fewer there were.
    reports = {n: _watched(_table(app=[60] * n_history + [n]))["app"] for n in range(60, 120)}
    edge = 2 * np.sqrt(60 + 3 / 8) + 3 * np.sqrt(1 + 1 / n_history)
    assert {n: report.is_held_back for n, report in reports.items()} == {
        n: bool(2 * np.sqrt(n + 3 / 8) > edge) for n in reports
    }


def test_a_flood_is_no_history_for_the_next_and_stays_watched_until_somebody_trusted_it() -> None:
    table = _table(app=[*USUAL, 400, 390, 395, 62])
    report = _watched(table)["app"]
    assert report.held_from_us == AS_OF_US - 4 * WEEK_US
    assert "held back, with 2 more of its weeks" in report.text
    assert not _watched(table, trusted_until_us=AS_OF_US - WEEK_US)["app"].is_held_back
    # Of several it is the most unusual that is told.
    assert (report.n_frauds, report.until_us) == (400, AS_OF_US - 3 * WEEK_US)
    # What was trusted is a history like any other, of which one odd week does not count.
    once = _table(app=[*USUAL, 400, 390, 62])
    assert _watched(once, trusted_until_us=AS_OF_US - 2 * WEEK_US)["app"].held_from_us == AS_OF_US - 2 * WEEK_US
    # Nobody trusted anything for five months: all of it is watched that has a history before it.
    long_ago = _table(app=[*USUAL, 400, *USUAL, *USUAL[:8]])
    assert _watched(long_ago, trusted_until_us=0)["app"].held_from_us == AS_OF_US - 21 * WEEK_US


@pytest.mark.parametrize(
    ("counts", "why"),
    [
        ([0, 0, 0, 210] * 3 + [0, 0, 0, 190], "a file once a month"),
        ([5, 20, 41, 55, 60, 63, 58, 61], "reports of a bank's first weeks come in slowly"),
        ([int(60 * 1.03**week) for week in range(20)], "a business that grows by 3 % a week"),
        ([0] * 14 + [3], "hardly ever a fraud"),
        ([60] * 5 + [240] + [60] * 10, "one flood, long ago and accepted"),
    ],
)
def test_what_a_source_always_does_is_not_held(counts: list[int], why: str) -> None:
    assert not _watched(_table(app=counts))["app"].is_held_back, why


def test_one_accepted_flood_in_the_history_does_not_hide_the_next() -> None:
    assert _watched(_table(app=[*USUAL[:5], 300, *USUAL[5:11], 130]))["app"].is_held_back


def test_what_a_source_sent_long_ago_says_nothing_of_today() -> None:
    assert _watched(_table(app=[*([400] * 12), *USUAL, 130]))["app"].is_held_back


def test_a_source_nobody_ever_heard_of_is_held_when_it_begins_with_a_flood() -> None:
    assert not _watched(_table(app=USUAL, new=[3]))["new"].is_held_back
    report = _watched(_table(app=USUAL, new=[40]))["new"]
    assert report.text == "source new sent 40 fraud labels in the week to 3 June 2026, 0 ± 1 before: held back"


def test_a_table_of_a_few_weeks_says_that_it_is_too_young() -> None:
    report = _watched(_table(app=[60, 61, 300]))["app"]
    assert (report.expected, report.sigma, report.z, report.is_held_back) == (None, None, None, False)
    assert "too young to be watched" in report.text


def test_without_sources_dates_or_frauds_there_is_nothing_to_watch() -> None:
    table = _table(app=[*USUAL, 412])
    assert watch_sources(table.drop_columns(["source"]), as_of_us=AS_OF_US) == ()
    assert watch_sources(table.drop_columns(["known_us"]), as_of_us=AS_OF_US) == ()
    assert watch_sources(table.slice(0, 1), as_of_us=AS_OF_US) == ()
    assert watch_sources(table.slice(0, 0), as_of_us=AS_OF_US) == ()


def test_a_case_counts_when_a_source_calls_it_fraud_for_the_first_time() -> None:
    usual = _table(app=[*USUAL, 60])
    # All 60 of the newest week withdrawn, and reported again by the same source: no second fraud each.
    newest = usual.filter(pc.greater(usual["known_us"], AS_OF_US - WEEK_US))
    withdrawn = newest.set_column(1, "label", pa.nulls(60, pa.int8()).fill_null(0))
    (report,) = watch_sources(pa.concat_tables([usual, withdrawn, newest, newest]), as_of_us=AS_OF_US)
    assert report.n_frauds_W == (*USUAL, 60)


def test_what_became_known_after_the_as_of_is_not_seen() -> None:
    table = _table(app=[*USUAL, 412])
    earlier = {r.source: r for r in watch_sources(table, as_of_us=AS_OF_US - WEEK_US)}
    assert earlier["app"].n_frauds_W[-1] == USUAL[-1]
    assert not earlier["app"].is_held_back


def test_rows_that_name_nobody_are_one_source_and_undated_ones_are_said() -> None:
    rows: list[tuple[str, int, int | None, str | None]] = [("first", 0, AS_OF_US - 13 * WEEK_US - 1, None)]
    rows += [(f"e{i}", 1, AS_OF_US - i * WEEK_US // 10, None) for i in range(130)]
    rows += [(f"undated{i}", 1, None, None) for i in range(7)]
    report = _watched(_of_rows(rows))["unknown"]
    assert report.n_frauds_W == (10,) * 13
    assert report.text.endswith("(7 more without a date are not watched)")


@settings(max_examples=40, deadline=None)
@given(
    counts=st.lists(st.integers(0, 80), min_size=6, max_size=20),
    more=st.integers(0, 300),
    seed=st.integers(0, 2**32 - 1),
)
def test_more_frauds_are_never_less_suspect_and_the_order_of_rows_says_nothing(
    counts: list[int], more: int, seed: int
) -> None:
    table = _table(app=[*counts, 1])
    before = _watched(table, trusted_until_us=AS_OF_US - WEEK_US)["app"]
    flooded = _table(app=[*counts, 1 + more])
    shuffled = flooded.take(np.random.default_rng(seed).permutation(len(flooded)))
    after = _watched(shuffled, trusted_until_us=AS_OF_US - WEEK_US)["app"]
    assert before.z is not None
    assert after.z is not None
    assert after.z >= before.z
    assert after == _watched(flooded, trusted_until_us=AS_OF_US - WEEK_US)["app"]


QUIET: dict[str, Callable[[np.random.Generator, int], Counts]] = {
    "Poisson, 3 a week": lambda rng, n: rng.poisson(3, n),
    "Poisson, 20 a week": lambda rng, n: rng.poisson(20, n),
    "20 a week, rate varies by 15 %": lambda rng, n: rng.poisson(20 * rng.gamma(44, 1 / 44, n)),
    "20 a week, rate varies by 30 %": lambda rng, n: rng.poisson(20 * rng.gamma(11, 1 / 11, n)),
}


@pytest.mark.parametrize("kind", QUIET)
def test_quiet_sources_are_hardly_ever_held(kind: str) -> None:
    # 3 sigma of a normal variable: 1.35 of 1,000 weeks. Measured here: 0 to 3 of 1,000.
    rng = np.random.default_rng(5)
    table = _table(**{f"s{s}": QUIET[kind](rng, 13).tolist() for s in range(1000)})
    held = [r for r in watch_sources(table, as_of_us=AS_OF_US, trusted_until_us=AS_OF_US - WEEK_US) if r.is_held_back]
    assert len(held) <= 5


CONFIG = (
    "[log]\n[labels]\npath = 'labels'\nkey = ['event_id']\ncolumn = 'fraud'\nknown_at = 'known'\nsource = 'reporter'\n"
)


def test_the_column_of_the_source_is_read_from_every_label_file(tmp_path: Path) -> None:
    config = parse_config(CONFIG, source="test", root=tmp_path)
    (tmp_path / "labels").mkdir()
    header = "event_id,fraud,known,reporter\n"
    (tmp_path / "labels" / "a.csv").write_text(
        f"{header}e1,1,2026-06-01T00:00:00Z,branch\ne2,1,2026-06-01T00:00:00Z,\n"
    )
    (tmp_path / "labels" / "b.jsonl").write_text('{"event_id": "e3", "fraud": 0, "known": null, "reporter": "app"}\n')
    table = read_labels(config, Quarantine())
    assert table.column_names == ["event_id", "label", "known_us", "source"]
    assert table["source"].to_pylist() == ["branch", None, "app"]
    (tmp_path / "labels" / "c.csv").write_text("event_id,fraud,known\ne1,1,2026-06-01T00:00:00Z\n")
    with pytest.raises(DataError, match=r"no column 'reporter' \(labels.source\)"):
        read_labels(config, Quarantine())
