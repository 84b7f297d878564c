"""Reasons say what was in the log, in the words of the log, and only what raised the score."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fraud.enrich import Enriched, empty_carry, enrich
from fraud.entities import RISK_NAMES
from fraud.events import Events, Text, text_from_objects
from fraud.explain import Explained
from fraud.reasons import duration_words, event_words, reasons
from tests.made_events import made_config, spec_of

CONFIG = made_config()
_TYPES = [
    "login",
    "transfer_out",
    "transfer_out",
    "transfer_out",
    "credit_score_check",
    "receive_transfer",
    "transfer_out",
]
_SECONDS = [0, 100, 200, 300, 86_400, 86_430, 86_440]
_AMOUNTS = [np.nan, 10.0, 10.0, 10.0, np.nan, 15.0, 135.0]
_PAYEES = [None, "p1", "p1", "p1", None, None, "p2"]


def _enriched(*, has_clock: bool = True) -> Enriched:
    events = Events(
        users=np.array(["u"], dtype=object),
        user_starts=np.array([0, len(_TYPES)]),
        time_us=np.array(_SECONDS) * 10**6,
        has_clock=has_clock,
        zone=None,
        type=text_from_objects(np.array(_TYPES, dtype=object)),
        amount=np.array(_AMOUNTS),
        numeric={},
        categorical={},
        entity={"payee": text_from_objects(np.array(_PAYEES, dtype=object))},
        session=None,
        row=np.arange(len(_TYPES)),
    )
    return enrich(events, empty_carry(1, spec_of(CONFIG)), spec_of(CONFIG))[0]


def _explained(contributions: list[float], *, known_frauds: float = 0.0) -> Explained:
    n_events = len(contributions)
    risk = np.zeros((n_events, len(RISK_NAMES)))
    risk[-1, RISK_NAMES.index("known_frauds_28d")] = known_frauds
    return Explained(
        rows_D=np.array([n_events - 1]),
        logit_D=np.array([1.0]),
        starts_D1=np.array([0, n_events]),
        row_C=np.arange(n_events),
        contribution_C=np.array(contributions),
        risk_C={"payee": risk},
    )


def _texts(enriched: Enriched, explained: Explained) -> list[str]:
    (told,) = reasons(enriched, explained)
    return [reason.text for reason in told]


def test_the_strongest_come_first_and_speak_of_type_and_time() -> None:
    assert _texts(_enriched(), _explained([0.1, 0, 0, 0, 2.0, 1.0, 0])) == [
        "credit score check 40 s before the transfer out",
        "receive transfer 10 s before the transfer out",
        "login 24 h before the transfer out",
    ]


def test_the_decision_itself_is_told_by_its_facts() -> None:
    (told,) = reasons(_enriched(), _explained([0, 0, 0, 0, 0, 0, 1.5], known_frauds=2.0))
    (reason,) = told
    facts = "payee with 2 known frauds in 28 days, payee new to this user, amount 12x the user's usual"
    assert reason.text == f"the transfer out ({facts}) itself"
    assert (reason.code, reason.event_index, reason.contribution) == ("known_fraud", 6, 1.5)


def test_what_lowers_the_score_or_hardly_raises_it_is_no_reason() -> None:
    assert _texts(_enriched(), _explained([-3.0, 0.04, 0, 0, 0, 0, 0.049])) == []


def test_at_most_three_reasons_are_given() -> None:
    assert len(_texts(_enriched(), _explained([1.0] * 7))) == 3


def test_without_a_clock_events_are_counted_instead() -> None:
    assert _texts(_enriched(has_clock=False), _explained([0, 0, 0, 0, 2.0, 1.0, 0])) == [
        "credit score check 2 events before the transfer out",
        "receive transfer 1 event before the transfer out",
    ]


def test_events_of_one_instant_are_right_before() -> None:
    enriched = _enriched()
    times = enriched.events.time_us.copy()
    times[5] = times[6]
    enriched = replace(enriched, events=replace(enriched.events, time_us=times))
    assert _texts(enriched, _explained([0, 0, 0, 0, 0, 1.0, 0])) == ["receive transfer right before the transfer out"]


def test_to_a_user_without_a_past_nothing_is_called_new() -> None:
    enriched = _enriched()
    events = replace(enriched.events, entity={"payee": Text(np.zeros(7, np.int32), np.array(["p"], dtype=object))})
    enriched = enrich(events, empty_carry(1, spec_of(CONFIG)), spec_of(CONFIG))[0]
    assert event_words(enriched, 0, {}, 0) == "login"


def test_no_amount_is_compared_with_fewer_than_three_others() -> None:
    enriched = _enriched()
    assert enriched.past_count_N is not None
    few = replace(enriched, past_count_N=np.minimum(enriched.past_count_N, 2))
    assert "usual" in event_words(enriched, 6, {}, 0)
    assert "usual" not in event_words(few, 6, {}, 0)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.2, "under 1 s"),
        (1, "1 s"),
        (89, "89 s"),
        (90, "2 min"),
        (3600, "60 min"),
        (5400, "2 h"),
        (47 * 3600, "47 h"),
        (48 * 3600, "2 days"),
        (83_000 * 86_400, "83,000 days"),
    ],
)
def test_a_duration_has_the_unit_a_person_would_use(seconds: float, words: str) -> None:
    assert duration_words(round(seconds * 1e6)) == words
