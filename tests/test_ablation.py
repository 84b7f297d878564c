"""What order and time are worth, on logs where that is known; and what a history keeps of the log it comes from."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fraud.ablation import INTACT, ORDER, TIME, Worth, open_histories, prepare_variant, shuffled, worth_of
from fraud.config import Config, parse_config
from fraud.contexts import context_rows
from fraud.events import Events
from fraud.histories import Keys, Sample, histories
from fraud.learning import fit_model
from fraud.logs import Log, from_table
from fraud.metrics import average_precision
from tests.made_events import enriched_whole, made_config, made_events

N_EVENTS = 12
CONFIG = f"""
[log]
events = "unused"
[labels]
column = "fraud"
level = "user"
[decisions]
min_events = {N_EVENTS}
[sessions]
max_events = 16
[split]
by = "column"
column = "part"
[model]
name = "boosting"
trees = 60
"""
ALL = Sample(10**6, 10**6, 10**6)


def _keys(n_users: int, seed: int) -> Keys:
    return np.random.default_rng(seed).integers(0, 2**63, n_users).astype(np.uint64)


def _planted(kind: str, n_users: int = 3000) -> pa.Table:
    """Return users of 12 events, every second one a fraud. "order": the bags and times of a pair are equal, in fraud
    "check" stands before "transfer". "pace": the types of a pair are equal, a fraud's last gaps are seconds, not
    minutes. "nothing": labels by a coin."""
    rng = np.random.default_rng(5)
    label_U = np.arange(n_users) % 2
    types = np.array(["check", "login", "transfer", "view"])
    codes_UT = np.full((n_users, N_EVENTS), 3)
    gaps_s_UT = np.full((n_users, N_EVENTS), 60)
    for u in range(0, n_users, 2):
        filler = rng.choice([1, 3], size=N_EVENTS - 3)
        first, second = np.sort(rng.choice(N_EVENTS - 2, size=2, replace=False))
        for v, (a, b) in ((u, (2, 0)), (u + 1, (0, 2) if kind == "order" else (2, 0))):
            codes_UT[v, :-1] = np.insert(np.insert(filler, first, a), second, b)
        gaps_s_UT[u : u + 2] = rng.integers(30, 90, N_EVENTS)
    if kind == "pace":
        gaps_s_UT[1::2, -3:] = rng.integers(1, 5, (n_users // 2, 3))
    if kind == "nothing":
        label_U = rng.permutation(label_U)
    time_us = 1_700_000_000_000_000 + np.cumsum(gaps_s_UT, axis=1) * 10**6
    part_U = np.array(["train", "train", "train", "valid", "test"])[np.arange(n_users) // 2 % 5]
    return pa.table(
        {
            "user_id": [f"u{u:05d}" for u in range(n_users) for _ in range(N_EVENTS)],
            "ts": pa.array(time_us.ravel()).cast(pa.timestamp("us", tz="UTC")),
            "type": types[codes_UT.ravel()],
            "fraud": np.repeat(label_U, N_EVENTS),
            "part": np.repeat(part_U, N_EVENTS),
        }
    )


def _worth(table: pa.Table, folder: Path) -> Worth:
    config = parse_config(CONFIG, source="test", root=folder)
    chosen = histories(from_table(table, config), config, ALL)
    fits = {}
    for variant in (INTACT, ORDER, TIME):
        opened = prepare_variant(chosen, variant, config, folder / variant, progress=lambda *_: None)
        fits[variant] = [fit_model(opened.prepared, config, resume=None, report=lambda _: None)]
    return worth_of(fits, open_histories(folder / INTACT), config)


@pytest.mark.parametrize(("kind", "worth", "worthless"), [("order", ORDER, TIME), ("pace", TIME, ORDER)])
def test_what_carries_the_label_is_worth_nearly_all_and_the_other_nothing(
    kind: str, worth: str, worthless: str, tmp_path: Path
) -> None:
    found = _worth(_planted(kind), tmp_path)
    assert found.intact_ap is not None
    assert found.intact_ap > 0.85
    lost, kept = found.without[worth], found.without[worthless]
    assert lost is not None
    assert kept is not None
    assert lost[0] < 0.6  # half of the examples are frauds: chance is .5
    assert lost[1].ci[0] > 0.25
    assert -0.05 < kept[1].diff < 0.05
    assert any(line.startswith(f"{worth.upper()} is worth {lost[1].diff:.3f} AP") for line in found.words("boosting"))


def test_of_shuffled_labels_neither_is_worth_anything(tmp_path: Path) -> None:
    found = _worth(_planted("nothing"), tmp_path)
    for one in found.without.values():
        assert one is not None
        assert one[1].ci[0] < 0 < one[1].ci[1]
    assert all("to boosting does not show on these data" in line for line in found.words("boosting"))


@given(st.integers(0, 30), st.integers(0, 5))
def test_shuffling_keeps_each_users_bag_times_and_last_event(seed: int, key: int) -> None:
    events = made_events(seed, n_users=4, max_count=12)
    after = shuffled(events, _keys(4, key))
    np.testing.assert_array_equal(after.time_us, events.time_us)
    for u in range(4):
        mine = slice(int(events.user_starts[u]), int(events.user_starts[u + 1]))
        before_it, after_it = _payload(events)[mine], _payload(after)[mine]
        assert Counter(before_it) == Counter(after_it)
        assert before_it[-1:] == after_it[-1:]


def test_shuffling_draws_every_order_alike() -> None:
    """Of three events before the last, each of the six orders comes up a sixth of the time."""
    n_users = 6000
    events = made_events(0, n_users=1, max_count=40)
    rows = np.tile(np.arange(4), n_users)
    four = replace(
        events,
        users=np.array([str(u) for u in range(n_users)], dtype=object),
        user_starts=np.arange(n_users + 1) * 4,
        time_us=events.time_us[rows],
        type=events.type.take(rows),
        amount=rows.astype(np.float64),
        categorical={},
        entity={},
        row=np.arange(len(rows)),
    )
    after = shuffled(four, _keys(n_users, 1)).amount
    assert after is not None
    orders = Counter(map(tuple, after.reshape(n_users, 4).astype(int).tolist()))
    assert len(orders) == 6
    # The standard deviation of each count is 29.
    assert all(abs(count - n_users / 6) < 150 for count in orders.values())


def _payload(events: Events) -> list[tuple[object, ...]]:
    assert events.amount is not None
    columns = [events.type.to_objects(), np.nan_to_num(events.amount, nan=-1.0)]
    columns += [column.to_objects() for column in (*events.categorical.values(), *events.entity.values())]
    return list(zip(*(column.tolist() for column in columns), strict=True))


def _made_log(seed: int) -> tuple[Events, Log, Config]:
    """Return random events with amounts and entities as a labelled log."""
    config = made_config(
        "labels.column=fraud", "split.by=column", "split.column=part", "model.trees=5", "log.event_id=event_id"
    )
    events = made_events(seed, n_users=30)
    rng = np.random.default_rng(seed)
    users = events.users[events.user_codes()]
    table = pa.table(
        {
            "user_id": pa.array(users.tolist(), pa.string()),
            "event_id": [f"{n:06d}" for n in range(len(events))],
            "ts": pa.array(events.time_us).cast(pa.timestamp("us", tz="UTC")),
            "type": events.type.to_objects().tolist(),
            "amount": pa.array(events.amount, from_pandas=True),
            "channel": events.categorical["channel"].to_objects().tolist(),
            "payee": events.entity["payee"].to_objects().tolist(),
            "fraud": rng.integers(0, 2, len(events)),
            "part": rng.choice(["train", "valid", "test"], len(events)),
        }
    )
    log = from_table(table, config)
    return log.partitions[0]().events, log, config


def test_an_intact_history_is_the_context_of_its_example() -> None:
    events, log, config = _made_log(3)
    chosen = histories(log, config, ALL)
    (chunk,) = chosen.chunks
    enriched = enriched_whole(events, config)
    start_N = context_rows(enriched, config.sessions.scope, config.sessions.max_events)
    assert chunk.events.n_users == len(events)  # each event decides and is labelled
    expected, found = _payload(events), _payload(chunk.events)
    for n, (first, last) in enumerate(zip(chunk.events.user_starts[:-1], chunk.events.user_starts[1:], strict=True)):
        assert found[first:last] == expected[start_N[n] : n + 1]
    own = chunk.events.numeric["own:first_seen:payee"][chunk.events.user_starts[1:] - 1]
    first_seen = enriched.first_seen["payee"].astype(np.float64)
    np.testing.assert_array_equal(own, np.where(first_seen < 0, np.nan, first_seen))


def test_a_history_knows_of_its_entities_what_the_log_knew_and_nothing_of_its_own_label(tmp_path: Path) -> None:
    _, log, config = _made_log(4)
    chosen = histories(log, config, ALL)
    opened = prepare_variant(chosen, INTACT, config, tmp_path / "set", progress=lambda *_: None)
    names = [field.name for field in opened.prepared.vocabulary.fields]
    assert "risk:known_frauds_28d:payee" in names
    assert "known_frauds_28d:payee" not in names  # counted anew, it would count each history's copy of a label
    assert not [name for name in names if "fraud" in name and not name.startswith("risk:")]


def test_examples_left_out_are_stood_for_by_those_that_were_drawn() -> None:
    _, log, config = _made_log(5)
    whole, some = histories(log, config, ALL), histories(log, config, Sample(60, 40, 50))
    assert some.of_users.shape[1] < whole.of_users.shape[1] / 2
    assert abs(some.of_users[3].sum() / whole.of_users[3].sum() - 1) < 0.3
    assert [line for line in some.limits if "of the test examples" in line]
    assert not [line for line in whole.limits if "were drawn" in line]


def test_users_of_one_person_are_held_out_together(tmp_path: Path) -> None:
    _, log, config = _made_log(6)
    chosen = histories(log, config, ALL)
    opened = prepare_variant(chosen, ORDER, config, tmp_path / "set", progress=lambda *_: None)
    prepared = opened.prepared
    shares: dict[float, set[float]] = {}
    for person, share in zip(chosen.of_users[0], prepared.held_out_U, strict=True):
        shares.setdefault(person, set()).add(share)
    assert len(shares) > 10
    assert {len(found) for found in shares.values()} == {1}
    label_T = prepared.label_N[prepared.tests_N]
    assert len(opened.user_T) == len(label_T) == len(opened.weight_T)
    assert average_precision(np.zeros(len(label_T)), label_T) == pytest.approx(label_T.mean())
