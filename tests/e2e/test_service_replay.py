"""A log replayed through `/v1/events` over HTTP equals `fraud score --per-event`, whatever happens on the way.

On SQLite with every scorer, on PostgreSQL with two processes that the same users hit; across restarts, with a memory
too small for the users, and with a hot swap half way. CI replays 10,000 events of 200 users; nightly the whole log.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from fraud.bundle import load_bundle
from tests.postgres import PostgresServer
from tests.replaying import Differences, Post, Replay, differences, part_of_log, send_all
from tests.serving import ServerProcess, serving
from tests.trained import Trained, trained_bundles

pytestmark = pytest.mark.server

TOLERANCE = 1e-5
SCORERS = ("lstm", "gru", "transformer", "boosting", "fused")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Return the bundles of this session."""
    return trained_bundles(tmp_path_factory)


@pytest.fixture(scope="module")
def part(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Replay:
    """Return 10,000 events of 200 users."""
    return part_of_log(trained.log, tmp_path_factory.mktemp("part"), 200, 10_000)


@pytest.mark.parametrize("model", SCORERS)
def test_a_log_through_http_scores_as_in_batch(model: str, trained: Trained, part: Replay, tmp_path: Path) -> None:
    _check_on_sqlite(model, trained, part, tmp_path)


@pytest.mark.slow  # the whole log, every scorer: some minutes each
@pytest.mark.parametrize("model", SCORERS)
def test_the_whole_log_through_http_scores_as_in_batch(model: str, trained: Trained, tmp_path: Path) -> None:
    _check_on_sqlite(model, trained, part_of_log(trained.log, tmp_path / "whole", 300, 10**9), tmp_path)


@pytest.mark.parametrize("model", ["lstm", pytest.param("boosting", marks=pytest.mark.slow)])
def test_two_processes_on_postgres_score_as_in_batch(
    model: str, trained: Trained, part: Replay, postgres: PostgresServer, tmp_path: Path
) -> None:
    _check_on_postgres(model, trained, part, postgres, tmp_path)


@pytest.mark.slow  # the whole log and the other scorers: some minutes each
@pytest.mark.parametrize("model", SCORERS)
def test_the_whole_log_on_postgres_scores_as_in_batch(
    model: str, trained: Trained, postgres: PostgresServer, tmp_path: Path
) -> None:
    whole = part_of_log(trained.log, tmp_path / "whole", 300, 10**9)
    _check_on_postgres(model, trained, whole, postgres, tmp_path)


def test_a_hot_swap_half_way_changes_the_scores_from_one_bundle_to_the_other(
    trained: Trained, part: Replay, tmp_path: Path
) -> None:
    versions = tmp_path / "versions"
    versions.mkdir()
    (versions / "current").symlink_to(trained.folder / "lstm")
    replay = Replay(part.folder, part.events[:4000], part.labels)
    steps = list(replay.steps(np.random.default_rng(2)))
    before, after = load_bundle(trained.folder / "lstm"), load_bundle(trained.folder / "gru")
    state = f"sqlite:///{tmp_path}/state.db"
    with serving(versions, state, "--clock", "log", "--follow", folder=tmp_path) as server:
        _send([server], steps[: len(steps) // 2], replay)
        aside = versions / "next"
        aside.symlink_to(trained.folder / "gru")
        aside.rename(versions / "current")
        _send([server], steps[len(steps) // 2 :], replay)
    whole = part.only({event["event_id"] for event in replay.events}, tmp_path / "first")
    for bundle in (before, after):
        found = differences(replay.answers, whole.expected(bundle), bundle, bundle.version)
        assert found.n > 1000
        _check(found)


def _check_on_sqlite(model: str, trained: Trained, part: Replay, folder: Path) -> None:
    """Replay with a memory for 24 users and two restarts, one of them a kill, in between."""
    replay = Replay(part.folder, part.events, part.labels)
    steps = list(replay.steps(np.random.default_rng(0)))
    options = ("--clock", "log", "--users", "48")
    with serving(trained.folder / model, f"sqlite:///{folder}/{model}.db", *options, folder=folder) as server:
        thirds = np.linspace(0, len(steps), 4).astype(int)
        _send([server], steps[: thirds[1]], replay)
        server.terminate()
        assert server.ended() == 0
        server.start()
        _send([server], steps[thirds[1] : thirds[2]], replay)
        server.kill()
        server.start()
        _send([server], steps[thirds[2] :], replay)
    _check_all(model, trained, replay)


def _check_on_postgres(model: str, trained: Trained, part: Replay, postgres: PostgresServer, folder: Path) -> None:
    replay = Replay(part.folder, part.events, part.labels)
    steps = list(replay.steps(np.random.default_rng(1)))
    url = postgres.fresh_database()
    with ExitStack() as stack:
        options = ("--clock", "log", "--users", "64")
        servers = [stack.enter_context(serving(trained.folder / model, url, *options, folder=folder)) for _ in range(2)]
        _send(servers, steps, replay)
    _check_all(model, trained, replay)


def _check_all(model: str, trained: Trained, replay: Replay) -> None:
    bundle = load_bundle(trained.folder / model)
    found = differences(replay.answers, replay.expected(bundle), bundle, bundle.version)
    assert found.n == len(replay.events)
    _check(found)


def _check(found: Differences) -> None:
    told = f"{found.n} events, largest difference {found.largest:.1e}, {found.near} decisions within 1e-5 of a cut"
    sys.stdout.write(f"{told}\n")  # with pytest -rP
    assert found.largest <= TOLERANCE
    assert not found.wrong_decisions


def _send(servers: Sequence[ServerProcess], steps: list[tuple[list[Post], list[Post]]], replay: Replay) -> None:
    """Send the steps, each request to a server by turns."""
    asyncio.run(_sent(servers, steps, replay))


async def _sent(servers: Sequence[ServerProcess], steps: list[tuple[list[Post], list[Post]]], replay: Replay) -> None:
    idle: list[list[_Connection]] = [[] for _ in servers]
    opened: list[_Connection] = []
    n_sent = 0

    async def send(post: Post) -> bytes:
        nonlocal n_sent
        n_sent += 1
        which = n_sent % len(servers)
        while True:
            is_new = not idle[which]
            connection = await _connected(servers[which]) if is_new else idle[which].pop()
            opened.extend([connection] if is_new else [])
            try:
                answer = await _answer(connection, post)
            except (asyncio.IncompleteReadError, ConnectionError):
                # The service closes what was idle for some seconds; an event that is sent again counts once.
                if is_new:
                    raise
                continue
            idle[which].append(connection)
            return answer

    try:
        await send_all(steps, send, replay)
    finally:
        for _, writer in opened:
            writer.close()


_Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def _connected(server: ServerProcess) -> _Connection:
    return await asyncio.open_connection("127.0.0.1", server.port)


async def _answer(connection: _Connection, post: Post) -> bytes:
    reader, writer = connection
    body = json.dumps(post.body).encode()
    head = f"POST {post.path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    writer.write(head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    status, *lines = (await reader.readuntil(b"\r\n\r\n")).lower().split(b"\r\n")
    length = next(int(line.split(b":")[1]) for line in lines if line.startswith(b"content-length:"))
    answer = await reader.readexactly(length)
    assert status.split()[1] in (b"200", b"202"), answer
    return answer
