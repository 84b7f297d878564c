"""Bytes of a request -> checked values: the verdicts of a log's cells, each fault by its path, and nothing echoed."""

from __future__ import annotations

import json
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fraud.cells import JsonCells
from fraud.columns import declared_columns
from fraud.errors import ConfigError
from fraud.quarantine import Quarantine
from fraud.rows import EventRow
from fraud.validation import RawRows, canonical_rows
from service.faults import request_problem
from service.json_body import parsed_body
from service.problems import MAX_ERRORS, Problem, problem_bytes
from service.schemas import LabelRequest, Schema, schema_of
from tests.fake_engine import simulated_config

NOW_US = 1_795_170_000_000_000  # 2026-11-20T10:20:00Z
TS = "2026-11-20T10:00:00Z"
TS_US = 1_795_168_800_000_000
EVERYTHING = """
[log]
user = "customer"
type = "kind"
event_id = "event_id"
session = "visit"
order = "seq"
[fields]
amount = "sum"
numeric = ["age", "balance"]
categorical = ["channel"]
entity = ["payee", "odd: key\'s"]
"""
SCHEMA = schema_of(simulated_config())

NASTY_TEXTS = [
    "", " ", "\t", "\u00a0", "\u2003\u3000", "\u200b", "\ufeff", "\u1680", "\u180e", "\u2028", "\x85",
    "\x1c", "a\x00b", "a\x1f", "\x7f", "a\x80", "a\x9f", "a\xa0", "a\xad", " a", "a ", "a" * 256, "a" * 257,
    "é" * 256, "😀" * 256, "😀" * 257, "\ud800", "a\udfff", "\ue000", "\ufffe", "\U0010ffff", "é", "e\u0301",
    '"', "\\", "'; DROP TABLE users", "null", "=1+1",
]  # fmt: skip
NASTY_NUMBERS = [
    0, -0.0, 0.0, -1, -1e-300, 1e-400, 5e-324, 1e12, 1e12 + 1, 1.0000000001e12, 1e308, 10**400, -(10**400),
    float("nan"), float("inf"), -float("inf"), 2**53 + 1, True, False, "1", [], {}, [1],
]  # fmt: skip
NASTY_TIMES = [
    TS, "2026-11-20t10:00:00z", "2026-11-20 10:00:00Z", "2026-11-20T10:00:00.1Z",
    "2026-11-20T10:00:00.123456789Z", "2026-11-20T10:00:00.1234567891Z", "2026-11-20T10:00:00.Z",
    "2026-11-20T10:00:00+14:00", "2026-11-20T10:00:00-00:00", "2026-11-20T10:00:00+0100",
    "2026-11-20T10:00:00+01", "2026-11-20T10:00:00+24:00", "2026-11-20T10:00:00+01:60",
    "2026-11-20T24:00:00Z", "2026-11-20T23:59:60Z", "2026-11-20T10:60:00Z", "2026-13-01T00:00:00Z",
    "2026-02-29T00:00:00Z", "2024-02-29T00:00:00Z", "2100-02-29T00:00:00Z", "2026-11-31T00:00:00Z",
    "2026-00-01T00:00:00Z", "2026-01-00T00:00:00Z", "0000-01-01T00:00:00Z", "0001-01-01T00:00:00+14:00",
    "1677-09-21T00:12:43Z", "9999-12-31T23:59:59-14:00", "10000-01-01T00:00:00Z", "2026-11-20T10:00:00",
    "2026-11-20", "2026-11-20T10:00Z", "20261120T100000Z", "2026-W47-5T10:00:00Z", " " + TS, TS + " ",
    TS + "\n", "now", "", "٢٠٢٦-11-20T10:00:00Z", "2026-11-20T10:00:00,5Z", "2026-1-20T10:00:00Z",
    "-026-11-20T10:00:00Z", "2026-11-20T10:00:00ZZ", "2026-11-20T1 :00:00Z", "2026-11-20T+1:00:00Z",
    "1999-12-31T23:59:59.999999Z",
]  # fmt: skip


def body(**event: Any) -> bytes:  # Any: JSON
    """Return a request of one good event and of one with these values."""
    good = {"event_id": "e0", "type": "login", "ts": TS}
    return json.dumps({"user_id": "u1", "events": [good, {**good, "event_id": "e1", **event}]}).encode()


