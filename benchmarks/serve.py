"""What a request costs the service, beside named rivals: `python benchmarks/serve.py [--quick] [--json]`.

All in one run on one machine, the ways in turn, medians of rounds; CPU is user and system time of all processes of a
server:

    echo      FastAPI on uvicorn, uvloop and httptools: an `async def` that returns the body it got
    ours      `/v1/score` with twenty events, decision, audit record and commit; `/v1/events` with one event of a user
              whose past is in the store, durable; SQLite, one process
    litserve  the same bundle behind LitServe, max_batch_size and batch_timeout as its documentation advises
    mlflow    the same bundle as `fraud train` logs it, behind `mlflow models serve --env-manager local`

Then what an event costs after 10 to 10,000 events of history, resident memory, CPU from start to first score, and
latency from the time at which a request was due (open loop) at half of capacity, at 90 % and around an overload of
three times capacity, as a picture and a table. Each line says its goal and whether it is met. The rivals come with
`pip install -e '.[bench]'`. Linux only: the CPU of another process is read from its clock.

--bundle, --log: a bundle and the folder of the log it was trained on (`fraud demo` makes both); else a small one is
made in --work. --quick takes about two minutes, the whole about ten.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from serving import servers
from serving.costs import Way, costs, in_turn, remind
from serving.latency import Loaded, capacity, loaded, overload
from serving.load import cpu_s
from serving.picture import draw
from serving.report import Report, table, tell_load
from serving.servers import NotRunning, Server
from serving.traffic import KnownUsers, LoggedEvent, busiest, read_users, score_bodies, send

GOALS_OVER_ECHO = {("score", 8): 5.0, ("score", 64): 4.0, ("events", 8): 6.0, ("events", 64): 4.0}
GOALS_UNDER_RIVAL = {"mlflow": 7.0, "litserve": 4.0}
RESIDENT_MB, START_CPU_S, GOODPUT, BACK_S = 120.0, 1.0, 0.9, 5.0
SAME_COST = 1.25  # of an event after a long history over one after a short one: what a busy machine varies by
KNOWN_USERS = 1024
IDLE_S = 6.0  # until the service has given back what it does not need
HISTORIES = {10: 128, 100: 64, 1000: 32, 10_000: 8}  # events of history: users


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How much is measured."""

    users: int
    train: tuple[str, ...]
    rounds: int
    requests: int
    seconds: float


SIZES = {
    "quick": Size(users=700, train=("training.epochs=1",), rounds=3, requests=800, seconds=4.0),
    "whole": Size(users=3000, train=("training.epochs=2",), rounds=7, requests=3000, seconds=20.0),
}


