"""docker-compose.yml brought up for real: images, keys, first champion, two replicas, one of them killed, the jobs.

One test, for it is one stack: built and trained once, and `pytest -n` would give each test of a module to any process.
What was run and seen is written to build/containers.log.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import httpx
import pytest

from tests.composed import Stack

_BASE = "python:3.11-slim-bookworm"
_MAX_LAYERS_MB = 300
_HEAVY = ("torch", "pyarrow", "mlflow", "pandas", "sklearn", "scipy", "matplotlib")
_READY_S = 600  # the first champion is simulated, trained and judged meanwhile
_LOAD_S, _KILL_AT_S = 12.0, 4.0
_PAUSE_S = 0.04
_N_USERS = 25
_SECRET_LENGTH = 20

Json = dict[str, Any]  # Any: JSON


class Answered(NamedTuple):
    """An event that was acknowledged, and how."""

    user_id: str
    event: Json
    answer: Json


class Replicas:
    """Both replicas, as a caller sees them who takes the other one where one does not answer."""

    def __init__(self, ports: Sequence[int], http: httpx.Client) -> None:
        """Take the ports on this machine and a client with an API key."""
        self.urls = [f"http://127.0.0.1:{port}" for port in ports]
        self.http = http

    def get(self, replica: int, path: str) -> Json:
        """Return the answer of one replica."""
        response = self.http.get(self.urls[replica] + path)
        assert response.status_code == 200, response.text
        return response.json()

    def tell(self, replica: int, user_id: str, event: Json, *, within_s: float = 60) -> Json:
        """Return the answer to one event: from this replica first, in turn with the other until one has it."""
        until = time.monotonic() + within_s
        while True:
            try:
                response = self.http.post(
                    f"{self.urls[replica % 2]}/v1/events", json={"user_id": user_id, "events": [event]}
                )
                if response.status_code == 200:
                    return response.json()
                assert response.status_code in {429, 503}, response.text
            except httpx.TransportError:
                pass
            assert time.monotonic() < until, "no replica answers"
            replica += 1
            time.sleep(0.05)

    def versions(self) -> frozenset[str]:
        """Return the versions of the bundles that the replicas answer with."""
        return frozenset(self.get(replica, "/v1/model")["version"] for replica in (0, 1))

    def is_ready(self, replica: int) -> bool:
        """Return True where a replica says that it can answer."""
        try:
            return self.http.get(self.urls[replica] + "/readyz").status_code == 200
        except httpx.TransportError:
            return False

    def wait_ready(self, *, within_s: float) -> None:
        """Return when both are ready."""
        until = time.monotonic() + within_s
        while not all(self.is_ready(replica) for replica in (0, 1)):
            assert time.monotonic() < until, "a replica is not ready"
            time.sleep(0.5)


@pytest.fixture
def stack() -> Iterator[Stack]:
    stack = Stack()
    stack.prepare()
    stack.compose("down", "-v")
    try:
        yield stack
    finally:
        stack.keep_logs()
        stack.compose("down", "-v")


@pytest.mark.slow  # five minutes, and twenty where torch and its friends are to be installed into an image first
@pytest.mark.timeout(2400)
def test_the_composed_stack_trains_serves_survives_a_kill_and_loses_no_event(stack: Stack) -> None:
    stack.compose("build", timeout_s=1800)
    _check_the_service_image(stack)

    key = stack.run("keys", "--role", "admin").split()[-1]
    assert len(key) > _SECRET_LENGTH
    stack.compose("up", "-d")
    with httpx.Client(headers={"X-API-Key": key}, timeout=5) as http:
        replicas = Replicas(stack.ports[:2], http)
        replicas.wait_ready(within_s=_READY_S)
        stack.say("both replicas are ready: the first bundle is published")
        _check_the_service_containers(stack, replicas)
        _check_both_know_a_user(stack, replicas)
        _check_a_kill_under_load(stack, replicas)
        _check_the_batch(stack, replicas)
        _check_the_life(stack, replicas)
    stack.engine("stop", stack.container("service-2"))
    ended = stack.engine("inspect", stack.container("service-2"), "--format", "{{.State.ExitCode}}")
    assert ended.strip() == "0"
    stack.say("a replica that is told to stop ends with 0")


def _check_both_know_a_user(stack: Stack, replicas: Replicas) -> None:
    first = _event(0)
    answer = replicas.tell(0, "first-user", first)
    stack.say(f"first decision through replica 1: {answer['decision']}, score {answer['score']:.4f}")
    assert replicas.get(1, "/v1/users/first-user/timeline")["events"][0]["event_id"] == first["event_id"]
    again = replicas.tell(1, "first-user", first)
    assert again["events"] == answer["events"]
    assert replicas.tell(1, "first-user", _event(1))["events"][0]["decision_id"]
    assert len(replicas.get(0, "/v1/users/first-user/timeline")["events"]) == 2
    stack.say("replica 2 knows the user, and gives the same answer to the same event")


def _check_the_service_image(stack: Stack) -> None:
    size, base = (
        int(stack.engine("image", "inspect", name, "--format", "{{.Size}}")) for name in ("fraud-service", _BASE)
    )
    layers_mb = (size - base) / 1e6
    stack.say(f"the service image: {layers_mb:.0f} MB of layers above its base")
    assert layers_mb <= _MAX_LAYERS_MB
    code = "import importlib.util as u, sys; print([name for name in sys.argv[1:] if u.find_spec(name)])"
    found = stack.engine("run", "--rm", "--network=none", "--entrypoint=python", "fraud-service", "-c", code, *_HEAVY)
    assert found.strip() == "[]"


def _check_the_service_containers(stack: Stack, replicas: Replicas) -> None:
    tried = 'id -u; for folder in /opt/fraud /bundles /state /tmp; do touch "$folder/written" && echo "$folder"; done'
    for service in ("service-1", "service-2"):
        seen = stack.engine("exec", stack.container(service), "sh", "-c", f"({tried}) 2>/dev/null")
        assert seen.split() == ["10001", "/tmp"]
    if stack.is_podman:  # which has nothing here that would run health checks by itself
        for service in ("postgres", "mlflow", "service-1", "service-2"):
            stack.engine("healthcheck", "run", stack.container(service))
    for url in replicas.urls:
        assert httpx.get(f"{url}/v1/model").status_code == 401
    stack.say("not root, nothing writable but /tmp, no answer without a key; every health check passes")


def _check_a_kill_under_load(stack: Stack, replicas: Replicas) -> None:
    answered: list[Answered] = []
    victim = stack.container("service-1")
    with ThreadPoolExecutor(1) as pool:
        load = pool.submit(_load, replicas, answered)
        time.sleep(_KILL_AT_S)
        n_before = len(answered)
        stack.say("$ docker kill service-1")
        stack.engine("kill", victim)
        n_killed = len(answered)
        load.result(timeout=120)
    assert not replicas.is_ready(0)
    stack.say(f"replica 1 killed after {n_before} to {n_killed} of {len(answered)} acknowledged events")
    assert 0 < n_before <= n_killed < len(answered)

    _check_nothing_is_lost(replicas, 1, answered)
    stack.say("$ docker start service-1")
    stack.engine("start", victim)
    replicas.wait_ready(within_s=90)
    _check_nothing_is_lost(replicas, 0, answered)
    stack.say("none lost, none twice, none changed: through replica 2, and through replica 1 when it was back")


def _load(replicas: Replicas, answered: list[Answered]) -> None:
    until, n = time.monotonic() + _LOAD_S, 0
    while time.monotonic() < until:
        user_id, event = f"load-{n % _N_USERS}", _event(n)
        answer = replicas.tell(n, user_id, event)
        answered.append(Answered(user_id, event, answer))
        if n % 3 == 0:  # a caller whom the answer did not reach, and who asks the other replica
            assert replicas.tell(n + 1, user_id, event)["events"] == answer["events"]
        n += 1
        time.sleep(_PAUSE_S)


def _check_nothing_is_lost(replicas: Replicas, replica: int, answered: Sequence[Answered]) -> None:
    told: dict[str, list[str]] = {}
    for user_id, event, answer in answered:
        told.setdefault(user_id, []).append(event["event_id"])
        again = replicas.tell(replica, user_id, event)
        assert again["events"] == answer["events"]
    for user_id, event_ids in told.items():
        timeline = replicas.get(replica, f"/v1/users/{user_id}/timeline")["events"]
        assert [event["event_id"] for event in timeline] == event_ids


def _check_the_batch(stack: Stack, replicas: Replicas) -> None:
    stack.run("batch-score")
    code = (
        "import json, pyarrow.parquet as pq\n"
        "scores, events = pq.read_table('/scores/scores.parquet'), pq.read_metadata('/log/bank/events.parquet')\n"
        "print(json.dumps({'scores': len(scores), 'events': events.num_rows, 'user': scores['user_id'][-1].as_py()}))"
    )
    seen = json.loads(stack.run("batch-score", "-c", code, entrypoint="python"))
    assert seen["scores"] == seen["events"] > 0
    assert replicas.get(1, f"/v1/users/{seen['user']}/timeline")["events"]
    stack.say(f"batch-score: {seen['scores']} scores; a user of the log is known to the replicas")


def _check_the_life(stack: Stack, replicas: Replicas) -> None:
    (first,) = replicas.versions()
    assert first in stack.run("registry")
    # The log does not grow here: what is new since the champion holds some frauds, not the 300 of the default.
    few = ("--set", "retrain.positives=100")
    stack.run("retrain", *few, "--set", "training.seed=2", "--promote-if", "ap >= 0.9999", ends=(3,))
    assert replicas.versions() == {first}
    stack.say("retrain: a challenger is refused with exit 3, and nothing changes")
    stack.run("retrain", *few, "--set", "training.seed=1", "--promote-if", "ap >= 0.1")
    second = _version_after(replicas, first)
    stack.say(f"retrain: both replicas went from bundle {first} to {second} by themselves")
    stack.run("registry", "rollback")
    assert _version_after(replicas, second) == first
    stack.say(f"registry rollback: both replicas are back at {first}")
    query: Mapping[str, object] = {"experiment_ids": ["1"], "max_results": 50}
    runs = httpx.post(f"http://127.0.0.1:{stack.ports[2]}/api/2.0/mlflow/runs/search", json=query, timeout=30).json()
    statuses = [run["info"]["status"] for run in runs["runs"]]
    assert set(statuses) == {"FINISHED"}
    assert len(statuses) >= 3
    stack.say(f"MLflow holds {len(statuses)} runs, in PostgreSQL")

    stack.run("monitor", ends=(0, 4))
    told = {"user_id": "first-user", "event_id": "e0", "label": 1, "source": "a test"}
    assert replicas.http.post(f"{replicas.urls[0]}/v1/labels", json=told).status_code == 202
    stack.run("labels")
    code = (
        "import pathlib\n"
        "print(pathlib.Path('/log/bank/labels.jsonl').read_text().count('first-user'))\n"
        "print(pathlib.Path('/scores/monitor.html').read_text()[:15])"
    )
    assert stack.run("batch-score", "-c", code, entrypoint="python").splitlines() == ["1", "<!doctype html>"]
    stack.say("monitor writes its page; a label that a replica was told is in the file of the log")


def _version_after(replicas: Replicas, before: str) -> str:
    """Return the version that both replicas answer with when neither answers with the one before any more."""
    until = time.monotonic() + 60
    while before in replicas.versions():
        assert time.monotonic() < until, "the replicas do not follow the link"
        time.sleep(0.5)
    (after,) = replicas.versions()
    return after


def _event(n: int) -> Json:
    at = datetime.now(UTC) - timedelta(hours=1) + timedelta(milliseconds=n)
    return {
        "event_id": f"e{n}",
        "type": ("login", "balance_check", "transfer_out")[n % 3],
        "ts": at.isoformat(),
        "amount": 12.5 if n % 3 == 2 else None,
        "channel": "app",
    }
