"""Small rules of the service that its parity does not show: what is told of whom, what is refused, what is let go."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import numpy as np
import pyarrow.parquet as pq
import pytest

from fraud.bundle import Bundle
from fraud.config import stored_state_hash
from fraud.enrich import empty_carry
from fraud.rows import events_of_rows
from fraud.scoring import FusedModel, LogitModel, enrich_spec, score_events
from service import engine as engines
from service import serve as serving
from service.auth import Keys, key_hash
from service.client import FraudClient
from service.counters import entity_tables_of
from service.engine import Engine
from service.keys import add_key, revoke_key
from service.models import Served
from service.problems import Problem
from service.replay import Bundles, replay
from service.state.opening import open_store
from service.state.store import StoreDown, Wanted
from service.warm import warm
from tests.in_process import InProcess
from tests.replaying import Json, Post
from tests.trained import Trained, trained_bundles

_START = datetime(2026, 1, 2, tzinfo=UTC)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return trained_bundles(tmp_path_factory)


@pytest.fixture
def service(trained: Trained, tmp_path: Path) -> Iterator[InProcess]:
    with closing(InProcess(trained.folder / "lstm", f"sqlite:///{tmp_path}/state.db")) as running:
        yield running


def _event(place: int, seconds: int, kind: str = "login") -> Json:
    ts = (_START + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {"event_id": f"e{place:04}", "type": kind, "ts": ts}


def _post(user: str, events: Sequence[Json]) -> Post:
    return Post("/v1/events", {"user_id": user, "events": list(events)})


def test_the_record_of_an_erasure_is_no_decision(service: InProcess, trained: Trained) -> None:
    service.events([_post("u1", [_event(0, 0)])])
    service.inquiries.erase("u1")
    with pytest.raises(Problem) as erased:
        service.inquiries.decision("1-1")
    assert erased.value.status == 410
    with pytest.raises(Problem) as unknown:
        service.inquiries.decision("1-2")
    assert unknown.value.status == 404
    assert replay("1-2", service.store, Bundles(trained.folder)).verdict == "unknown"


@pytest.mark.parametrize("decision_id", ["0x1-1", "+1-1", "1-1.-1", "1- 1", "1_0-1", "1-1.0", "1-ffffffffffffffffffff"])
def test_an_id_that_was_never_given_names_no_decision(service: InProcess, decision_id: str) -> None:
    service.events([_post("u1", [_event(0, 0)])])
    assert json.loads(service.inquiries.decision("1-1"))["decision_id"] == "1-1"
    with pytest.raises(Problem) as unknown:
        service.inquiries.decision(decision_id)
    assert unknown.value.status == 404


def test_a_warmed_user_whose_stored_rows_are_one_block_has_a_timeline(service: InProcess, trained: Trained) -> None:
    """The one block that is kept is context alone: no score of it can be made again, and none is asked for."""
    config = service.holder.current.bundle.scorer.config
    half = config.sessions.max_events // 2
    warm(config, str(trained.events), None, service.store, now_us=service.clock.wall_us, progress=lambda *_: None)
    n_of_user = Counter(pq.read_table(trained.events)["user_id"].to_pylist())
    users = [user for user, n in n_of_user.items() if n % half == 0 and n > half]
    assert users
    for user in users:
        assert [event["score"] for event in service.timeline(user)["events"]] == [None] * half


@pytest.mark.parametrize("model", ["lstm", "boosting"])
def test_a_timeline_of_sessions_tells_the_scores_of_the_batch(trained: Trained, tmp_path: Path, model: str) -> None:
    """scope = "session": null only where the beginning of the context was dropped, and never another score."""
    rng = np.random.default_rng(5)
    for run in range(4):
        with closing(InProcess(trained.folder / model, f"sqlite:///{tmp_path}/{run}.db", n_users=2)) as service:
            service.holder.current = _by_session(service.holder.current)
            scorer = service.holder.current.bundle.scorer
            seconds = np.cumsum(rng.choice([1, 30, 100, 100, 100, 3000], 60)).tolist()
            kinds = rng.choice(["login", "add_payee", "transfer_out"], 60).tolist()
            events = [_event(place, *cells) for place, cells in enumerate(zip(seconds, kinds, strict=True))]
            for first in range(0, 60, 5):
                service.events([_post("u", events[first : first + 5])])
                service.ticker.forget_all()
            body = json.dumps({"user_id": "u", "events": events}).encode()
            rows = service.holder.current.schema.decode_events(body, service.clock.limit_us()).events
            tables = entity_tables_of(scorer.config.fields.entity, [])
            carry = empty_carry(1, enrich_spec(scorer.config))
            scored, _ = score_events(scorer, events_of_rows(["u"], [rows], scorer.config, {}), carry, tables)
            told = service.timeline("u")["events"]
            for event in told:
                if event["score"] is not None:
                    assert event["score"] == pytest.approx(scored.score_N[event["index"]], abs=1e-5)
                else:
                    n_before = int(scored.enriched.session_position_N[event["index"]])
                    assert n_before > event["index"] - told[0]["index"]
            assert told[-1]["score"] is not None


def _by_session(served: Served) -> Served:
    scorer = served.bundle.scorer
    config = replace(scorer.config, sessions=replace(scorer.config.sessions, scope="session", max_events=8))

    def by_session(model: LogitModel) -> LogitModel:
        if isinstance(model, FusedModel):
            return replace(model, members=tuple(map(by_session, model.members)))
        return replace(model, config=config)  # type: ignore[type-var]  # both other models are dataclasses

    bundle: Bundle = replace(served.bundle, scorer=replace(scorer, config=config, model=by_session(scorer.model)))
    return replace(served, bundle=bundle)


def test_a_value_nobody_knows_is_counted_on_every_route(service: InProcess) -> None:
    schema = service.holder.current.schema
    body = json.dumps({"user_id": "u1", "events": [_event(0, 0, "never seen")]}).encode()
    request = schema.decode_score(body, service.clock.limit_us())
    service.ticker.run(service.holder.current, [request], [])
    assert service.ticker.counts["unknown_values"] == 1
    service.ticker.score_without_store(service.holder.current, [request])
    assert service.ticker.counts["unknown_values"] == 2
    service.events([_post("u1", [_event(0, 0, "never seen")])])
    assert service.ticker.counts["unknown_values"] == 3


def test_a_large_request_is_not_kept_in_memory(trained: Trained, tmp_path: Path) -> None:
    with closing(InProcess(trained.folder / "boosting", f"sqlite:///{tmp_path}/state.db")) as service:
        service.events([_post("u1", [_event(place, place) for place in range(300)])])
        assert service.ticker.n_remembered == 0
        service.events([_post("u1", [_event(300, 300)])])
        assert service.ticker.n_remembered == 1
        assert len(service.timeline("u1")["events"]) <= 17


def _wait_until(what: object, within_s: float = 10.0) -> None:
    until = time.monotonic() + within_s
    while not what():  # type: ignore[operator]
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.fixture
def engine(service: InProcess, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    monkeypatch.setattr(engines, "KEEP_S", 0.05)
    running = Engine(service.holder, service.ticker, service.clock, fails_open=False, shadow=None)
    running.start()
    yield running
    running.stop()


def test_a_replica_that_is_sent_nothing_finds_out_that_the_store_is_back(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object) -> None:
        raise StoreDown("away")

    assert engine.readiness()[0]
    with monkeypatch.context() as patched:
        patched.setattr(engine.ticker.store, "prune", away)
        _wait_until(lambda: not engine.readiness()[0])
    _wait_until(lambda: engine.readiness()[0])


def test_a_fault_of_what_nobody_waits_for_does_not_end_the_service(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = threading.Event()

    def broken(*_: object) -> None:
        failed.set()
        raise ValueError("a fault")

    monkeypatch.setattr(engine.ticker.store, "prune", broken)
    assert failed.wait(10)
    request = engine.schema.decode_events(json.dumps(_post("u1", [_event(0, 0)]).body).encode(), engine.now_us())
    assert json.loads(asyncio.run(engine.events(request, None)))["decision"]
    assert engine.readiness()[0]


def test_an_id_with_a_slash_is_one_step_of_the_clients_path() -> None:
    asked: list[bytes] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.raw_path)
        return httpx.Response(200, json={})

    with FraudClient("http://127.0.0.1:1") as client:
        client._http = httpx.Client(base_url="http://127.0.0.1:1", transport=httpx.MockTransport(answer))
        client.timeline("a/b?c#d e")
    assert asked == [b"/v1/users/a%2Fb%3Fc%23d%20e/timeline"]


def test_after_the_last_key_was_revoked_nobody_may_ask_from_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "_KEYS_S", 0.01)
    url = f"sqlite:///{tmp_path}/state.db"
    with closing(open_store(url, now_us=lambda: 1)) as store:
        key = add_key(store, "scorer")
        keys, ends = Keys({}), threading.Event()
        options = serving.ServeOptions(path=tmp_path, host="0.0.0.0", state=url)
        watching = threading.Thread(target=serving._watch_keys, args=(options, keys, ends))
        watching.start()
        try:
            _wait_until(lambda: keys.rights_of(key.encode()) is not None)
            revoke_key(store, key_hash(key).hex()[:12])
            _wait_until(lambda: keys.rights_of(key.encode()) is None)
            assert keys  # still closed
        finally:
            ends.set()
            watching.join()


def test_a_store_that_can_never_be_opened_is_refused_at_once(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "service", "serve", str(tmp_path), "--state", "mysql://somewhere", "--wait", "60"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 2
    assert "expected sqlite:///PATH" in done.stderr


def test_another_label_delay_is_another_state(trained: Trained) -> None:
    config = trained.config
    assert config.labels is not None
    other = replace(config, labels=replace(config.labels, delay=(config.labels.delay or 0) + 1))
    assert stored_state_hash(config) != stored_state_hash(other)
    assert stored_state_hash(config) != stored_state_hash(replace(config, labels=None))
    assert stored_state_hash(config) == stored_state_hash(
        replace(config, labels=replace(config.labels, path="elsewhere.parquet"))
    )


def test_a_label_without_a_date_is_known_when_it_arrives_and_counts_once(trained: Trained, tmp_path: Path) -> None:
    service = InProcess(trained.folder / "boosting", f"sqlite:///{tmp_path}/state.db")
    event = {"event_id": "e", "type": "login", "ts": "2026-11-20T10:00:00Z", "channel": "web", "device": "d"}
    service.events([Post("/v1/events", {"user_id": "u", "events": [event]})])
    body = {"user_id": "u", "event_id": "e", "label": 1}
    assert service.label(Post("/v1/labels", body)) == service.label(Post("/v1/labels", body))
    stored = service.store.read(Wanted((), (("u", "e"),), ())).events["u", "e"]
    assert (stored.label, stored.label_known_us) == (1, stored.ts_us)
    service.label(Post("/v1/labels", {**body, "label": 0, "known_at": "2026-11-21T10:00:00Z"}))
    assert service.store.read(Wanted((), (("u", "e"),), ())).events["u", "e"].label == 0
    service.close()
