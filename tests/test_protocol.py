"""HTTP/1.1 with limits, over real sockets: what is slow, large, doubtful or too much, and that others are answered."""

from __future__ import annotations

import contextlib
import gzip
import json
import signal
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.http_server import GOOD, Client, Reply, Running, ask, request, serving

SHORT = {"header_s": 0.4, "body_s": 0.4, "idle_s": 0.4, "write_s": 0.4}
SCORE = request("POST", "/v1/score", GOOD)
CHUNKED = {"Content-Type": "application/json", "Transfer-Encoding": "chunked"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Return a server with short times and the usual sizes."""
    with serving(tmp_path_factory.mktemp("server") / "log", limits=SHORT) as running:
        yield running


def is_refused(reply: Reply, status: int, code: str) -> bool:
    """Return True for this problem, with a closed connection announced."""
    return (
        (reply.status, reply.code) == (status, code)
        and reply.headers["content-type"] == "application/problem+json"
        and reply.headers["connection"] == "close"
    )


def test_a_connection_is_kept_for_the_next_request(server: Running) -> None:
    with Client(server.port) as client:
        for _ in range(3):
            client.send(SCORE)
            reply = client.reply()
            assert reply.status == 200
            assert "connection" not in reply.headers
            assert json.loads(reply.body)["score"] == 0.5


def test_requests_sent_ahead_are_answered_in_order(server: Running) -> None:
    bad = request("POST", "/v1/score", b"{}")
    health = request("GET", "/healthz")
    with Client(server.port) as client:
        client.send((SCORE + bad + health) * 100)
        statuses = [client.reply().status for _ in range(300)]
    assert statuses == [200, 422, 200] * 100


def test_a_request_may_come_byte_by_byte(server: Running) -> None:
    with Client(server.port) as client:
        client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for place in range(len(SCORE)):
            client.send(SCORE[place : place + 1])
        assert client.reply().status == 200


def test_a_body_may_come_in_chunks(server: Running) -> None:
    head = request("POST", "/v1/score", None, CHUNKED)
    chunks = b"".join(b"1;name=value\r\n%c\r\n" % byte for byte in GOOD)
    with Client(server.port) as client:
        client.send(head + chunks + b"0\r\nX-Trailer: ignored\r\n\r\n" + SCORE)
        assert client.reply().status == 200
        assert client.reply().status == 200


def test_a_head_answer_has_no_body(server: Running) -> None:
    with Client(server.port) as client:
        client.send(request("HEAD", "/healthz") + request("GET", "/healthz"))
        head = client.reply(is_head=True)
        assert (head.status, head.headers["content-length"]) == (200, "15")
        assert client.reply().body == b'{"status":"ok"}'


def test_http_1_0_is_answered_and_closed(server: Running) -> None:
    with Client(server.port) as client:
        client.send(b"GET /healthz HTTP/1.0\r\n\r\n")
        assert client.reply().headers["connection"] == "close"
        assert client.is_closed()


def test_connection_close_is_obeyed(server: Running) -> None:
    with Client(server.port) as client:
        client.send(request("GET", "/healthz", headers={"Connection": "close"}) + SCORE)
        assert client.reply().headers["connection"] == "close"
        assert client.is_closed()


def test_who_has_sent_all_is_still_answered(server: Running) -> None:
    with Client(server.port) as client:
        client.send(SCORE + SCORE)
        client.socket.shutdown(socket.SHUT_WR)
        assert client.reply().status == 200
        assert client.reply().status == 200
        assert client.is_closed()


@pytest.mark.parametrize("user_id", ["a/b", "a/timeline", "/", "a%2Fb", "a%252Fb"])
def test_an_encoded_slash_belongs_to_the_id(server: Running, user_id: str) -> None:
    reply = ask(server.port, request("GET", f"/v1/users/{quote(user_id, safe='')}/timeline"))
    assert json.loads(reply.body)["user_id"] == user_id
    assert ask(server.port, request("DELETE", f"/v1/users/{quote(user_id, safe='')}")).status == 204
    absolute = ask(server.port, request("GET", f"http://x/v1/users/{quote(user_id, safe='')}/timeline?a=b"))
    assert json.loads(absolute.body)["user_id"] == user_id


def test_a_plain_slash_ends_the_id(server: Running) -> None:
    assert ask(server.port, request("DELETE", "/v1/users/a/b")).status == 404
    assert ask(server.port, request("DELETE", "/v1/users/a/timeline")).status == 405


@pytest.mark.parametrize("is_chunked", [False, True])
def test_an_upgrade_that_is_offered_is_ignored(server: Running, is_chunked: bool) -> None:
    offer = {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c", "HTTP2-Settings": "AA"}
    data = request("POST", "/v1/score", GOOD, offer)
    if is_chunked:
        head = request("POST", "/v1/score", None, {**offer, **CHUNKED})
        data = head + b"%x\r\n" % len(GOOD) + GOOD + b"\r\n0\r\n\r\n"
    with Client(server.port) as client:
        client.send(request("GET", "/healthz", headers=offer) + data + SCORE + data[:-10])
        assert [client.reply().status for _ in range(3)] == [200, 200, 200]
        time.sleep(0.05)
        client.send(data[-10:])
        assert client.reply().status == 200


# Too slow.


@pytest.mark.parametrize(
    ("first", "drip", "status"),
    [
        (b"", b"", None),
        (b"", b"\r\n", None),
        (b"GET /healthz HTTP/1.1\r\nX-A: ", b"a", 408),
        (SCORE[:-10], b"_", 408),
        (SCORE, b"", 200),
    ],
    ids=["never sent", "empty lines", "slow headers", "slow body", "idle after an answer"],
)
def test_slow_and_idle_connections_are_closed(server: Running, first: bytes, drip: bytes, status: int | None) -> None:
    began = time.monotonic()
    with Client(server.port) as client:
        client.send(first)
        client.socket.settimeout(0.1)
        while time.monotonic() - began < 5:
            try:
                if status is not None:
                    reply = client.reply()
                    assert reply.status == status
                    status = None
                if client.is_closed():
                    break
            except TimeoutError:
                pass
            if drip and time.monotonic() - began < 0.4:
                client.send(drip)
    assert 0.3 < time.monotonic() - began < 3


def test_who_takes_no_answer_is_cut_off(server: Running) -> None:
    n_requests, n_bytes = 500, 0
    size = len(ask(server.port, request("GET", "/docs")).body)
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        slow.settimeout(5)
        slow.connect(("127.0.0.1", server.port))
        slow.sendall(request("GET", "/docs") * n_requests)
        time.sleep(1.2)
        assert ask(server.port, SCORE).status == 200
        with contextlib.suppress(ConnectionResetError):
            while data := slow.recv(1 << 20):  # what was on its way can still be read
                n_bytes += len(data)
    assert n_bytes < n_requests * size


# Too large.


def test_a_body_that_is_declared_too_large_is_refused_at_once(server: Running) -> None:
    head = request("POST", "/v1/score", None, {"Content-Type": "application/json", "Content-Length": str(1 << 30)})
    assert is_refused(ask(server.port, head), 413, "body_too_large")
    expecting = head.replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\n\r\n")
    assert is_refused(ask(server.port, expecting), 413, "body_too_large")


def test_a_body_that_grows_too_large_is_refused_on_the_way(server: Running) -> None:
    head = request("POST", "/v1/score", None, CHUNKED)
    with Client(server.port) as client:
        client.send(head)
        chunk = b"10000\r\n" + b"[" * 65536 + b"\r\n"
        for _ in range(20):  # 1.25 MB, all of which is taken: the answer would be lost with a reset
            client.send(chunk)
        assert is_refused(client.reply(), 413, "body_too_large")


def test_chunks_that_are_mostly_wrapping_count_as_they_are_sent(server: Running) -> None:
    head = request("POST", "/v1/score", None, CHUNKED)
    with Client(server.port) as client:
        client.send(head + (b"1;" + b"x" * 1000 + b"\r\n \r\n") * 1200)
        assert is_refused(client.reply(), 413, "body_too_large")


@pytest.mark.parametrize(
    ("data", "status", "code"),
    [
        (request("GET", "/healthz", headers={"X-A": "a" * 16384}), 431, "headers_too_large"),
        (request("GET", "/healthz", headers={f"X-{i}": "a" for i in range(2000)}), 431, "headers_too_large"),
        (b"GET /healthz HTTP/1.1\r\nX-A: " + b"a" * 100_000, 431, "headers_too_large"),
        (b"GET /" + b"a" * 100_000, 431, "headers_too_large"),
        (request("GET", "/" + "a" * 9000), 414, "uri_too_long"),
        (
            request("POST", "/v1/score", None, {"Transfer-Encoding": "chunked"}) + b"0\r\n" + b"X-T: y\r\n" * 5000,
            431,
            "headers_too_large",
        ),
    ],
)
def test_headers_that_are_too_large_are_refused(server: Running, data: bytes, status: int, code: str) -> None:
    assert is_refused(ask(server.port, data), status, code)


def test_a_thousand_short_headers_are_taken(server: Running) -> None:
    assert ask(server.port, request("GET", "/healthz", headers={f"X-{i}": "a" for i in range(1000)})).status == 200


def test_compressed_bodies_are_not_unpacked(server: Running) -> None:
    bomb = gzip.compress(b" " * (20 << 20))
    reply = ask(server.port, request("POST", "/v1/score", bomb, {"Content-Encoding": "gzip"}))
    assert (reply.status, reply.code) == (415, "unsupported_encoding")


# Doubtful.

HEAD = "POST /v1/score HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
LENGTH = f"Content-Length: {len(GOOD)}\r\n"


@pytest.mark.parametrize(
    "head",
    [
        HEAD + LENGTH + "Transfer-Encoding: chunked\r\n",
        HEAD + LENGTH + LENGTH,
        HEAD + LENGTH + "Content-Length: 5\r\n",
        HEAD + f"Content-Length: 5, {len(GOOD)}\r\n",
        HEAD + f"Content-Length: +{len(GOOD)}\r\n",
        HEAD + "Content-Length: -1\r\n",
        HEAD + "Content-Length: 0x10\r\n",
        HEAD + "Content-Length: 1" + "0" * 30 + "\r\n",
        HEAD + "Transfer-Encoding: xchunked\r\n",
        HEAD + "Transfer-Encoding: identity, chunked\r\n",
        HEAD + "Transfer-Encoding: chunked, gzip\r\n",
        HEAD + "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        HEAD.replace("1.1", "1.0") + "Transfer-Encoding: chunked\r\n",
        HEAD + f"Content-Length : {len(GOOD)}\r\n",
        HEAD + "X-A: a\r\n b\r\n" + LENGTH,
        HEAD + "X-A: a\0b\r\n" + LENGTH,
        (HEAD + LENGTH).replace("\r\n", "\n"),
        HEAD.replace("Host: x\r\n", "") + LENGTH,
        HEAD + "Host: evil\r\n" + LENGTH,
        HEAD + "host: x\r\n" + LENGTH,
        HEAD.replace("Host: x", "Host: a/../x?#@") + LENGTH,
        HEAD.replace("Host: x", "Host: ") + LENGTH,
        HEAD.replace("Host: x", "Host: x y") + LENGTH,
        HEAD.replace("Host: x", "Host: x:123456") + LENGTH,
        HEAD.replace("POST", "post") + LENGTH,
        HEAD.replace("POST", "FOO") + LENGTH,
        HEAD.replace("HTTP/1.1", "HTTP/3.7") + LENGTH,
        HEAD.replace("/v1/score", "@evil") + LENGTH,
        HEAD.replace("/v1/score", "*") + LENGTH,
        HEAD.replace("/v1/score", "/v1/\xff") + LENGTH,
        HEAD.replace("/v1/score", "/v1/users/%FF/timeline") + LENGTH,
        HEAD + "Content-Type: application/json\r\n" + LENGTH,
        HEAD + "X-API-Key: a\r\nX-API-Key: b\r\n" + LENGTH,
        "CONNECT 127.0.0.1:9 HTTP/1.1\r\nHost: x\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n",
        "GET /\r\n",
        "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + "\0" * 64,
    ],
    ids=lambda head: repr(head.replace(HEAD, "")[:60]),
)
def test_a_request_whose_framing_is_doubtful_is_refused(server: Running, head: str) -> None:
    with Client(server.port) as client:
        client.send(head.encode("latin-1") + b"\r\n" + GOOD)
        reply = client.reply()
        assert reply.status in (400, 417, 505)
        assert reply.headers["connection"] == "close"
        assert b"evil" not in reply.body
        assert client.is_closed()


@pytest.mark.parametrize(
    "body", [b"-1\r\n", b"f" * 18 + b"\r\n", b"0x5\r\nhello\r\n0\r\n\r\n", b"2\r\n{}XX0\r\n\r\n", b"\r\n"]
)
def test_chunks_that_are_none_are_refused(server: Running, body: bytes) -> None:
    head = request("POST", "/v1/score", None, CHUNKED)
    assert is_refused(ask(server.port, head + body), 400, "bad_request")


def test_a_refusal_waits_for_the_answers_before_it(server: Running) -> None:
    with Client(server.port) as client:
        client.send(SCORE + SCORE + b"nonsense\r\n\r\n" + SCORE)
        assert [client.reply().status for _ in range(3)] == [200, 200, 400]
        assert client.is_closed()


def test_100_continue_is_said_once_the_length_is_known_to_be_fine(server: Running) -> None:
    head, _, _ = request("POST", "/v1/score", GOOD, {"Expect": "100-continue"}).partition(b"\r\n\r\n")
    with Client(server.port) as client:
        client.send(head + b"\r\n\r\n")
        assert client.reply().status == 100
        client.send(GOOD)
        assert client.reply().status == 200


def test_other_expectations_are_refused(server: Running) -> None:
    reply = ask(server.port, request("POST", "/v1/score", GOOD, {"Expect": "miracles"}))
    assert is_refused(reply, 417, "expectation_failed")


@pytest.mark.parametrize("host", ["x", "x:80", "127.0.0.1:8000", "[::1]:8000", "a-b.example.org", "under_score"])
def test_hosts_that_are_hosts_are_taken(server: Running, host: str) -> None:
    assert ask(server.port, request("GET", "/healthz", host=host)).status == 200


# Too much.


def test_what_is_too_much_is_shed_before_it_is_read(tmp_path: Path) -> None:
    with serving(tmp_path / "log", limits={"in_flight": 2}, delay_s=0.5) as running:
        clients = [Client(running.port) for _ in range(4)]
        for client in clients:
            client.send(SCORE)
            time.sleep(0.02)
        assert ask(running.port, request("GET", "/healthz")).status == 200
        nonsense = ask(running.port, request("POST", "/v1/score", b"{nonsense"))
        assert (nonsense.status, nonsense.code) == (503, "overloaded")
        replies = [client.reply() for client in clients]
        assert [reply.status for reply in replies] == [200, 200, 503, 503]
        assert replies[3].headers["retry-after"] == "1"
        assert "connection" not in replies[3].headers
        clients[3].send(SCORE)
        assert clients[3].reply().status == 200
        for client in clients:
            client.socket.close()


def test_hundreds_that_are_shed_at_once_are_each_told(tmp_path: Path) -> None:
    with serving(tmp_path / "log", limits={"in_flight": 0}) as running, Client(running.port) as client:
        client.send(b"GET / HTTP/1.1\r\nHost:x\r\n\r\n" * 3000)
        assert {client.reply().status for _ in range(3000)} == {503}


def test_bodies_that_are_held_together_are_limited(tmp_path: Path) -> None:
    with serving(tmp_path / "log", limits={"buffered_bytes": 100_000}) as running:
        head = request("POST", "/v1/score", None, {"Content-Type": "application/json", "Content-Length": "70000"})
        with Client(running.port) as first, Client(running.port) as second:
            first.send(head + b" " * 60_000)
            time.sleep(0.1)
            second.send(head + b" " * 60_000)
            assert is_refused(second.reply(), 503, "overloaded")
            first.socket.close()
        time.sleep(0.1)
        with Client(running.port) as third:
            third.send(head + b" " * 70_000)
            assert third.reply().code == "empty_body"


def test_connections_are_limited(tmp_path: Path) -> None:
    with serving(tmp_path / "log", limits={"connections": 2}) as running, Client(running.port) as first:
        first.send(SCORE)
        assert first.reply().status == 200
        with Client(running.port), Client(running.port) as third:
            assert is_refused(third.reply(), 503, "overloaded")
        time.sleep(0.1)
        assert ask(running.port, SCORE).status == 200


def test_a_deadline_that_passed_while_the_body_came_is_told(server: Running) -> None:
    data = request("POST", "/v1/score", GOOD, {"X-Deadline-Ms": "50"})
    with Client(server.port) as client:
        client.send(data[:-5])
        time.sleep(0.1)
        client.send(data[-5:])
        reply = client.reply()
        assert (reply.status, reply.code) == (503, "deadline")


def test_clients_that_vanish_leave_nothing_behind(tmp_path: Path) -> None:
    with serving(tmp_path / "log", delay_s=0.05) as running:
        for cut in (1, 30, len(SCORE) - 5, len(SCORE)) * 10:
            client = Client(running.port)
            client.send(SCORE[:cut])
            client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.socket.close()
        time.sleep(0.3)
        assert b"fraud_in_flight 1.0" in ask(running.port, request("GET", "/metrics")).body
        assert "error" not in running.log.read_text()


# The end.


def test_a_signal_lets_what_is_in_flight_finish(tmp_path: Path) -> None:
    with serving(tmp_path / "log", delay_s=0.6) as running:
        with Client(running.port) as client, Client(running.port) as idle:
            client.send(SCORE)
            time.sleep(0.2)
            running.process.send_signal(signal.SIGTERM)
            reply = client.reply()
            assert (reply.status, reply.headers["connection"]) == (200, "close")
            assert idle.is_closed()
            with pytest.raises(OSError):
                socket.create_connection(("127.0.0.1", running.port), timeout=1)
        assert running.process.wait(timeout=5) == 0
        assert "event=stopping signal=SIGTERM in_flight=1" in running.log.read_text()


def test_what_takes_longer_than_the_grace_is_told_so(tmp_path: Path) -> None:
    with serving(tmp_path / "log", delay_s=30.0, limits={"grace_s": 1.0}) as running, Client(running.port) as client:
        client.send(SCORE)
        time.sleep(0.2)
        running.process.send_signal(signal.SIGTERM)
        reply = client.reply()
        assert (reply.status, reply.code) == (503, "stopping")
        assert running.process.wait(timeout=5) == 0
