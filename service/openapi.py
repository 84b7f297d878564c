"""The API as an OpenAPI 3.1 document, true to the letter: the declared fields of the bundle that answers, all limits.

It is built from the same `Fields` as the decoders. FastAPI could only describe what it decodes itself.
"""

from __future__ import annotations

from typing import Any

from service.fields import Field, Fields
from service.limits import Limits
from service.problems import MAX_ERRORS, PROBLEM_JSON
from service.values import LARGEST_INTEGER, MAX_CHARACTERS

Tree = dict[str, Any]  # Any: JSON
# No control character, and not white space alone.
_TEXT_PATTERN = r"^[^\u0000-\u001f\u007f-\u009f]*[^\s\u0000-\u001f\u007f-\u009f][^\u0000-\u001f\u007f-\u009f]*$"
_TS = "2026-11-20T10:02:00Z"
_PROBLEMS = {
    400: "The body is no JSON, or the request is no valid HTTP/1.1",
    401: "No key, or an unknown one",
    403: "The role of the key does not allow this",
    404: "There is none of this id",
    405: "This path does not take this method; Allow lists those it takes",
    408: "The request was not complete in time",
    409: "An event_id came before with another payload (conflict), or an event is too old (too_late)",
    410: "It was erased",
    413: "The body is too large",
    414: "The request line is too long",
    415: "Not application/json in UTF-8, or a Content-Encoding",
    417: "An Expect header other than 100-continue",
    422: "A rule is broken; errors names the fields by path",
    429: "Too many requests of this key at once",
    431: "The headers are too large",
    500: "A fault of the service",
    503: "Overloaded, stopping, deadline passed, or the state store is away; nothing was done",
}
_TRANSPORT = (400, 405, 408, 414, 417, 431, 500, 503)


