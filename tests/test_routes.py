"""The routes over the fake engine: what they ask of it, what they answer, and who may ask."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import httpx
import pytest

from fraud.errors import ConfigError
from service.app import create_app
from service.auth import ROLES, Keys, check_host, is_loopback, key_hash
from service.limits import Limits, Load
from service.logs import configure_logs, pairs
from service.metrics import Metrics
from service.problems import Problem
from service.schemas import EventsRequest, LabelRequest, ScoreRequest
from tests.fake_engine import FakeEngine, simulated_config

TS = "2026-11-20T10:00:00Z"
GOOD = {"user_id": "u1", "events": [{"event_id": "e1", "type": "login", "ts": TS}]}
SECRETS = {role: f"key of a {role}" for role in ROLES}


class Service(NamedTuple):
    """The application in this process, without a socket."""

    engine: FakeEngine
    load: Load
    metrics: Metrics
    limits: Limits
    keys: Keys

    def ask(
        self, method: str, path: str, *, content: bytes | None = None, headers: Mapping[str, str] | None = None,
        of: Any = None, client: str = "203.0.113.7",
    ) -> httpx.Response:  # fmt: skip  # Any: JSON
        """Return the answer to one request; of: a JSON body."""
        import asyncio

        app = create_app(self.engine, limits=self.limits, load=self.load, keys=self.keys, metrics=self.metrics)

        async def once() -> httpx.Response:
            transport = httpx.ASGITransport(app=app, client=(client, 1))
            async with httpx.AsyncClient(transport=transport, base_url="http://x") as http:
                body = json.dumps(of).encode() if of is not None else content
                lines = {"content-type": "application/json"} if body is not None else {}
                return await http.request(method, path, content=body, headers={**lines, **(headers or {})})

        return asyncio.run(once())


def service(keys: Mapping[str, str] | None = None, **limits: Any) -> Service:
    """Return a service; keys: key -> role."""
    known = {key_hash(key): role for key, role in (keys or {}).items()}
    return Service(FakeEngine(simulated_config()), Load(), Metrics(), Limits(**limits), Keys(known))


@pytest.fixture
def plain() -> Service:
    """Return a service without keys."""
    return service()


def is_problem(response: httpx.Response, status: int, code: str) -> bool:
    """Return True where an answer is this problem, whole and well formed."""
    found = response.json()
    return (
        response.status_code == found["status"] == status
        and response.headers["content-type"] == "application/problem+json"
        and found["code"] == code
        and set(found) == {"type", "title", "status", "detail", "code", "errors"}
    )


@pytest.mark.parametrize(
    ("method", "path", "of", "status", "seen"),
    [
        ("POST", "/v1/score", GOOD, 200, ScoreRequest),
        ("POST", "/v1/events", GOOD, 200, EventsRequest),
        ("POST", "/v1/score/batch", {"sessions": [GOOD]}, 200, ScoreRequest),
        ("POST", "/v1/labels", {"user_id": "u", "label": 1}, 202, LabelRequest),
        ("GET", "/v1/decisions/1-1", None, 200, str),
        ("GET", "/v1/users/u1/timeline", None, 200, str),
        ("GET", "/v1/model", None, 200, None),
        ("GET", "/healthz", None, 200, None),
        ("GET", "/readyz", None, 200, None),
        ("GET", "/metrics", None, 200, None),
        ("GET", "/openapi.json", None, 200, None),
        ("GET", "/docs", None, 200, None),
        ("DELETE", "/v1/users/u1", None, 204, str),
    ],
)
def test_each_route_asks_the_engine(
    plain: Service, method: str, path: str, of: object, status: int, seen: type | None
) -> None:
    response = plain.ask(method, path, of=of)
    assert response.status_code == status
    assert [type(one) for one in plain.engine.seen] == ([] if seen is None else [seen])
    assert response.headers["cache-control"] == "no-store"
    if status != 204:
        assert int(response.headers["content-length"]) == len(response.content)


def test_a_batch_gives_an_answer_or_a_problem_each(plain: Service) -> None:
    results = plain.ask("POST", "/v1/score/batch", of={"sessions": [GOOD, {"user_id": ""}, GOOD]}).json()["results"]
    assert [one.get("status", one.get("score")) for one in results] == [0.5, 422, 0.5]
    assert results[1]["errors"][0]["path"] == "sessions.1.user_id"


@pytest.mark.parametrize("user_id", ["ü 😀", "..", "a%2Fb", "a?b#c", "a+b"])
def test_a_user_id_in_a_path_may_be_any_text(plain: Service, user_id: str) -> None:
    quoted = "".join(f"%{byte:02X}" for byte in user_id.encode())
    assert plain.ask("DELETE", f"/v1/users/{quoted}").status_code == 204
    assert plain.engine.seen == [user_id]
    assert plain.ask("GET", f"/v1/users/{quoted}/timeline").json()["user_id"] == user_id


def test_a_user_id_in_a_path_keeps_the_rules_of_ids(plain: Service) -> None:
    assert is_problem(plain.ask("DELETE", "/v1/users/%20"), 422, "invalid_request")
    assert is_problem(plain.ask("GET", f"/v1/users/{'a' * 257}/timeline"), 422, "invalid_request")
    assert is_problem(plain.ask("GET", "/v1/users/a%09b/timeline"), 422, "invalid_request")


def test_problems_of_the_routing_are_problems(plain: Service) -> None:
    assert is_problem(plain.ask("GET", "/nothing"), 404, "not_found")
    assert is_problem(plain.ask("POST", "/v1/score/", of=GOOD), 404, "not_found")
    assert is_problem(plain.ask("GET", "/v1/decisions/9-9"), 404, "not_found")
    refused = plain.ask("PUT", "/v1/score", of=GOOD)
    assert is_problem(refused, 405, "method_not_allowed")
    assert refused.headers["allow"] == "POST"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"content-type": "application/json; charset=utf-8"}, 200),
        ({"content-type": 'Application/JSON;charset="UTF-8"'}, 200),
        ({"content-encoding": "identity"}, 200),
        ({"content-type": "application/json; charset=latin-1"}, 415),
        ({"content-type": "application/json, text/html"}, 415),
        ({"content-type": "text/plain"}, 415),
        ({"content-type": ""}, 415),
        ({"content-encoding": "gzip"}, 415),
        ({"content-encoding": "identity, gzip"}, 415),
    ],
)
def test_a_body_is_json_as_it_is(plain: Service, headers: dict[str, str], status: int) -> None:
    assert plain.ask("POST", "/v1/score", of=GOOD, headers=headers).status_code == status


def test_a_body_over_the_limit_is_refused() -> None:
    assert is_problem(service(body_bytes=10).ask("POST", "/v1/score", of=GOOD), 413, "body_too_large")


@pytest.mark.parametrize("value", ["0", "-5", "soon", "1.5", "600001", "99999999"])
def test_a_deadline_is_milliseconds(plain: Service, value: str) -> None:
    response = plain.ask("POST", "/v1/score", of=GOOD, headers={"X-Deadline-Ms": value})
    assert is_problem(response, 400, "bad_deadline")


def test_the_engine_is_told_the_deadline(plain: Service) -> None:
    plain.ask("POST", "/v1/score", of=GOOD)
    assert plain.engine.deadlines == [None]
    plain.ask("POST", "/v1/score", of=GOOD, headers={"X-Deadline-Ms": "5000"})
    deadline = plain.engine.deadlines[0]
    assert deadline is not None
    assert 3 < deadline - time.monotonic() <= 5


def test_a_fault_of_ours_is_counted_and_tells_nothing(plain: Service, caplog: pytest.LogCaptureFixture) -> None:
    plain.engine.error = ValueError("u1 has 5,000 in account 4711")
    response = plain.ask("POST", "/v1/score", of=GOOD)
    assert is_problem(response, 500, "internal_error")
    assert "4711" not in response.text
    assert caplog.records[0].getMessage() == "event=unhandled_error route=/v1/score"
    assert b'fraud_problems_total{code="internal_error"} 1.0' in plain.metrics.text()


def test_a_problem_of_the_engine_is_passed_on(plain: Service) -> None:
    plain.engine.error = Problem(503, "store_down", detail="The state store is away.", retry_after_s=2)
    response = plain.ask("POST", "/v1/events", of=GOOD)
    assert is_problem(response, 503, "store_down")
    assert response.headers["retry-after"] == "2"


def test_readiness_is_the_engines_and_ends_with_the_drain(plain: Service) -> None:
    assert plain.ask("GET", "/readyz").json() == {"status": "ready", "store": "up", "model": "1"}
    plain.engine.is_ready = False
    assert is_problem(plain.ask("GET", "/readyz"), 503, "not_ready")
    plain.engine.is_ready, plain.load.is_draining = True, True
    assert is_problem(plain.ask("GET", "/readyz"), 503, "not_ready")
    assert plain.ask("GET", "/healthz").status_code == 200


def test_answers_are_counted_by_route_and_status(plain: Service) -> None:
    plain.ask("POST", "/v1/score", of=GOOD)
    plain.ask("POST", "/v1/score", of={})
    text = plain.ask("GET", "/metrics").text
    assert 'fraud_requests_total{route="/v1/score",status="200"} 1.0' in text
    assert 'fraud_requests_total{route="/v1/score",status="422"} 1.0' in text
    assert 'fraud_request_seconds_count{route="/v1/score"} 2.0' in text


# Who may ask.

ASKED = [
    ("POST", "/v1/score", GOOD, "score"),
    ("POST", "/v1/score/batch", {"sessions": [GOOD]}, "score"),
    ("POST", "/v1/events", GOOD, "events"),
    ("POST", "/v1/labels", {"user_id": "u", "label": 1}, "labels"),
    ("GET", "/v1/decisions/1-1", None, "decisions"),
    ("GET", "/v1/users/u/timeline", None, "timeline"),
    ("GET", "/v1/model", None, "model"),
    ("DELETE", "/v1/users/u", None, "erase"),
    ("GET", "/metrics", None, "metrics"),
]


@pytest.fixture(scope="module")
def guarded() -> Service:
    """Return a service with a key of each role."""
    return service({secret: role for role, secret in SECRETS.items()})


@pytest.mark.parametrize(("method", "path", "of", "right"), ASKED)
@pytest.mark.parametrize("role", sorted(ROLES))
def test_a_role_may_do_what_it_is_for(
    guarded: Service, role: str, method: str, path: str, of: object, right: str
) -> None:
    response = guarded.ask(method, path, of=of, headers={"X-API-Key": SECRETS[role]})
    if right in dict(ROLES)[role]:  # type: ignore[index]
        assert response.status_code < 300
    else:
        assert is_problem(response, 403, "forbidden")


@pytest.mark.parametrize(("method", "path", "of", "right"), ASKED)
@pytest.mark.parametrize("headers", [{}, {"X-API-Key": "wrong"}, {"X-API-Key": ""}])
def test_nobody_may_do_anything_without_a_known_key(
    guarded: Service, headers: dict[str, str], method: str, path: str, of: object, right: str
) -> None:
    guarded.engine.seen = []
    response = guarded.ask(method, path, of=of, headers=headers)
    assert is_problem(response, 401, "unauthorized")
    assert "www-authenticate" in response.headers
    assert guarded.engine.seen == []


def test_health_is_open_and_the_documents_are_for_any_key(guarded: Service) -> None:
    assert guarded.ask("GET", "/healthz").status_code == 200
    assert guarded.ask("GET", "/readyz").status_code == 200
    assert guarded.ask("GET", "/docs").status_code == 401
    assert guarded.ask("GET", "/openapi.json", headers={"X-API-Key": SECRETS["labeller"]}).status_code == 200


def test_metrics_are_open_to_this_machine_unless_a_proxy_asks(guarded: Service) -> None:
    assert guarded.ask("GET", "/metrics", client="127.0.0.1").status_code == 200
    assert guarded.ask("GET", "/metrics", client="::1").status_code == 200
    forwarded = guarded.ask("GET", "/metrics", client="127.0.0.1", headers={"X-Forwarded-For": "127.0.0.1"})
    assert is_problem(forwarded, 401, "unauthorized")


def test_a_key_may_have_so_much_in_flight() -> None:
    crowded = service({"a key": "admin"}, in_flight_per_key=0)
    response = crowded.ask("POST", "/v1/score", of=GOOD, headers={"X-API-Key": "a key"})
    assert is_problem(response, 429, "too_many_requests")
    assert response.headers["retry-after"] == "1"


def test_a_key_is_known_by_its_hash_alone() -> None:
    assert key_hash("a key") == hashlib.sha256(b"a key").digest()
    assert Keys({key_hash("a key"): "scorer"}).rights_of(b"a key") == ROLES["scorer"]
    assert Keys({key_hash("a key"): "scorer"}).rights_of(b"a ke") is None


def test_keys_are_replaced_at_once() -> None:
    keys = Keys({key_hash("a"): "scorer"})
    keys.replace({key_hash("b"): "admin"})
    assert keys.rights_of(b"a") is None
    assert keys.rights_of(b"b") == ROLES["admin"]


def test_a_role_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match="expected one of scorer"):
        Keys({key_hash("a"): "god"})


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.1.2.3", "example.org", "127.0.0.1.example.org"])
def test_without_keys_the_service_is_not_open_to_others(host: str) -> None:
    assert not is_loopback(host)
    with pytest.raises(ConfigError, match="fraud keys add"):
        check_host(host, Keys({}))
    check_host(host, Keys({key_hash("a"): "scorer"}))


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.1.2.3", "::ffff:127.0.0.1"])
def test_without_keys_the_service_is_open_to_this_machine(host: str) -> None:
    check_host(host, Keys({}))


# What it tells of itself.


def test_the_document_names_every_route_and_no_other(plain: Service) -> None:
    document = plain.ask("GET", "/openapi.json").json()
    described = {(method.upper(), path) for path, found in document["paths"].items() for method in found}
    app = create_app(plain.engine, limits=plain.limits, load=plain.load, keys=plain.keys, metrics=plain.metrics)
    routes = {
        (method, route.path)  # type: ignore[attr-defined]
        for route in app.routes
        for method in route.methods - {"HEAD"}  # type: ignore[attr-defined]
    }
    assert {one for one in described if one[0] != "PARAMETERS"} == routes
    assert app.openapi() == document


def test_the_document_has_the_declared_fields_and_true_examples(plain: Service) -> None:
    schemas = plain.ask("GET", "/openapi.json").json()["components"]["schemas"]
    assert {"amount", "channel", "payee", "device"} <= set(schemas["Event"]["properties"])
    assert plain.ask("POST", "/v1/score", of=schemas["ScoreRequest"]["examples"][0]).status_code == 200
    assert plain.ask("POST", "/v1/events", of=schemas["EventsRequest"]["examples"][0]).status_code == 200
    assert plain.ask("POST", "/v1/score/batch", of=schemas["BatchRequest"]["examples"][0]).status_code == 200
    assert plain.ask("POST", "/v1/labels", of=schemas["LabelRequest"]["examples"][0]).status_code == 202


def test_the_page_loads_nothing_from_anywhere(plain: Service) -> None:
    page = plain.ask("GET", "/docs").text
    assert "http://" not in page
    assert "https://" not in page
    assert "<script" not in page
    assert "POST /v1/score" in page


def test_a_log_line_holds_no_user_and_no_second_line(capsys: pytest.CaptureFixture[str]) -> None:
    import sys

    before = (logging.getLogger().handlers[:], logging.getLogger().level)
    try:
        configure_logs(sys.stderr)
        logging.getLogger("service").warning(pairs("odd", text='a\nlevel=fatal "b"', seconds=0.25))
        logging.getLogger("asyncio").error("Exception in callback data_received(b'user 4711')")
    finally:
        logging.getLogger().handlers[:], level = before
        logging.getLogger().setLevel(level)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert lines[0].endswith('event=odd text="a level=fatal \\"b\\"" seconds=0.25')
    assert "4711" not in lines[1]
