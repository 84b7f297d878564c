"""Three times more requests than can be answered: the others are told to come again, and cost the answered little.

How little is measured by `benchmarks/serve.py` on a machine of its own. Here client, server and whatever else runs
share two cores: what must hold is that the goodput does not collapse, and what one refusal costs in CPU.
"""

from __future__ import annotations

import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.flood import Flood, Tally
from tests.ledger import NO_FAULTS, Ledger
from tests.senders import Sender
from tests.serving import Caller, ServerProcess, serving
from tests.trained import Trained, trained_bundles

pytestmark = pytest.mark.server

_OVERLOAD = 3.0
_MEASURED_S = 2.0
_NORMAL_AGAIN_S = 5.0
_IN_FLIGHT = 64
_TRIES = 6  # a goodput that is reached once was not luck; one that never is, is wrong
_GOODPUT = 0.5  # of the capacity; while every refusal went through the parser it was 0.2 to 0.5
_REFUSAL = 0.16  # of the CPU of an answer: 0.06 to 0.13 measured, and 0.18 to 0.25 through the parser


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return trained_bundles(tmp_path_factory)


def _note(ledger: Ledger, tally: Tally) -> None:
    for request, answer in tally.answers:
        ledger.note_sent(request)
        ledger.note_answer(request, answer)


def _health(server: ServerProcess, ends: threading.Event, slow: list[float]) -> None:
    caller = Caller(server)
    while not ends.wait(0.05):
        began = time.monotonic()
        assert caller.ask("GET", "/healthz").status == 200
        slow.append(time.monotonic() - began)
    caller.close()


def _normal_after_s(server: ServerProcess, *, answer_s: float) -> float:
    """Return how long it takes until twenty requests in a row are answered, each about as soon as before."""
    began = time.monotonic()
    caller = Caller(server)
    n_good = 0
    while n_good < 20 and time.monotonic() < began + 30:
        asked = time.monotonic()
        answer = caller.ask("POST", "/v1/score", {"user_id": "u", "events": [{"type": "login", "ts": _TS}]})
        n_good = n_good + 1 if answer.status == 200 and time.monotonic() - asked < answer_s else 0
    caller.close()
    return time.monotonic() - began


_TS = "2026-01-01T10:00:00Z"


def test_goodput_holds_under_three_times_the_load(trained: Trained, tmp_path: Path) -> None:
    state = f"sqlite:///{tmp_path}/state.db"
    ledger = Ledger()
    options = ("--limit", f"in_flight={_IN_FLIGHT}", "--limit", "idle_s=60")  # the connections rest in between
    with (
        serving(trained.folder / "lstm", state, *options, folder=tmp_path) as server,
        closing(Flood(server, n_connections=_IN_FLIGHT)) as few,
        closing(Flood(server, n_connections=6 * _IN_FLIGHT)) as many,
    ):
        goodputs: list[float] = []
        refusals: list[float] = []
        for _ in range(_TRIES):
            before_s = _cpu_s(server)
            capacity = few.run(for_s=_MEASURED_S)
            cpu_s = (_cpu_s(server) - before_s) / capacity.statuses[200]
            ends, slow = threading.Event(), []
            watch = threading.Thread(target=_health, args=(server, ends, slow))
            watch.start()
            before_s = _cpu_s(server)
            flooded = many.run(for_s=_MEASURED_S, per_s=_OVERLOAD * capacity.per_s)
            refused_s = _cpu_s(server) - before_s - cpu_s * flooded.statuses[200]
            ends.set()
            watch.join()
            assert _normal_after_s(server, answer_s=0.25) < _NORMAL_AGAIN_S
            for tally in (capacity, flooded):
                _note(ledger, tally)
                assert (tally.broken, tally.sorry) == (0, 0)
                assert set(tally.statuses) <= {200, 503, 429}
            assert capacity.statuses.total() == capacity.statuses[200]
            assert max(slow) < 1.0
            n_refused = flooded.statuses[503] + flooded.statuses[429]
            if n_refused < flooded.statuses[200]:
                continue  # no overload: the capacity was measured while something else had the processor
            goodputs.append(flooded.per_s / capacity.per_s)
            refusals.append(refused_s / n_refused / cpu_s)
            if max(goodputs) >= _GOODPUT and min(refusals) <= _REFUSAL:
                break
        assert max(goodputs) >= _GOODPUT, goodputs
        assert min(refusals) <= _REFUSAL, refusals
        server.terminate()
        assert server.ended() == 0
        assert ledger.faults(state) == NO_FAULTS
        assert not ledger.contradictions


def _cpu_s(server: ServerProcess) -> float:
    times = psutil.Process(server.pid).cpu_times()
    return times.user + times.system


def test_sigterm_answers_all_that_is_in_flight(trained: Trained, tmp_path: Path) -> None:
    state = f"sqlite:///{tmp_path}/state.db"
    ledger = Ledger()
    with serving(trained.folder / "fused", state, folder=tmp_path) as server:
        callers = [Caller(server, timeout_s=30) for _ in range(30)]
        requests = [_request(n) for n in range(len(callers))]
        for caller in callers:  # connected, and known to the server
            assert caller.ask("GET", "/healthz").status == 200
        for caller, request in zip(callers, requests, strict=True):
            ledger.note_sent(request)
            caller.send("POST", "/v1/events", request)
        time.sleep(0.1)  # until they were read from the sockets
        server.terminate()
        for caller, request in zip(callers, requests, strict=True):
            answer = caller.receive()
            assert answer.status == 200
            ledger.note_answer(request, answer.json)
            caller.close()
        assert server.ended() == 0
        assert len(ledger.acknowledged) == sum(len(request["events"]) for request in requests)
        assert ledger.faults(state) == NO_FAULTS
        n_in_flight = int(server.said.rpartition("in_flight=")[2].split()[0])
        assert n_in_flight > len(callers) / 4, "they were answered before the signal came: it showed nothing"


def test_sigterm_under_load_loses_nothing(trained: Trained, tmp_path: Path) -> None:
    state = f"sqlite:///{tmp_path}/state.db"
    ledger = Ledger()
    with serving(trained.folder / "lstm", state, folder=tmp_path) as server:
        senders = [Sender(server, ledger, name=f"s{n}", shared=("joint",)) for n in range(8)]
        for _ in range(3):
            ends = threading.Event()
            threads = [threading.Thread(target=sender.run, args=(ends,)) for sender in senders]
            for thread in threads:
                thread.start()
            time.sleep(0.6)
            server.terminate()
            assert server.ended() == 0
            for thread in threads:
                thread.join()
            assert ledger.faults(state) == NO_FAULTS
            server.start()
        caller = Caller(server)
        for sender in senders:
            sender.settle()
            sender.close()
        ledger.send_again(caller)
        caller.close()
        assert not ledger.contradictions
        assert len(ledger.acknowledged) > 200
        assert "level=error" not in server.said


def _request(n: int) -> dict[str, Any]:
    events = [
        {"event_id": f"e{n}-{i}", "type": "login", "ts": f"2026-01-{1 + i // 24:02}T{i % 24:02}:00:00Z"}
        for i in range(300)
    ]
    return {"user_id": f"u{n}", "events": events}