def main() -> None:
    """Print the figures, each with its goal and verdict."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/serve"))
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--log", type=Path)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", default="costs,history,rivals,start,latency")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    size = SIZES["quick" if arguments.quick else "whole"]
    work: Path = arguments.work
    work.mkdir(parents=True, exist_ok=True)
    report = Report(arguments.json)
    bundle, log = arguments.bundle, arguments.log
    if bundle is None or log is None:
        bundle, log = made(work, size)
    users = read_users(log / "events.parquet")
    parts = set(arguments.only.split(","))
    known = known_users(users, with_histories="history" in parts)
    state = work / "state.db"
    for file in work.glob("state.db*"):
        file.unlink()
    warm(bundle, known, state, work)
    bodies, frames = score_bodies(users, 2000)
    try:
        with servers.echo(work) as echo, servers.ours(bundle, state) as ours:
            if "costs" in parts:
                report_costs(report, echo, ours, bodies, known["known"], work, size)
            if "history" in parts:
                report_histories(report, ours, known, work, size)
            if "rivals" in parts:
                report_rivals(report, bundle, ours, bodies, frames, work, size)
            if "latency" in parts:
                report_latency(report, ours, bodies, known["known"], work, size)
            report_memory(report, ours)
        if "start" in parts:
            report_start(report, bundle, state, bodies[0], work)
    finally:
        if arguments.json:
            sys.stdout.write(json.dumps({"lines": report.lines}, indent=1) + "\n")


def made(work: Path, size: Size) -> tuple[Path, Path]:
    """Return a small bundle and the log it was trained on, made here unless they are there."""
    log, bundle = work / f"log-{size.users}", work / f"bundle-{size.users}"
    if not bundle.exists():
        shutil.rmtree(log, ignore_errors=True)
        _fraud("simulate", "-o", str(log), "--users", str(size.users), work=work)
        settings = [part for setting in size.train for part in ("--set", setting)]
        _fraud("train", str(log / "config.toml"), "-o", str(bundle), *settings, work=work)
    return bundle, log


def _fraud(*words: str, work: Path) -> None:
    command = [sys.executable, "-c", "from pipelines.cli import main; main()", *words]
    with (work / "made.log").open("ab") as log:
        subprocess.run(command, check=True, stdout=log, stderr=log)


def known_users(users: dict[str, list[LoggedEvent]], *, with_histories: bool) -> dict[str, KnownUsers]:
    """Return the users with a past: those that requests are about, and some for each length of history."""
    known = {"known": KnownUsers("known", busiest(users, KNOWN_USERS), None)}
    if with_histories:
        known |= {f"h{n}": KnownUsers(f"h{n}", busiest(users, n_users), n) for n, n_users in HISTORIES.items()}
    return known


def warm(bundle: Path, known: dict[str, KnownUsers], state: Path, work: Path) -> None:
    """Fill a new store with the past of all users."""
    import pyarrow as pa

    pq.write_table(pa.concat_tables(users.table() for users in known.values()), work / "past.parquet")
    command = [sys.executable, "-m", "service", "warm", str(bundle), str(work / "past.parquet")]
    subprocess.run([*command, "--state", f"sqlite:///{state}", "--json"], check=True, stdout=subprocess.DEVNULL)


def report_costs(
    report: Report, echo: Server, ours: Server, bodies: list[bytes], known: KnownUsers, work: Path, size: Size
) -> None:
    """Report what a request costs over the echo of the same body."""
    remind(ours, known, KNOWN_USERS, work)
    ways = [
        Way(name="echo score", server=echo, bodies=in_turn(bodies)),
        Way(name="score", server=ours, bodies=in_turn(bodies)),
        Way(name="echo events", server=echo, bodies=in_turn(known.bodies(500))),
        Way(name="events", server=ours, bodies=known.bodies, path="/v1/events"),
    ]
    # What was made for the echo is never sent to ours: its users went on meanwhile, and that is no harm.
    for connections in (8, 64):
        found = costs(ways, work, connections=connections, n=size.requests, rounds=size.rounds)
        for name in ("score", "events"):
            cost, least, goal = found[name], found[f"echo {name}"], GOALS_OVER_ECHO[name, connections]
            ratio = cost.us / least.us
            report.tell(
                f"/v1/{name}, {connections} connections, CPU over echo", ratio,
                f"{ratio:.1f} times ({cost.us:,.0f} us against {least.us:,.0f}; "
                f"rounds {min(cost.rounds):,.0f} to {max(cost.rounds):,.0f})",
                goal=f"at most {goal:g}", met=ratio <= goal,
            )  # fmt: skip


def report_memory(report: Report, ours: Server) -> None:
    """Report what the service holds after all that, and once it has had time to tidy up."""
    most_mb = ours.resident_mb()
    time.sleep(IDLE_S)
    left_mb = ours.resident_mb()
    report.tell(
        "resident memory after all that", most_mb,
        f"{most_mb:.0f} MB, {left_mb:.0f} MB some seconds later, with {KNOWN_USERS:,} users and more at hand",
        goal=f"at most {RESIDENT_MB:.0f} MB", met=most_mb <= RESIDENT_MB,
    )  # fmt: skip


def report_histories(report: Report, ours: Server, known: dict[str, KnownUsers], work: Path, size: Size) -> None:
    """Report what an event costs by how many came before it."""
    for n, n_users in HISTORIES.items():
        remind(ours, known[f"h{n}"], n_users, work)
    ways = [
        Way(name=f"h{n}", server=ours, bodies=known[f"h{n}"].bodies, path="/v1/events", share=0.5) for n in HISTORIES
    ]
    found = costs(ways, work, connections=8, n=size.requests, rounds=size.rounds)
    for n in HISTORIES:
        us = found[f"h{n}"].us
        report.tell(f"/v1/events after {n:,} events of history", us, f"{us:,.0f} us of CPU")
    ratio = found["h10000"].us / found["h100"].us
    report.tell(
        "cost of an event after 10,000 events over that after 100", ratio, f"{ratio:.2f}",
        goal=f"at most {SAME_COST:g}", met=ratio <= SAME_COST,
    )  # fmt: skip


def report_rivals(
    report: Report, bundle: Path, ours: Server, bodies: list[bytes], frames: list[bytes], work: Path, size: Size
) -> None:
    """Report how much less a score costs than with each rival that runs."""
    with ExitStack() as running:
        ways = [Way(name="score", server=ours, bodies=in_turn(bodies))]
        starts: dict[str, Callable[[], Any]] = {
            "litserve": lambda: servers.litserve(bundle, work, bodies[0]),
            "mlflow": lambda: servers.mlflow(bundle, work, frames[0]),
        }
        for name, start in starts.items():
            try:
                server = running.enter_context(start())
            except NotRunning as error:
                report.tell(f"/v1/score against {name}", float("nan"), f"not measured, it does not run: {error}")
                continue
            share = {"litserve": 0.5, "mlflow": 0.1}[name]
            ways.append(
                Way(name=name, server=server, bodies=in_turn(frames if name == "mlflow" else bodies), share=share)
            )
        for connections in (8, 64):
            found = costs(ways, work, connections=connections, n=size.requests, rounds=min(size.rounds, 3))
            for way in ways[1:]:
                ratio, goal = found[way.name].us / found["score"].us, GOALS_UNDER_RIVAL[way.name]
                report.tell(
                    f"/v1/score, {connections} connections, CPU of {way.name} over ours", ratio,
                    f"{ratio:.1f} times ({found[way.name].us:,.0f} us against {found['score'].us:,.0f})",
                    goal=f"at least {goal:g}", met=ratio >= goal,
                )  # fmt: skip


def report_latency(
    report: Report, ours: Server, bodies: list[bytes], known: KnownUsers, work: Path, size: Size
) -> None:
    """Report latency at two loads and around an overload, as lines, a table and a picture."""
    loads: dict[str, Loaded] = {}
    rates: dict[str, float] = {}
    for path, asked in (("/v1/events", known.bodies), ("/v1/score", in_turn(bodies))):
        rate = rates[path] = capacity(ours, asked, work, path=path, n=size.requests)
        report.tell(f"{path}, capacity", rate, f"{rate:,.0f} requests a second")
        for share in (0.5, 0.9):
            name = f"{path} at {share:.0%}"
            loads[name] = loaded(ours, asked, work, path=path, share=share, rate=rate, seconds=size.seconds)
            tell_load(report, name, loads[name])
    before = rates["/v1/score"]
    surge = overload(ours, bodies, work, rate=before, seconds=size.seconds)
    after = capacity(ours, in_turn(bodies), work, path="/v1/score", n=size.requests)
    kept = surge.goodput / statistics.mean([before, after])
    report.tell(
        f"goodput asked {surge.rate:,.0f} a second", kept,
        f"{kept:.0%} of capacity ({surge.goodput:,.0f} a second within 1 s; capacity {before:,.0f} before, "
        f"{after:,.0f} after; answers by status {surge.statuses})",
        goal=f"at least {GOODPUT:.0%}", met=kept >= GOODPUT,
    )  # fmt: skip
    back_s = surge.back_s
    report.tell(
        "back to normal after it", -1.0 if back_s is None else back_s,
        "never" if back_s is None else f"within {back_s:.2f} s",
        goal=f"at most {BACK_S:g} s", met=back_s is not None and back_s <= BACK_S,
    )  # fmt: skip
    draw(loads, surge, work / "latency.png")
    (work / "latency.md").write_text(table(loads), encoding="utf-8")
    report.say(f"picture and table: {work / 'latency.png'}, {work / 'latency.md'}")


def report_start(report: Report, bundle: Path, state: Path, body: bytes, work: Path) -> None:
    """Report the CPU from the start of the process to its first score, and its memory then."""
    cpu: list[float] = []
    resident_mb: list[float] = []
    for _ in range(3):
        with servers.ours(bundle, state) as server:
            send(server, [body], work, connections=1)
            cpu.append(cpu_s(server.pids()))
            resident_mb.append(server.resident_mb())
    report.tell(
        "start to first score", statistics.median(cpu), f"{statistics.median(cpu):.2f} s of CPU",
        goal=f"at most {START_CPU_S:g} s", met=statistics.median(cpu) <= START_CPU_S,
    )  # fmt: skip
    report.tell("resident memory at the start", statistics.median(resident_mb), f"{resident_mb[-1]:.0f} MB")


if __name__ == "__main__":
    main()