def openapi_document(fields: Fields, limits: Limits) -> Tree:
    """Return the document for a bundle with these fields."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "fraud",
            "version": "1",
            "summary": "Scores events for fraud from the order and timing of events",
            "description": "Every error is application/problem+json (RFC 9457). Unknown keys are refused. "
            f"Limits: {limits.body_bytes} bytes and {limits.events} events a request.",
        },
        "security": [{"key": []}, {}],
        "paths": _paths(),
        "components": {
            "securitySchemes": {"key": {"type": "apiKey", "in": "header", "name": "X-API-Key"}},
            "schemas": _schemas(fields),
            "parameters": {"deadline": _deadline()},
        },
    }


def _paths() -> Tree:
    return {
        "/v1/score": {"post": _post("score", "Score events without keeping them", "ScoreRequest", "Answer", ())},
        "/v1/score/batch": {
            "post": _post("score_batch", "Score several requests at once", "BatchRequest", "BatchAnswer", ())
        },
        "/v1/events": {
            "post": _post("events", "Keep events and score each of them", "EventsRequest", "Answer", (409,))
        },
        "/v1/labels": {
            "post": _post(
                "labels", "Tell what became known of events", "LabelRequest", "LabelAnswer", (409,), status=202
            )
        },
        "/v1/decisions/{decision_id}": {
            "get": _operation(
                "decision", "What was decided, and from what", "Decision", (401, 403, 404, 410, 422, 429)
            ),
            "parameters": [_path_parameter("decision_id", {"type": "string", "minLength": 1, "maxLength": 256})],
        },
        "/v1/users/{user_id}/timeline": {
            "get": _operation("timeline", "The kept events of a user", "Timeline", (401, 403, 404, 422, 429)),
            "parameters": [_path_parameter("user_id", _text())],
        },
        "/v1/users/{user_id}": {
            "delete": _operation("erase", "Erase all that is kept of a user", None, (401, 403, 404, 422, 429)),
            "parameters": [_path_parameter("user_id", _text())],
        },
        "/v1/model": {"get": _operation("model", "The model that answers", "Model", (401, 403, 429))},
        "/healthz": {"get": _open("health", "The process runs", "Status")},
        "/readyz": {"get": _open("readiness", "Requests are answered; 503 where not", "Status")},
        "/metrics": {"get": _text_operation("metrics", "Prometheus metrics", "text/plain")},
        "/openapi.json": {"get": _operation("openapi", "This document", "Document", (401, 429))},
        "/docs": {"get": _text_operation("docs", "This document, to be read by people", "text/html")},
    }


def _post(name: str, summary: str, request: str, answer: str, problems: tuple[int, ...], *, status: int = 200) -> Tree:
    codes = (401, 403, 413, 415, 422, 429, *problems)
    operation = _operation(name, summary, answer, codes, status=status)
    operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": _ref(request)}}}
    if name != "labels":
        operation["parameters"] = [{"$ref": "#/components/parameters/deadline"}]
    return operation


def _operation(name: str, summary: str, answer: str | None, problems: tuple[int, ...], *, status: int = 200) -> Tree:
    responses: Tree = {str(code): _problem(code) for code in sorted({*problems, *_TRANSPORT})}
    if answer is None:
        responses["204"] = {"description": "Done"}
    else:
        content = {"application/json": {"schema": _ref(answer)}}
        responses[str(status)] = {"description": "The answer", "content": content}
    return {"operationId": name, "summary": summary, "responses": responses}


def _open(name: str, summary: str, answer: str) -> Tree:
    return {**_operation(name, summary, answer, ()), "security": [{}]}


def _text_operation(name: str, summary: str, media: str) -> Tree:
    operation = _operation(name, summary, "Status", (401, 403, 429))
    operation["responses"]["200"]["content"] = {media: {"schema": {"type": "string"}}}
    return operation


def _problem(code: int) -> Tree:
    response: Tree = {"description": _PROBLEMS[code], "content": {PROBLEM_JSON: {"schema": _ref("Problem")}}}
    if code in (429, 503):
        response["headers"] = {"Retry-After": {"description": "Seconds", "schema": {"type": "integer"}}}
    if code == 405:
        response["headers"] = {"Allow": {"schema": {"type": "string"}}}
    return response


def _deadline() -> Tree:
    return {
        "name": "X-Deadline-Ms",
        "in": "header",
        "required": False,
        "description": "From the arrival of the headers on; work whose deadline has passed is not begun (503)",
        "schema": {"type": "integer", "minimum": 1, "maximum": 600_000},
    }


def _path_parameter(name: str, schema: Tree) -> Tree:
    return {"name": name, "in": "path", "required": True, "schema": schema}


def _ref(name: str) -> Tree:
    return {"$ref": f"#/components/schemas/{name}"}


def _text(max_characters: int = MAX_CHARACTERS) -> Tree:
    return {"type": "string", "minLength": 1, "maxLength": max_characters, "pattern": _TEXT_PATTERN}


def _object(properties: Tree, required: tuple[str, ...], **more: Any) -> Tree:  # Any: JSON
    return {
        "type": "object", "properties": properties, "required": list(required), "additionalProperties": False, **more,
    }  # fmt: skip


def _nullable(schema: Tree) -> Tree:
    return {**schema, "type": [schema["type"], "null"]}


def _field(field: Field, fields: Fields) -> Tree:
    if field.kind == "text":
        schema = _text()
    elif field.kind == "integer":
        schema = {"type": "integer", "minimum": -LARGEST_INTEGER, "maximum": LARGEST_INTEGER}
    elif field.kind == "amount":
        schema = {"type": "number", "minimum": fields.lowest_amount, "maximum": fields.max_amount}
    else:
        schema = {"type": "number", "minimum": -1.7976931348623157e308, "maximum": 1.7976931348623157e308}
    schema["description"] = f"A declared field ({field.role})"
    return schema if field.is_required else _nullable(schema)


def _schemas(fields: Fields) -> Tree:
    declared = {field.key: _field(field, fields) for field in fields.declared}
    beside = {field.key: declared[field.key] for field in fields.declared if field.is_beside}
    kind: Tree = {"type": "string", "const": "event"} if fields.fixed_type else _text(fields.max_type_characters)
    ts: Tree = {
        "type": "string",
        "format": "date-time",
        "description": "RFC 3339 with a zone, from 1990 on, at most 5 minutes ahead of the clock",
    }
    event: Tree = {"event_id": _text(), "type": kind, "ts": ts, **declared}
    # A required field may stand beside "events" in place of each event.
    needed = (*(() if fields.fixed_type else ("type",)), "ts")
    needed += tuple(f.key for f in fields.declared if f.is_required and not f.is_beside)
    a_score = {"user_id": "u-1001", "events": [_example(fields, "e1")]}

    def request(events_of: str) -> Tree:
        events = {"type": "array", "items": _ref(events_of), "minItems": 1, "maxItems": fields.max_events}
        keys = {"user_id": _text(), "events": events, "explain": {"type": "boolean", "default": False}, **beside}
        shared = [field.key for field in fields.declared if field.is_required and field.is_beside]
        either = {
            "allOf": [
                {"anyOf": [
                    {"required": [key]},
                    {"properties": {"events": {"items": {"required": [key]}}}},
                ]} for key in shared
            ]
        }  # fmt: skip
        return _object(keys, ("user_id", "events"), examples=[a_score], **(either if shared else {}))

    # Whatever else stands there gets a problem in its place, and does not fail the batch.
    session: Tree = {"anyOf": [_ref("ScoreRequest"), {"description": "Anything else gets its problem as the result"}]}
    sessions = {"type": "array", "items": session, "minItems": 1, "maxItems": fields.max_events}
    return {
        "Event": _object(event, needed),
        "KeptEvent": _object(event, ("event_id", *needed)),
        "ScoreRequest": request("Event"),
        "EventsRequest": request("KeptEvent"),
        "BatchRequest": _object({"sessions": sessions}, ("sessions",), examples=[{"sessions": [a_score]}]),
        "LabelRequest": _label(ts),
        **_answers(),
    }


def _example(fields: Fields, event_id: str) -> Tree:
    example: Tree = {"event_id": event_id, "type": "event" if fields.fixed_type else "login", "ts": _TS}
    values = {"text": "a", "amount": 120.5, "numeric": 1.5, "integer": 1}
    return example | {field.key: values[field.kind] for field in fields.declared}


def _label(ts: Tree) -> Tree:
    keys: Tree = {
        "user_id": _text(),
        "event_id": _text(),
        "session_id": _text(2 * MAX_CHARACTERS),
        "label": {"enum": [0, 1, True, False], "description": "1: fraud"},
        "known_at": {**ts, "description": "When it became known; now, if absent"},
        "source": _text(),
    }
    never = {"not": {}}
    subjects = [
        {"required": ["user_id", "event_id"], "properties": {"session_id": never}},
        {"required": ["session_id"], "properties": {"user_id": never, "event_id": never}},
        {"required": ["user_id"], "properties": {"session_id": never, "event_id": never}},
    ]
    example = {"user_id": "u-1001", "event_id": "e1", "label": 1, "known_at": _TS, "source": "chargeback"}
    return _object(keys, ("label",), oneOf=subjects, examples=[example])


def _answers() -> Tree:
    text, number, integer = {"type": "string"}, {"type": "number"}, {"type": "integer"}
    score = _nullable({"type": "number", "minimum": 0, "maximum": 1})
    decision: Tree = {"type": "string", "enum": ["allow", "review", "block"]}
    any_decision: Tree = {"type": ["string", "null"], "enum": ["allow", "review", "block", None]}
    model = _object({"name": text, "version": text, "sha256": text}, ("name", "version", "sha256"))
    reason = {"code": text, "text": text, "event_index": integer, "contribution": number}
    line: Tree = {
        "event_id": _nullable(text), "type": text, "ts": text, "score": score, "decision": any_decision,
        "decision_id": _nullable(text),
    }  # fmt: skip
    warning = {"code": text, "path": text, "text": text}
    answer: Tree = {
        "decision_id": _nullable(text),
        "score": score,
        "risk": _nullable({"type": "number", "minimum": 0, "maximum": 100}),
        "decision": decision,
        "reasons": {"type": "array", "items": _object(reason, tuple(reason))},
        "events": {"type": "array", "items": _object(line, tuple(line))},
        "model": model,
        "policy_version": text,
        "warnings": {"type": "array", "items": _object(warning, tuple(warning))},
        "degraded": {"type": "boolean", "description": "The state store was away; nothing was kept of this"},
    }
    error = {"path": text, "code": text, "text": text}
    problem: Tree = {
        "type": text, "title": text, "status": integer, "detail": text, "code": text,
        "errors": {"type": "array", "maxItems": MAX_ERRORS, "items": _object(error, tuple(error))},
    }  # fmt: skip
    either = {"type": "array", "items": {"anyOf": [_ref("Answer"), _ref("Problem")]}}
    return {
        "Answer": _object(answer, tuple(answer)),
        "BatchAnswer": _object({"results": either}, ("results",)),
        "LabelAnswer": _object({"label_id": text}, ("label_id",)),
        "Decision": {"type": "object", "properties": {"decision_id": text}, "required": ["decision_id"]},
        "Timeline": {
            "type": "object",
            "properties": {"user_id": text, "events": {"type": "array", "items": {"type": "object"}}},
            "required": ["user_id", "events"],
        },
        "Model": {"type": "object", "properties": {"name": text, "version": text, "sha256": text},
                  "required": ["name", "version", "sha256"]},
        "Status": {"type": "object", "properties": {"status": text}, "required": ["status"]},
        "Document": {"type": "object", "required": ["openapi", "paths"]},
        "Problem": _object(problem, tuple(problem)),
    }  # fmt: skip
