"""A log sent event by event through `/v1/events`, with its labels on their day: what the service's parity is held by.

Events of one UTC hour may be sent side by side and in any grouping of a user's own, since what is known of entities
changes with the hour; hours, and each user's events, keep their order.
"""

from __future__ import annotations

import asyncio
import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fraud.bundle import Bundle
from fraud.config import load_config
from fraud.logs import read_log
from fraud.tables import event_table, scored_chunks, scoring_config, tables_of

HOUR_US = 3_600_000_000
Json = dict[str, Any]  # Any: JSON
_FIELDS = ("amount", "channel", "payee", "device")


class Answered(NamedTuple):
    """What was answered of an event."""

    score: float
    decision: str | None
    version: str


class Post(NamedTuple):
    """One request: a path and its body."""

    path: str
    body: Json


@dataclass
class Replay:
    """A part of a simulated log, to be replayed. events: by time; labels: by known_at."""

    folder: Path
    events: list[Json]
    labels: list[Json]
    answers: dict[str, Answered] = field(default_factory=dict)

    @property
    def config(self) -> Path:
        """Return the configuration of this part, with its own label table."""
        return self.folder / "config.toml"

    def expected(self, bundle: Bundle) -> dict[str, Answered]:
        """Return what `fraud score --per-event --config` gives of each event."""
        config = load_config(self.config)
        read_with = scoring_config(config, labels=config.labels)
        log = read_log(read_with)
        tables = tables_of(log, read_with)
        parts = [
            event_table(scored, ids)
            for partition in range(len(log.partitions))
            for scored, ids in scored_chunks(bundle.scorer, log, tables, partition)
        ]
        rows = pa.concat_tables(parts).select(["event_id", "score", "decision"]).to_pylist()
        return {row["event_id"]: Answered(row["score"], row["decision"], bundle.version) for row in rows}

    def only(self, event_ids: set[str], folder: Path) -> Replay:
        """Return the replay of some of the events, as a log of its own."""
        folder.mkdir()
        table = pq.read_table(self.folder / "events.parquet")
        chosen = pc.is_in(table["event_id"], value_set=pa.array(sorted(event_ids), pa.string()))
        pq.write_table(table.filter(chosen), folder / "events.parquet")
        for name in ("labels.parquet", "config.toml"):
            (folder / name).write_bytes((self.folder / name).read_bytes())
        return Replay(folder, [event for event in self.events if event["event_id"] in event_ids], self.labels)

    def steps(self, rng: np.random.Generator) -> Iterator[tuple[list[Post], list[Post]]]:
        """Yield (labels that come now, one after another; then requests of different users, in any order).

        Each user's events of an hour are one request, or several in a row, at random.
        """
        labels = iter(self.labels)
        label = next(labels, None)
        for hour, events in _by_hour(self.events):
            due: list[Post] = []
            while label is not None and label["known_us"] // HOUR_US < hour:
                due.append(Post("/v1/labels", {name: label[name] for name in label if name != "known_us"}))
                label = next(labels, None)
            by_user: dict[str, list[list[Json]]] = {}
            for event in events:
                groups = by_user.setdefault(event["user_id"], [])
                if not groups or rng.random() < 0.5:
                    groups.append([])
                groups[-1].append({name: cell for name, cell in event.items() if name != "user_id"})
            while by_user:
                yield (
                    due,
                    [
                        Post("/v1/events", {"user_id": user, "events": groups.pop(0)})
                        for user, groups in by_user.items()
                    ],
                )
                due = []
                by_user = {user: groups for user, groups in by_user.items() if groups}

    def note(self, answer: bytes) -> None:
        """Keep what an answer says of its events."""
        tree = json.loads(answer)
        for event in tree["events"]:
            self.answers[event["event_id"]] = Answered(event["score"], event["decision"], tree["model"]["version"])


class Differences(NamedTuple):
    """How answers stand to what was expected. near: decisions that differ where the score is within 1e-5 of a cut."""

    largest: float
    n: int
    near: int
    wrong_decisions: list[str]