def refusal(schema: Schema, request: bytes, now_us: int = NOW_US) -> Problem | None:
    """Return the problem of a score request, None where it is taken."""
    try:
        schema.decode_score(request, now_us)
    except Problem as problem:
        return problem
    return None


def paths(request: bytes, schema: Schema = SCHEMA) -> list[tuple[str, str]]:
    """Return path and code of each fault."""
    problem = refusal(schema, request)
    assert problem is not None
    return [(error.path, error.code) for error in problem.errors]


def is_taken_from_a_log(column: str, cell: object) -> bool:
    """Return the verdict of batch validation on one cell of a log of the simulated bank."""
    config = simulated_config()
    declared = declared_columns(config)
    row: dict[str, object] = {"user_id": "u1", "ts": TS, "type": "login", "event_id": "e1", column: cell}
    cells = {one.column: JsonCells([row.get(one.column)]) for one in declared}
    raw = RawRows(source="log", rows_N=np.zeros(1, dtype=np.int64), cells=cells)
    quarantine = Quarantine()
    quarantine.open_source("log", 0)
    return len(canonical_rows(raw, declared, config, quarantine, first_row=0)) == 1


def test_a_request_becomes_rows_in_the_order_of_the_configuration() -> None:
    schema = schema_of(simulated_config(EVERYTHING))
    event = {
        "event_id": "e1", "type": "pay", "ts": "2026-11-20T11:00:00.1234567+01:00", "seq": 3, "sum": 12, "age": 41.5,
        "payee": "p1", "odd: key's": "d1", "visit": "v1",
    }  # fmt: skip
    request = schema.decode_score(json.dumps({"user_id": "u1", "events": [event], "explain": True}).encode(), NOW_US)
    expected = EventRow("e1", TS_US + 123456, "pay", 12.0, (41.5, None), (None,), ("p1", "d1"), "v1", 3)
    assert request == ("u1", (expected,), True)


def test_a_field_beside_events_holds_for_the_events_that_lack_it() -> None:
    events = [
        {"type": "a", "ts": TS},
        {"type": "b", "ts": TS, "channel": "web"},
        {"type": "c", "ts": TS, "channel": None},
    ]
    request = json.dumps({"user_id": "u1", "channel": "app", "amount": 5, "events": events}).encode()
    rows = SCHEMA.decode_score(request, NOW_US).events
    assert [(row.categorical, row.amount) for row in rows] == [(("app",), 5.0), (("web",), 5.0), ((None,), 5.0)]


def test_a_required_field_may_stand_beside_events() -> None:
    schema = schema_of(simulated_config(EVERYTHING))
    event = {"type": "pay", "ts": TS, "seq": 1}
    assert (
        schema.decode_score(json.dumps({"user_id": "u", "visit": "v", "events": [event]}).encode(), NOW_US)
        .events[0]
        .session
        == "v"
    )
    assert paths(json.dumps({"user_id": "u", "events": [event]}).encode(), schema) == [("events.0.visit", "missing")]
    null = json.dumps({"user_id": "u", "visit": None, "events": [event]}).encode()
    assert paths(null, schema) == [("visit", "wrong_type")]


def test_a_session_that_is_the_user_is_not_asked_for() -> None:
    schema = schema_of(simulated_config('[log]\nsession = "user_id"'))
    assert schema.decode_score(body(), NOW_US).events[0].session == "u1"


def test_a_log_without_types_has_events() -> None:
    schema = schema_of(simulated_config('[log]\ntype = ""'))
    assert (
        schema.decode_score(f'{{"user_id":"u","events":[{{"ts":"{TS}"}}]}}'.encode(), NOW_US).events[0].type == "event"
    )
    assert paths(body(), schema) == [("events.0.type", "wrong_type"), ("events.1.type", "wrong_type")]


def test_a_joined_type_is_given_joined() -> None:
    schema = schema_of(simulated_config('[log]\ntype = ["kind", "step"]'))
    long = "a" * 256 + "|" + "b" * 256
    assert schema.decode_score(body(type=long), NOW_US).events[1].type == long
    assert paths(body(type=long + "b"), schema) == [("events.1.type", "too_long")]


