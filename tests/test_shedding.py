"""A request that is turned away unread is one that the parser would have read as exactly one, whole and harmless."""

from __future__ import annotations

import httptools
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from service.exchange import Exchange
from service.framing import overloaded
from service.shedding import is_whole_post, refusal

_BODY = b'{"user_id":"u","events":[]}'
_HTTPX = (
    b"POST /v1/events HTTP/1.1\r\nHost: 127.0.0.1:8000\r\nAccept: */*\r\nAccept-Encoding: gzip, deflate\r\n"
    b"Connection: keep-alive\r\nUser-Agent: python-httpx/0.28.1\r\nContent-Length: 27\r\n"
    b"Content-Type: application/json\r\n\r\n"
)
_LINES = (
    b"Host: x", b"Content-Length: 27", b"content-length:27", b"Content-Length: 3", b"Content-Length : 27",
    b"Content-Length: 27, 27", b"Content-Length: +27", b"Transfer-Encoding: chunked", b"Connection: close",
    b"Connection: keep-alive", b"Connection: upgrade", b"Upgrade: websocket", b"Expect: 100-continue", b" folded: 1",
    b"X-API-Key: k", b"X-Deadline-Ms: 5", b"A: \x00", b"A: \xff", b"bad name: 1", b"A:", b"A: 1\rB: 2", b"A: 1\nB: 2",
)  # fmt: skip
_STARTS = (
    b"POST /v1/events HTTP/1.1", b"POST /v1/score/batch HTTP/1.1", b"GET /v1/model HTTP/1.1",
    b"POST /v1/events HTTP/1.0", b"POST http://x/v1/events HTTP/1.1", b"POST /v1/events?a=1 HTTP/1.1",
    b"POST  /v1/events HTTP/1.1", b"\r\nPOST /v1/events HTTP/1.1",
)  # fmt: skip
_requests = st.builds(
    lambda start, lines, body: b"\r\n".join((start, *lines, b"", b"")) + body,
    st.sampled_from(_STARTS),
    st.lists(st.sampled_from(_LINES), max_size=5),
    st.sampled_from((_BODY, _BODY + b"x", _BODY[1:], b"", _HTTPX + _BODY, _BODY + _HTTPX)),
)


class _Read:
    """What httptools makes of bytes."""

    def __init__(self, data: bytes) -> None:
        self.n_messages = 0
        self.body = b""
        parser = httptools.HttpRequestParser(self)
        parser.feed_data(data)
        self.is_kept_alive = parser.should_keep_alive()
        self.method = parser.get_method()

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.n_messages += 1


@given(_requests)
@example(_HTTPX + _BODY)
def test_what_is_turned_away_unread_is_one_whole_request_to_the_parser_too(data: bytes) -> None:
    if is_whole_post(data):
        read = _Read(data)
        assert (read.n_messages, read.method, read.is_kept_alive) == (1, b"POST", True)
        assert data.endswith(b"\r\n\r\n" + read.body)


def test_what_clients_send_is_recognised() -> None:
    assert is_whole_post(_HTTPX + _BODY)
    assert is_whole_post(b"POST /v1/score HTTP/1.1\r\nhost: x\r\ncontent-length:27\r\n\r\n" + _BODY)


@pytest.mark.parametrize(
    "data",
    [
        _HTTPX,
        _HTTPX + _BODY[:-1],
        (_HTTPX + _BODY) * 2,
        _HTTPX.replace(b"Content-Length: 27", b"Content-Length: 27\r\nContent-Length: 27") + _BODY,
        _HTTPX.replace(b"Content-Length: 27", b"Transfer-Encoding: chunked\r\nContent-Length: 27") + _BODY,
        _HTTPX.replace(b"keep-alive", b"close") + _BODY,
        _HTTPX.replace(b"HTTP/1.1", b"HTTP/1.0") + _BODY,
        _HTTPX.replace(b"POST", b"PUT") + _BODY,
        _HTTPX.replace(b"Accept: */*", b"A: " + b"a" * 1100) + _BODY,
    ],
)
def test_what_leaves_any_doubt_is_read(data: bytes) -> None:
    assert not is_whole_post(data)


def test_the_refusal_is_what_an_exchange_would_write() -> None:
    headers = [(b"date", b"Thu, 26 Nov 2026 13:08:17 GMT"), (b"server", b"x")]
    written: list[bytes] = []
    Exchange(None, lambda _, lines: written.extend(lines), None).answer_problem(overloaded("in_flight"))
    written[1:1] = [b"%b: %b\r\n" % header for header in headers]
    assert refusal(headers) == b"".join(written)
