"""What a request line and headers must be for the rest to be read: the rules of the transport, and their problems.

Where a request ends must be beyond doubt, since a proxy that read it differently could be made to smuggle another in.
"""

from __future__ import annotations

import re
from typing import NamedTuple
from urllib.parse import unquote

import httptools

from service.limits import Limits
from service.problems import Problem

_HOST = re.compile(rb"(?:[A-Za-z0-9._~!$&'()*+;=-]{1,255}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?")
_ONCE = frozenset(
    (b"host", b"content-length", b"content-type", b"content-encoding", b"transfer-encoding", b"x-api-key",
     b"x-deadline-ms", b"expect", b"authorization")
)  # fmt: skip


class Target(NamedTuple):
    """What a request line asks for. path: decoded, but for slashes; raw: as it came; query: as it came."""

    path: str
    raw: bytes
    query: bytes


def target_of(url: bytes) -> Target | None:
    """Return the target of a request line, None where it is no path in UTF-8.

    An encoded slash stays "%2F" in the path: it belongs to a user's id, and must not make two segments of one.
    """
    try:
        raw, query = url, b""
        if b"?" in url or b"#" in url or not url.startswith(b"/"):
            parsed = httptools.parse_url(url)
            raw, query = parsed.path or b"", parsed.query or b""
        path = raw.decode("ascii")
        if "%" in path:
            path = unquote(path.replace("%2f", "%2F").replace("%2F", "%252F"), errors="strict")
    except (httptools.HttpParserInvalidURLError, UnicodeDecodeError):
        return None
    return Target(path, raw, query) if path.startswith("/") else None


def problem_of_headers(
    headers: list[tuple[bytes, bytes]], found: dict[bytes, bytes], version: str, method: str, limits: Limits
) -> Problem | None:
    """Return why a request is not taken, from its headers alone."""
    if version not in ("1.1", "1.0"):
        return Problem(505, "http_version_not_supported", detail="Expected HTTP/1.1.")
    if len(found) != len(headers):
        names = [name for name, _ in headers]
        if any(names.count(name) > 1 for name in _ONCE & set(names)):
            return bad_request("a header stands twice")
    host = found.get(b"host")
    if (host is None and version == "1.1") or (host is not None and not _HOST.fullmatch(host)):
        return bad_request("expected one valid Host header")
    if method == "CONNECT":
        return bad_request("this is no proxy")
    encoding, length = found.get(b"transfer-encoding"), found.get(b"content-length")
    if encoding is not None and (encoding.lower() != b"chunked" or length is not None or version == "1.0"):
        return bad_request("expected Content-Length, or Transfer-Encoding: chunked alone")
    if length is not None and (not length.isdigit() or len(length) > 18):
        return bad_request("expected a Content-Length of digits")
    if length is not None and int(length) > limits.body_bytes:
        return body_too_large(limits)
    if b"expect" in found and found[b"expect"].lower() != b"100-continue":
        return Problem(417, "expectation_failed", detail="Expected no Expect header but 100-continue.")
    return None


def bad_request(text: str) -> Problem:
    return Problem(400, "bad_request", detail=f"The request is not valid HTTP/1.1: {text}.")


def headers_too_large() -> Problem:
    return Problem(431, "headers_too_large", detail="The request line and headers are too large.")


def body_too_large(limits: Limits) -> Problem:
    return Problem(413, "body_too_large", detail=f"Expected a body of at most {limits.body_bytes} bytes.")


def not_answered() -> Problem:
    return Problem(500, "internal_error", detail="The request was not answered.")


def stopping() -> Problem:
    return Problem(503, "stopping", detail="This replica is stopping.", retry_after_s=1)


def overloaded(what: str) -> Problem:
    detail = f"Too much at once ({what}); nothing of the request was done."
    return Problem(503, "overloaded", detail=detail, retry_after_s=1)