def differences(
    answers: Mapping[str, Answered], expected: Mapping[str, Answered], bundle: Bundle, version: str
) -> Differences:
    """Return how the answers that a bundle of this version gave differ from what is expected of it."""
    policy = bundle.scorer.policy
    largest, near, wrong = 0.0, 0, list[str]()
    mine = {event_id: answer for event_id, answer in answers.items() if answer.version == version}
    for event_id, answer in mine.items():
        want = expected[event_id]
        largest = max(largest, abs(answer.score - want.score))
        if answer.decision != want.decision:
            is_near = min(abs(want.score - policy.review_at), abs(want.score - policy.block_at)) <= 1e-5
            near += is_near
            if not is_near:
                wrong.append(event_id)
    return Differences(largest, len(mine), near, wrong)


def part_of_log(log: Path, folder: Path, n_users: int, n_events: int, *, without: Sequence[str] = ()) -> Replay:
    """Return the first events of some users of a simulated log, with a configuration and label table of their own.

    The users share a few payees and devices, so that what is known of those changes many scores. without: columns that
    are null throughout.
    """
    folder.mkdir(parents=True, exist_ok=True)
    events = pq.read_table(log / "events.parquet")
    users = pc.unique(events["user_id"]).take(pa.array(range(n_users)))
    events = events.filter(pc.is_in(events["user_id"], value_set=users))
    events = events.sort_by([("ts", "ascending"), ("event_id", "ascending")]).slice(0, n_events)
    for name in ("payee", "device"):
        cells = events[name].to_pylist()
        few = [None if cell is None else f"{name}-{zlib.crc32(cell.encode()) % 23}" for cell in cells]
        events = events.set_column(events.schema.get_field_index(name), name, pa.array(few, pa.string()))
    for name in without:
        events = events.set_column(events.schema.get_field_index(name), name, pa.nulls(len(events), pa.string()))
    labels = pq.read_table(log / "labels.parquet")
    labels = labels.filter(pc.is_in(labels["event_id"], value_set=events["event_id"].combine_chunks()))
    pq.write_table(events, folder / "events.parquet")
    pq.write_table(labels, folder / "labels.parquet")
    (folder / "config.toml").write_text((log / "small.toml").read_text(encoding="utf-8"), encoding="utf-8")
    user_of = dict(zip(events["event_id"].to_pylist(), events["user_id"].to_pylist(), strict=True))
    rows = labels.sort_by([("known_at", "ascending"), ("event_id", "ascending")]).to_pylist()
    return Replay(
        folder,
        [_request_event(row) for row in events.to_pylist()],
        [
            {
                "user_id": user_of[row["event_id"]],
                "event_id": row["event_id"],
                "label": int(row["fraud"]),
                "known_at": row["known_at"].isoformat(),
                "source": "replay",
                "known_us": int(row["known_at"].timestamp() * 1_000_000),
            }
            for row in rows
        ],
    )


async def send_all(steps: Sequence[tuple[list[Post], list[Post]]], send: Callable[[Post], Any], replay: Replay) -> None:
    """Send some steps, the requests of one side by side. send: a coroutine that returns the body of a good answer."""
    for labels, posts in steps:
        for label in labels:
            await send(label)
        for answer in await asyncio.gather(*(send(post) for post in posts)):
            replay.note(answer)


def _request_event(row: Json) -> Json:
    event = {"event_id": row["event_id"], "user_id": row["user_id"], "type": row["type"], "ts": row["ts"].isoformat()}
    return event | {name: row[name] for name in _FIELDS if row[name] is not None}


def _by_hour(events: Sequence[Json]) -> Iterator[tuple[int, list[Json]]]:
    hour, group = -1, list[Json]()
    for event in events:
        own = int(np.datetime64(event["ts"][:13], "h").astype(np.int64))
        if own != hour and group:
            yield hour, group
            group = []
        hour = own
        group.append(event)
    if group:
        yield hour, group
