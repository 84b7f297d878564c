"""kill -9 of the publisher at random moments: link, folder and service always agree on one whole bundle."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from fraud.bundle import load_bundle
from pipelines.console import Screen
from pipelines.publish import publish
from pipelines.registry import Registry
from tests.commands import ROOT, contents, leftovers
from tests.registered import NAME, Registered, registered
from tests.serving import Caller, ServerProcess, serving
from tests.trained import Trained, trained_bundles

pytestmark = [pytest.mark.server, pytest.mark.timeout(1200)]
_N_SERVED = 8
_KILLED = -9

# A process that has loaded everything forks one publisher for each line it reads, so that a run takes the time of its
# work alone. A line says after how many seconds to kill it, or at which rename, before or after it is done.
_DRIVER = """
import json, os, signal, sys, time, traceback
from pathlib import Path

import mlflow.artifacts, onnxruntime, sqlalchemy
from mlflow import MlflowClient
from pipelines.console import Screen
from pipelines.publish import publish


def die_at_rename(number, dies_after, count_file):
    named = 0
    def renaming(self, target, original=Path.rename):
        nonlocal named
        named += 1
        if named == number and not dies_after:
            os.kill(os.getpid(), signal.SIGKILL)
        result = original(self, target)
        if named == number:
            os.kill(os.getpid(), signal.SIGKILL)
        count_file.write_text(str(named))
        return result
    Path.rename = renaming


uri, count_file = sys.argv[1], Path(sys.argv[2])
for line in sys.stdin:
    asked = json.loads(line)
    started = time.monotonic()
    pid = os.fork()
    if pid == 0:
        code = 70
        try:
            die_at_rename(asked["die_at"], asked["dies_after"], count_file)
            publish("models:/fraud@champion", Path(asked["out"]), tracking_uri=uri, every_s=None,
                    screen=Screen(as_json=True))
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    if asked["kill_after_s"] is not None:
        time.sleep(asked["kill_after_s"])
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    print(json.dumps([os.waitstatus_to_exitcode(status), time.monotonic() - started]), flush=True)
"""


class Ended(NamedTuple):
    """How a publisher ended: its exit code, and how long it took."""

    code: int
    seconds: float


class Publishers:
    """Publishers of the champion, one at a time, that die where they are told to."""

    def __init__(self, process: subprocess.Popen[str], count_file: Path) -> None:
        self._process, self._count_file = process, count_file

    @property
    def n_renames(self) -> int:
        """Return how many renames the last one made."""
        return int(self._count_file.read_text(encoding="utf-8"))

    def run(self, out: Path, *, kill_after_s: float | None = None, die_at: int = 0, dies_after: bool = False) -> Ended:
        """Return how one ended that publishes to `out`."""
        asked = {"out": str(out), "kill_after_s": kill_after_s, "die_at": die_at, "dies_after": dies_after}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        return Ended(*json.loads(self._process.stdout.readline()))


@contextmanager
def publishers(uri: str, folder: Path) -> Iterator[Publishers]:
    """Yield publishers of the champion at a tracking URI."""
    count_file = folder / "renames"
    process = subprocess.Popen(
        [sys.executable, "-c", _DRIVER, uri, str(count_file)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    try:
        yield Publishers(process, count_file)
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return trained_bundles(tmp_path_factory)


@pytest.fixture
def store(trained: Trained, tmp_path: Path) -> Registered:
    """Return a registry of an lstm, which is the champion, and a fusion of two scorers, whose bundle has folders."""
    bundles = {name: trained.folder / name for name in ("lstm", "fused")}
    store = registered(f"sqlite:///{tmp_path}/mlflow.db", bundles, tmp_path)
    store.registry.promote(store.versions["lstm"], expected_champion=None, reason="the first")
    return store


def _promote_the_other(registry: Registry) -> str:
    """Return the bundle of the version that is the champion now, and was not."""
    champion = registry.champion()
    assert champion is not None
    other = registry.named("2" if champion.number == "1" else "1")
    registry.promote(other, expected_champion=champion.number, reason="better")
    return other.bundle


@pytest.mark.parametrize("n_points", [14, pytest.param(30, marks=pytest.mark.slow)])
def test_a_publisher_killed_anywhere_leaves_one_whole_bundle_and_the_next_one_finishes(
    store: Registered, tmp_path: Path, n_points: int
) -> None:
    before = tmp_path / "before"
    publish(f"models:/{NAME}@champion", before, tracking_uri=store.uri, every_s=None, screen=Screen(as_json=True))
    first, second = os.readlink(before / "current"), _promote_the_other(store.registry)
    chance, n_killed, stood_on = random.Random(5), 0, set[str]()
    with publishers(store.uri, tmp_path) as start:
        for name in ("warm", "whole"):
            shutil.copytree(before, tmp_path / name, symlinks=True)
            whole = start.run(tmp_path / name)
            assert whole.code == 0
        n_renames, expected = start.n_renames, contents(tmp_path / "whole")
        points = [{"die_at": 1 + n // 2, "dies_after": n % 2 == 1} for n in range(2 * n_renames)]
        n_times = n_points - len(points)
        points += [{"kill_after_s": whole.seconds * (n + chance.random()) / n_times} for n in range(n_times)]
        for n, point in enumerate(points):
            out = tmp_path / str(n)
            shutil.copytree(before, out, symlinks=True)
            n_killed += start.run(out, **point).code == _KILLED
            assert os.readlink(out / "current") in (first, second)
            stood_on.add(os.readlink(out / "current"))
            for folder in out.iterdir():
                if not folder.name.startswith(".") and folder.name != "current":
                    assert load_bundle(folder).version == folder.name
            assert load_bundle(out / "current").version == os.readlink(out / "current")
            assert start.run(out).code == 0
            assert os.readlink(out / "current") == second
            assert contents(out) == expected
            assert leftovers(out) == []
    assert stood_on == {first, second}
    assert n_killed >= n_points * 0.6, "too many came too late: nothing was killed"


def test_the_service_answers_with_one_whole_bundle_whatever_becomes_of_publishers(
    store: Registered, tmp_path: Path
) -> None:
    out, chance = tmp_path / "versions", random.Random(6)
    with publishers(store.uri, tmp_path) as start:
        whole = start.run(out)
        old = os.readlink(out / "current")
        with serving(out, f"sqlite:///{tmp_path}/state.db", "--follow", folder=tmp_path) as server:
            for _ in range(_N_SERVED):
                new = _promote_the_other(store.registry)
                shutil.rmtree(out / new, ignore_errors=True)  # it is to be downloaded
                start.run(out, kill_after_s=whole.seconds * chance.random())
                time.sleep(1)  # time enough to follow a link to what is not whole
                assert _answers_with(server) in (old, new)
                assert start.run(out).code == 0
                _wait_until_it_answers_with(server, new)
                old = new
        assert "model refused" not in server.said


def _answers_with(server: ServerProcess) -> str:
    caller = Caller(server)
    try:
        return caller.ask("GET", "/v1/model").json["version"]
    finally:
        caller.close()


def _wait_until_it_answers_with(server: ServerProcess, bundle: str) -> None:
    until = time.monotonic() + 30
    while _answers_with(server) != bundle:
        assert time.monotonic() < until, "the service does not follow"
        time.sleep(0.05)
