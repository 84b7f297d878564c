"""Bundles swapped while requests run: nobody notices but by the version in the answer."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest

from tests.serving import Caller, ServerProcess, serving
from tests.trained import Trained, trained_bundles

pytestmark = pytest.mark.server
_CONNECTIONS = 4
_LARGEST_MODEL_MB = 16.0  # of these small bundles: sessions, vocabulary and what the check of one leaves behind
_REQUEST = {
    "user_id": "u",
    "channel": "web",
    "events": [
        {"type": "login", "ts": "2026-11-20T10:00:00Z", "device": "d"},
        {"type": "transfer_out", "ts": "2026-11-20T10:00:40Z", "amount": 800.0, "payee": "p"},
    ],
}


class Seen(NamedTuple):
    """What the requests got: scores by version, and every answer that was not 200."""

    scores: dict[str, set[float]]
    failures: list[tuple[int, bytes]]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Return the bundles of this session."""
    return trained_bundles(tmp_path_factory)


def test_swaps_under_load_fail_no_request(trained: Trained, tmp_path: Path) -> None:
    _check(trained, tmp_path, n_swaps=12, n_requests=1500)


@pytest.mark.slow  # some minutes
@pytest.mark.timeout(1800)
def test_two_hundred_swaps_during_20_000_requests_fail_none(trained: Trained, tmp_path: Path) -> None:
    _check(trained, tmp_path, n_swaps=200, n_requests=20_000)


def _check(trained: Trained, folder: Path, *, n_swaps: int, n_requests: int) -> None:
    versions = folder / "versions"
    versions.mkdir()
    bundles = [trained.folder / name for name in ("lstm", "gru")]
    _publish(bundles[0], versions)
    expected = {trained.bundle(bundle.name).version for bundle in bundles}
    with serving(versions, f"sqlite:///{folder}/state.db", "--follow", folder=folder) as server:
        seen = Seen({}, [])
        before_mb = _settled_mb(server, versions, bundles)
        senders = [
            threading.Thread(target=_send, args=(server, f"u{n}", n_requests // _CONNECTIONS, seen))
            for n in range(_CONNECTIONS)
        ]
        for sender in senders:
            sender.start()
        n_done = 1
        while any(sender.is_alive() for sender in senders) or n_done < n_swaps:
            _swap(server, versions, bundles[n_done % 2])
            n_done += 1
        for sender in senders:
            sender.join()
        after_mb = _settled_mb(server, versions, bundles)
    assert not seen.failures
    assert set(seen.scores) == expected
    assert all(len(scores) == 1 for scores in seen.scores.values()), seen.scores
    assert n_done >= n_swaps
    assert after_mb - before_mb < _LARGEST_MODEL_MB


def _send(server: ServerProcess, user_id: str, n_requests: int, seen: Seen) -> None:
    caller = Caller(server)
    for n in range(n_requests):
        answer = caller.ask("POST", "/v1/score", _REQUEST)
        if answer.status == 200:
            seen.scores.setdefault(answer.json["model"]["version"], set()).add(answer.json["score"])
        else:
            seen.failures.append((answer.status, answer.body))
        user, own = divmod(n, 500)
        event = {"event_id": f"e{n}", "type": "login", "ts": f"2026-11-20T10:{own // 60:02}:{own % 60:02}Z"}
        stored = caller.ask("POST", "/v1/events", {"user_id": f"{user_id}-{user}", "events": [event]})
        if stored.status != 200:
            seen.failures.append((stored.status, stored.body))
    caller.close()


def _publish(bundle: Path, versions: Path) -> None:
    aside = versions / "next"
    aside.symlink_to(bundle)
    aside.rename(versions / "current")


def _swap(server: ServerProcess, versions: Path, bundle: Path) -> None:
    """Move the link, and return when the service answers with the other bundle."""
    _publish(bundle, versions)
    caller = Caller(server)
    until = time.monotonic() + 30
    while caller.ask("GET", "/v1/model").json["name"] != bundle.name:
        assert time.monotonic() < until, "the service does not follow"
        time.sleep(0.05)
    caller.close()


def _settled_mb(server: ServerProcess, versions: Path, bundles: list[Path]) -> float:
    """Return the resident memory after a swap to each bundle, once the one before was let go."""
    for bundle in (*bundles[1:], bundles[0]):
        _swap(server, versions, bundle)
    time.sleep(1.5)
    return psutil.Process(server.pid).memory_info().rss / 2**20