@pytest.mark.parametrize(
    "text",
    [
        '[log]\n[fields]\ncategorical = ["ts"]\n',
        '[log]\nsession = "a"\n[fields]\nentity = ["a"]\n',
        '[log]\n[fields]\nentity = ["a\\\\b"]\n',
    ],
)
def test_a_name_with_two_meanings_is_refused(text: str) -> None:
    config = simulated_config(text.replace("[log]\n", '[log]\ntime = "t"\n'))
    with pytest.raises(ConfigError):
        schema_of(config)


def test_a_log_without_a_clock_cannot_be_served() -> None:
    with pytest.raises(ConfigError, match="clock"):
        schema_of(simulated_config('[log]\ntime = "position"\nposition = "pos"'))


@pytest.mark.parametrize("text", NASTY_TEXTS)
@pytest.mark.parametrize("column", ["user_id", "type", "event_id", "channel", "payee"])
def test_texts_get_the_verdict_of_a_log(column: str, text: str) -> None:
    good = {"event_id": "e1", "type": "login", "ts": TS}
    request = {"user_id": "u1", "events": [good]}
    (request if column == "user_id" else good)[column] = text  # type: ignore[index]
    for raw in (json.dumps(request).encode(), json.dumps(request, ensure_ascii=False).encode("utf-8", "surrogatepass")):
        assert (refusal(SCHEMA, raw) is None) == is_taken_from_a_log(column, text)


@pytest.mark.parametrize("number", NASTY_NUMBERS, ids=lambda number: repr(number)[:12])
def test_amounts_get_the_verdict_of_a_log(number: object) -> None:
    assert (refusal(SCHEMA, body(amount=number)) is None) == is_taken_from_a_log("amount", number)


@pytest.mark.parametrize("text", NASTY_TIMES)
def test_times_get_the_verdict_of_a_log(text: str) -> None:
    problem = refusal(SCHEMA, body(ts=text), now_us=7_258_118_400_000_000)  # the end of 2199
    assert (problem is None) == is_taken_from_a_log("ts", text)


def test_what_is_finer_than_a_microsecond_is_floored() -> None:
    rows = SCHEMA.decode_score(body(ts="2026-11-20T10:00:00.9999999Z"), NOW_US).events
    assert rows[1].time_us == TS_US + 999_999


@pytest.mark.parametrize(
    ("ts", "code"),
    [
        ("1989-12-31T23:59:59.999999Z", "time_out_of_range"),
        ("2026-11-20T10:25:00.000001Z", "time_in_the_future"),
        ("2026-11-20T10:00:00", "no_zone"),
        ("2026-02-30T10:00:00Z", "bad_time"),
    ],
)
def test_times_out_of_range_are_refused_by_name(ts: str, code: str) -> None:
    assert paths(body(ts=ts)) == [("events.1.ts", code)]


@pytest.mark.parametrize("ts", ["1990-01-01T00:00:00Z", "2026-11-20T10:25:00Z"])
def test_the_ends_of_the_range_are_taken(ts: str) -> None:
    assert refusal(SCHEMA, body(ts=ts)) is None


