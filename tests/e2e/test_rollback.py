"""`fraud rollback` under load: no request fails, and the version in the answers changes once, within seconds."""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.commands import ROOT, run_fraud
from tests.registered import NAME, Registered, registered
from tests.serving import Caller, ServerProcess, serving
from tests.trained import Trained, trained_bundles

pytestmark = pytest.mark.server
_CONNECTIONS = 4
_FRAUD = "from pipelines.cli import main; main()"
_GOAL_S = 5.0  # on two quiet cores; this test allows a busy machine ten times that
_REQUEST = {
    "user_id": "u",
    "channel": "web",
    "events": [
        {"type": "login", "ts": "2026-11-20T10:00:00Z", "device": "d"},
        {"type": "transfer_out", "ts": "2026-11-20T10:00:40Z", "amount": 800.0, "payee": "p"},
    ],
}


class Seen(NamedTuple):
    """One answer: when it was there, by the monotonic clock, and the model's version, or what was wrong with it."""

    at: float
    version: str


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return trained_bundles(tmp_path_factory)


@pytest.fixture
def store(trained: Trained, tmp_path: Path) -> Registered:
    """Return a registry whose champion is the lstm, and the gru was it before."""
    bundles = {name: trained.folder / name for name in ("gru", "lstm")}
    store = registered(f"sqlite:///{tmp_path}/mlflow.db", bundles, tmp_path)
    store.registry.promote(store.versions["gru"], expected_champion=None, reason="the first")
    store.registry.promote(store.versions["lstm"], expected_champion="1", reason="better")
    return store


def test_a_rollback_under_load_fails_no_request_and_changes_the_version_once(store: Registered, tmp_path: Path) -> None:
    out, bad, good = tmp_path / "versions", store.versions["lstm"].bundle, store.versions["gru"].bundle
    ends, seen = threading.Event(), list[list[Seen]]()
    with _publishing(store.uri, out), _served(out, tmp_path) as server:
        senders = [threading.Thread(target=_send, args=(server, ends, seen)) for _ in range(_CONNECTIONS)]
        for sender in senders:
            sender.start()
        time.sleep(2)
        started = time.monotonic()
        done = run_fraud("rollback", "--tracking-uri", store.uri, "--json")
        assert done.returncode == 0, done.stderr
        until = time.monotonic() + 10 * _GOAL_S
        while not all(answers[-1].version == good for answers in seen):
            assert time.monotonic() < until, "the service does not follow"
            time.sleep(0.02)
        time.sleep(1)
        ends.set()
        for sender in senders:
            sender.join()
    for answers in seen:
        assert [version for version, _ in groupby(answer.version for answer in answers)] == [bad, good]
    first_s = min(answer.at for answers in seen for answer in answers if answer.version == good) - started
    logging.getLogger(__name__).warning(
        "rollback under load: the version before answers after %.1f s (goal %.0f s); %d requests, none failed",
        first_s, _GOAL_S, sum(map(len, seen)),
    )  # fmt: skip
    assert first_s < 10 * _GOAL_S


@contextmanager
def _publishing(uri: str, out: Path) -> Iterator[None]:
    """Run `fraud publish --every 1s` until the block ends; it then ends well."""
    command = ["publish", f"models:/{NAME}@champion", "-o", str(out), "--every", "1s", "--tracking-uri", uri]
    process = subprocess.Popen(
        [sys.executable, "-c", _FRAUD, *command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )
    try:
        until = time.monotonic() + 60
        while not (out / "current").is_symlink():
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.05)
        yield
        process.send_signal(signal.SIGTERM)
        _, stderr = process.communicate(timeout=60)
        assert process.returncode == 0, stderr
    finally:
        process.kill()
        process.communicate()


@contextmanager
def _served(out: Path, folder: Path) -> Iterator[ServerProcess]:
    with serving(out, f"sqlite:///{folder}/state.db", "--follow", folder=folder) as server:
        yield server


def _send(server: ServerProcess, ends: threading.Event, seen: list[list[Seen]]) -> None:
    """Ask for scores until told to end; what came back is added as a list of its own."""
    caller, answers = Caller(server), list[Seen]()
    first = caller.ask("POST", "/v1/score", _REQUEST)
    answers.append(Seen(time.monotonic(), first.json["model"]["version"]))
    seen.append(answers)
    while not ends.is_set():
        answer = caller.ask("POST", "/v1/score", _REQUEST)
        version = answer.json["model"]["version"] if answer.status == 200 else f"{answer.status} {answer.body!r}"
        answers.append(Seen(time.monotonic(), version))
    caller.close()
