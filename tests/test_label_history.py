"""A label may be corrected, and corrected again; training at a time sees what was known then, whatever came later."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fraud.chunks import labelled_chunks
from fraud.config import Config, parse_config
from fraud.instants import DAY_US, instant_text, instant_us
from fraud.logs import read_log
from fraud.splits import supervise, time_cuts

START_US = instant_us("start", "2026-01-01T00:00:00Z")
KEYS = {"event": "event_id", "session": "session_id", "user": "user_id"}


class Said(NamedTuple):
    """Somebody said on a day that the key is fraud (1) or is not (0)."""

    key: str
    day: int
    label: int


def _at(day: float) -> str:
    return instant_text(START_US + int(day * DAY_US))


def _session(user: str) -> str:
    return f"{user}@{START_US}"


def _write_log(folder: Path, users: Sequence[str], said: Sequence[Said], level: str) -> None:
    """Write a log in which each user makes two transfers, a minute apart, on day 0: one session."""
    events = [
        {"event_id": f"{user}-{place}", "user_id": user, "ts": _at(place / 1440), "type": "transfer"}
        for user in users
        for place in range(2)
    ]
    # One more user, who does something every day: a log ends with its newest event.
    events += [{"event_id": f"z{n}", "user_id": "z", "ts": _at(n), "type": "transfer"} for n in range(60)]
    labels = [{KEYS[level]: key, "fraud": label, "known": _at(day)} for key, day, label in said]
    for name, rows in (("events", events), ("labels", labels)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def _config(folder: Path, level: str, as_of: str | None, *more: str) -> Config:
    text = (
        '[log]\nevents = "events.jsonl"\nevent_id = "event_id"\n'
        f'[labels]\npath = "labels.jsonl"\nkey = ["{KEYS[level]}"]\ncolumn = "fraud"\nlevel = "{level}"\n'
        'known_at = "known"\ndelay = "3d"\n'
        f'[split]\ntrain_until = "{_at(2)}"\nvalid_until = "{_at(4)}"\n'
    )
    overrides = [*more, *([] if as_of is None else [f'split.as_of="{as_of}"'])]
    return parse_config(text, source="test", root=folder, overrides=overrides)


def _training_frauds(config: Config) -> set[str]:
    """Return the users with an event that training takes for a fraud; every event of day 0 must be trained on."""
    log = read_log(config)
    cuts = time_cuts(config.split, log.time_us)
    found: set[str] = set()
    for chunk in labelled_chunks(log, config, as_of_us=cuts.as_of_us):
        assert chunk.labels is not None
        assert chunk.known is not None
        events = chunk.enriched.events
        supervision = supervise(chunk.enriched, chunk.labels, chunk.known, cuts, config, chunk.part_N)
        users_N = events.users[events.user_codes()]
        assert supervision.trains_N[users_N != "z"].all()
        found |= set(users_N[supervision.trains_N & (supervision.label_N == 1)])
    log.close()
    return found


@pytest.mark.parametrize("level", KEYS)
def test_fraud_then_not_then_fraud_again_is_each_when_it_was_said(level: str, tmp_path: Path) -> None:
    key = {"event": "u-1", "session": _session("u"), "user": "u"}[level]
    # Written in another order than said: the date decides, not the place in the file.
    _write_log(tmp_path, ["u", "v"], [Said(key, 30, 1), Said(key, 10, 1), Said(key, 20, 0)], level)
    seen = {day: _training_frauds(_config(tmp_path, level, _at(day))) for day in (9, 10, 19, 20, 29, 30, 50)}
    assert seen == {9: set(), 10: {"u"}, 19: {"u"}, 20: set(), 29: set(), 30: {"u"}, 50: {"u"}}


def test_the_end_of_validation_is_an_as_of_too(tmp_path: Path) -> None:
    _write_log(tmp_path, ["u", "v"], [Said("u-1", 10, 1), Said("u-1", 20, 0), Said("u-1", 30, 1)], "event")
    ends = {day: f'split.valid_until="{_at(day)}"' for day in (9, 10, 19, 20, 30)}
    seen = {day: _training_frauds(_config(tmp_path, "event", None, end)) for day, end in ends.items()}
    assert seen == {9: set(), 10: {"u"}, 19: {"u"}, 20: set(), 30: {"u"}}


def test_of_two_that_speak_at_once_the_later_row_holds(tmp_path: Path) -> None:
    _write_log(
        tmp_path, ["u", "v"], [Said("u-1", 10, 1), Said("u-1", 10, 0), Said("v-1", 10, 0), Said("v-1", 10, 1)], "event"
    )
    assert _training_frauds(_config(tmp_path, "event", _at(12))) == {"v"}


def _last_known(said: Sequence[Said], day: int) -> set[str]:
    """Return the keys that were last called fraud by that day, the slow obvious way."""
    now: dict[str, int] = {}
    for one in sorted(said, key=lambda one: one.day):
        if one.day <= day:
            now[one.key] = one.label
    return {key for key, label in now.items() if label == 1}


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    said=st.lists(
        st.builds(Said, st.sampled_from(["a", "b", "c", "d"]), st.integers(5, 50), st.integers(0, 1)), max_size=20
    ),
    day=st.integers(5, 55),
)
def test_at_any_time_training_sees_the_last_word_until_then(said: list[Said], day: int, tmp_path: Path) -> None:
    _write_log(tmp_path, ["a", "b", "c", "d"], said or [Said("nobody", 5, 1)], "user")
    assert _training_frauds(_config(tmp_path, "user", _at(day))) == _last_known(said, day)