@pytest.mark.parametrize(
    ("raw", "path", "code"),
    [
        (b"", "", "empty_body"),
        (b" \n", "", "empty_body"),
        (b"\xef\xbb\xbf" + body(), "", "byte_order_mark"),
        (body() + b"x", "", "invalid_json"),
        (body() + b"\x00", "", "invalid_json"),
        (body().decode().encode("utf-16"), "", "invalid_utf8"),
        (body().replace(b'"u1"', b'"\xe9"'), "", "invalid_utf8"),
        (body().replace(b'"u1"', b'"\\ud800"'), "user_id", "lone_surrogate"),
        (body().replace(b'"u1"', b"7"), "user_id", "wrong_type"),
        (body().replace(b'"u1"', b"NaN"), "user_id", "wrong_type"),
        (body().replace(b'"u1"', b"nan"), "user_id", "invalid_json"),
        (body(amount=1).replace(b'"amount": 1', b'"amount": nan'), "events.1.amount", "invalid_json"),
        (body(amount=1).replace(b'"amount": 1', b'"amount": NaN'), "events.1.amount", "not_finite"),
        (body(amount=1).replace(b'"amount": 1', b'"amount": -Infinity'), "events.1.amount", "not_finite"),
        (body(amount=1).replace(b'"amount": 1', b'"amount": +Infinity'), "events.1.amount", "invalid_json"),
        (body(amount=1).replace(b'"amount": 1', b'"amount": 1e999'), "events.1.amount", "not_finite"),
        (body(amount=1).replace(b'"amount": 1', b'"amount": ' + b"9" * 5000), "events.1.amount", "not_finite"),
        (body(amount=1).replace(b'"amount": 1', b'"amount": 0x10'), "events.1.amount", "invalid_json"),
        (body(amount="5"), "events.1.amount", "wrong_type"),
        (body(amount=True), "events.1.amount", "wrong_type"),
        (body(amount=-1), "events.1.amount", "negative"),
        (body(amount=2e12), "events.1.amount", "too_large"),
        (body(ts=1795168800), "events.1.ts", "wrong_type"),
        (body(type=[["x"]]), "events.1.type", "wrong_type"),
        (body(event_id=5), "events.1.event_id", "wrong_type"),
        (body(event_id=None), "events.1.event_id", "wrong_type"),
        (body(model_version=5), "events.1.model_version", "unknown_key"),
        (b"[" * 200_000, "", "too_deep"),
        (b'{"user_id":' + b"[" * 200_000, "", "too_deep"),
        (b"[]", "", "wrong_type"),
        (b'{"user_id":"u","events":[]}', "events", "too_few"),
        (b'{"user_id":"u","events":{}}', "events", "wrong_type"),
        (b'{"user_id":"u","events":[null]}', "events.0", "wrong_type"),
        (body().replace(b'"user_id"', b'"explain":1,"user_id"'), "explain", "wrong_type"),
    ],
)  # fmt: skip
def test_a_fault_is_named_by_its_path(raw: bytes, path: str, code: str) -> None:
    assert (path, code) in paths(raw)


@pytest.mark.parametrize(
    ("raw", "path"),
    [
        (body().replace(b'"user_id"', b'"user_id": "a", "user_id"'), "user_id"),
        (body().replace(b'"user_id"', b'"\\u0075ser_id": "a", "user_id"'), "user_id"),
        (body().replace(b'"user_id"', b'"events": [], "user_id"'), "events"),
        (body(amount=1).replace(b'"amount"', b'"amount": null, "amount"'), "events.1.amount"),
        (body(amount=1).replace(b'"amount"', b'"amount" : 7, "amount"'), "events.1.amount"),
        (body(channel="\\u0022").replace(b'\\\\u0022"', b'\\u0022", "channel": "\\u0022"'), "events.1.channel"),
        (body(channel="web").replace(b'"web"', b'"we\\u0022b", "channel": "\\u0022"'), "events.1.channel"),
    ],
)
def test_a_key_that_stands_twice_is_refused(raw: bytes, path: str) -> None:
    assert (path, "duplicate_key") in paths(raw)


def test_a_value_may_look_like_a_key() -> None:
    assert refusal(SCHEMA, body(channel='"channel":', payee='\\u0022"type"', device="null")) is None


def test_a_value_beside_events_is_checked_even_where_no_event_lacks_it() -> None:
    event = {"type": "a", "ts": TS, "channel": "web"}
    for channel in ("\x9b", " ", ""):
        raw = json.dumps({"user_id": "u", "channel": channel, "events": [event]}).encode()
        assert [path for path, _ in paths(raw)] == ["channel"]


def test_at_most_ten_faults_are_told_and_no_input_with_them() -> None:
    secret = "4111-1111-1111-1111 of J. Doe"
    events = [{"type": 5, "ts": secret, secret: secret, "channel": [secret]}] * 50
    problem = refusal(SCHEMA, json.dumps({"user_id": "", "events": events}).encode())
    assert problem is not None
    assert problem.status == 422
    assert len(problem.errors) == MAX_ERRORS
    assert b"4111" not in problem_bytes(problem)
    assert b"Doe" not in problem_bytes(problem)


def test_1000_events_are_taken_and_1001_are_not() -> None:
    one = f'{{"type":"a","ts":"{TS}"}}'
    assert (
        len(SCHEMA.decode_score(f'{{"user_id":"u","events":[{",".join([one] * 1000)}]}}'.encode(), NOW_US).events)
        == 1000
    )
    assert paths(f'{{"user_id":"u","events":[{",".join([one] * 1001)}]}}'.encode()) == [("events", "too_many")]


def test_a_repeated_event_id_counts_once_and_conflicts_if_it_differs() -> None:
    good = {"event_id": "e0", "type": "a", "ts": TS, "amount": 5}
    same = {"amount": 5.0, "ts": "2026-11-20T11:00:00+01:00", "type": "a", "event_id": "e0", "channel": None}
    other = {**good, "amount": 6}
    without = {"type": "a", "ts": TS}
    request = {"user_id": "u", "events": [good, without, same, without]}
    assert len(SCHEMA.decode_score(json.dumps(request).encode(), NOW_US).events) == 3
    request["events"] = [without, good, other]
    assert paths(json.dumps(request).encode()) == [("events.2.event_id", "conflicting_duplicate")]


def test_events_that_are_kept_need_an_event_id() -> None:
    with pytest.raises(Problem) as raised:
        SCHEMA.decode_events(f'{{"user_id":"u","events":[{{"type":"a","ts":"{TS}"}}]}}'.encode(), NOW_US)
    assert [(e.path, e.code) for e in raised.value.errors] == [("events.0.event_id", "missing")]
    assert SCHEMA.decode_events(body(), NOW_US).events[0].event_id == "e0"


def test_a_bad_session_of_a_batch_costs_the_others_nothing() -> None:
    requests = SCHEMA.decode_batch(b'{"sessions": [%b, %b, %b]}' % (body(), body(amount=-1), body()), NOW_US)
    assert requests[0] == requests[2] == SCHEMA.decode_score(body(), NOW_US)
    assert isinstance(requests[1], Problem)
    assert [error.path for error in requests[1].errors] == ["sessions.1.events.1.amount"]


@pytest.mark.parametrize(
    ("raw", "path", "code"),
    [
        (b'{"sessions": []}', "sessions", "too_few"),
        (b'{"sessions": {}}', "sessions", "wrong_type"),
        (b'{"sessions": [], "sessions": [%b]}' % body(), "sessions", "duplicate_key"),
        (b'{"sessions": [%b], "x": 1}' % body(), "x", "unknown_key"),
        (b'{"sessions": [%b' % body(), "sessions.0", "invalid_json"),
        (b'{"sessions": [%b]}' % body().replace(b'"u1"', b"NaN"), "sessions.0.user_id", "wrong_type"),
        (b"{}", "sessions", "missing"),
        (b'{"sessions": [%b]}' % b",".join([body()] * 501), "sessions", "too_many"),
    ],
)
def test_a_bad_batch_is_refused_as_a_whole(raw: bytes, path: str, code: str) -> None:
    with pytest.raises(Problem) as raised:
        SCHEMA.decode_batch(raw, NOW_US)
    assert (path, code) in [(error.path, error.code) for error in raised.value.errors]


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ({"user_id": "u", "event_id": "e", "label": 1}, LabelRequest("u", "e", None, 1, 0, "unknown")),
        ({"user_id": "u", "label": False, "source": "s"}, LabelRequest("u", None, None, 0, 0, "s")),
        ({"session_id": "u@5", "label": 0, "known_at": TS}, LabelRequest(None, None, "u@5", 0, TS_US, "unknown")),
    ],
)
def test_a_label_names_an_event_a_session_or_a_user(raw: dict[str, Any], expected: LabelRequest) -> None:
    assert SCHEMA.decode_label(json.dumps(raw).encode(), NOW_US) == expected


@pytest.mark.parametrize(
    ("raw", "path", "code"),
    [
        ({"label": 1}, "user_id", "no_subject"),
        ({"event_id": "e", "label": 1}, "user_id", "no_subject"),
        ({"user_id": "u", "session_id": "s", "label": 1}, "session_id", "no_subject"),
        ({"user_id": "u", "label": 2}, "label", "bad_label"),
        ({"user_id": "u", "label": 1.0}, "label", "bad_label"),
        ({"user_id": "u", "label": None}, "label", "bad_label"),
        ({"user_id": "u"}, "label", "missing"),
        ({"user_id": " ", "label": 1}, "user_id", "blank"),
        ({"user_id": "u", "label": 1, "known_at": "2027-01-01T00:00:00Z"}, "known_at", "time_in_the_future"),
        ({"user_id": "u", "label": 1, "known_at": None}, "known_at", "wrong_type"),
        ({"user_id": "u", "label": 1, "by": "me"}, "by", "unknown_key"),
    ],
)
def test_a_bad_label_is_named(raw: dict[str, Any], path: str, code: str) -> None:
    with pytest.raises(Problem) as raised:
        SCHEMA.decode_label(json.dumps(raw).encode(), NOW_US)
    assert [(error.path, error.code) for error in raised.value.errors] == [(path, code)]


def test_a_label_with_a_key_twice_is_refused() -> None:
    with pytest.raises(Problem) as raised:
        SCHEMA.decode_label(b'{"user_id":"u","label":1,"label":0}', NOW_US)
    assert [(error.path, error.code) for error in raised.value.errors] == [("label", "duplicate_key")]


values = st.one_of(
    st.sampled_from(NASTY_TEXTS),
    st.sampled_from(NASTY_NUMBERS),
    st.sampled_from(NASTY_TIMES),
    st.sampled_from(["web", "e0", "e1", 12.5, None, TS, [], {}, [[]], {"a": 1}]),
    st.text(max_size=5),
)
events = st.fixed_dictionaries(
    {"type": st.sampled_from(["login", "pay"]) | values, "ts": st.just(TS) | values},
    optional=dict.fromkeys(("event_id", "amount", "channel", "payee", "device", "user_id", "x"), values),
)
requests = st.fixed_dictionaries(
    {"user_id": st.just("u1") | values, "events": st.lists(events | values, max_size=3) | values},
    optional={"explain": st.booleans() | values, "channel": values, "amount": values, "type": values},
)


@settings(max_examples=1500)
@given(request=requests, is_ascii=st.booleans(), is_compact=st.booleans())
def test_the_quick_and_the_slow_reading_agree(request: object, is_ascii: bool, is_compact: bool) -> None:
    text = json.dumps(request, ensure_ascii=is_ascii, separators=(",", ":") if is_compact else None)
    raw = text.encode("utf-8", "surrogatepass")
    problem = refusal(SCHEMA, raw)
    try:
        slow = request_problem(parsed_body(raw), SCHEMA.fields, is_id_required=False, now_us=NOW_US)
    except Problem as refused:
        slow = refused
    if problem is None:
        assert slow is None
    elif [error.code for error in problem.errors] != ["conflicting_duplicate"]:
        assert slow is not None
        assert problem.errors == slow.errors


@settings(max_examples=300)
@given(raw=st.binary(max_size=40) | st.text(max_size=40).map(lambda text: text.encode("utf-8", "replace")))
def test_any_bytes_get_a_problem_or_a_request(raw: bytes) -> None:
    problem = refusal(SCHEMA, raw)
    assert problem is not None
    assert problem.status in (400, 422)


@pytest.mark.parametrize(
    "raw",
    [
        b"[" * 1_000_000,
        b'{"user_id":"u","events":[' + b"{}," * 330_000 + b"{}]}",
        b'{"user_id":"u","events":[' + b"[]," * 330_000 + b"{}]}",
        b'{"user_id":"u","x":[' + b"{}," * 330_000 + b"{}]}",
        b'{"user_id":"u","events":[{' + b",".join(b'"%d":1' % i for i in range(80_000)) + b"}]}",
        b'{"user_id":"u","events":[{' + b'"amount":1,' * 90_000 + b'"type":"a","ts":"' + TS.encode() + b'"}]}',
        b'{"user_id":"u","events":["' + b"\\u0022" * 160_000 + b'"]}',
        b'{"user_id":"u","events":[' + b"1.5," * 240_000 + b" nan]}",
        b'{"user_id":"' + b"u" * 1_000_000 + b'","events":[]}',
    ],
    ids=["brackets", "objects", "lists", "unknown", "keys", "repeats", "escapes", "broken", "long"],
)
def test_a_megabyte_of_nonsense_is_refused_quickly(raw: bytes) -> None:
    began_s = time.process_time()
    assert refusal(SCHEMA, raw) is not None
    assert time.process_time() - began_s < 0.25  # about 0.05 on a quiet machine
