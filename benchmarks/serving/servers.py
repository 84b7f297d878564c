"""The servers that are compared: each a tree of processes that is started, found ready, measured and ended."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from pipelines.pyfunc import write_flavour

HERE = Path(__file__).resolve().parent
_READY_S = 90.0
_END_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A running server. path: where it takes the bodies of this benchmark."""

    name: str
    port: int
    path: str
    process: psutil.Process

    def pids(self) -> list[int]:
        """Return its processes."""
        return [self.process.pid, *(child.pid for child in self.process.children(recursive=True))]

    def resident_mb(self) -> float:
        """Return the resident memory of its first process."""
        return self.process.memory_info().rss / 2**20


class NotRunning(Exception):
    """Raised where a server does not come up; says what it wrote last."""


@contextmanager
def ours(bundle: Path, state: Path, *options: str) -> Iterator[Server]:
    """Yield the service on a SQLite store; it says on stdout where it listens."""
    command = [sys.executable, "-m", "service", "serve", str(bundle), "--state", f"sqlite:///{state}", "--port", "0"]
    with _running([*command, *options], state.parent / "serve.log") as (process, log):
        told = json.loads(_first_line(process, log))
        yield Server(
            name="ours", port=int(told["url"].rsplit(":", 1)[1]), path="/v1/score", process=psutil.Process(told["pid"])
        )


@contextmanager
def echo(work: Path) -> Iterator[Server]:
    """Yield the echo on the same server stack: uvicorn, uvloop and httptools."""
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "echo:app", "--app-dir", str(HERE), "--port", str(port)]
    options = ["--loop", "uvloop", "--http", "httptools", "--no-access-log", "--log-level", "warning"]
    with _running([*command, *options], work / "echo.log") as (process, log):
        yield _ready("echo", "/v1/score", port, process, log, b"{}")


@contextmanager
def litserve(bundle: Path, work: Path, example: bytes) -> Iterator[Server]:
    """Yield LitServe with the bundle."""
    port = free_port()
    command = [sys.executable, str(HERE / "litserve_app.py"), str(bundle), str(port)]
    with _running(command, work / "litserve.log") as (process, log):
        yield _ready("litserve", "/predict", port, process, log, example)


@contextmanager
def mlflow(bundle: Path, work: Path, example: bytes) -> Iterator[Server]:
    """Yield `mlflow models serve` of the model that `fraud train` logs, in this environment."""
    model = work / "pyfunc"
    if not model.exists():
        model.mkdir()
        shutil.copytree(bundle, model / "bundle")
        write_flavour(model / "bundle", model, model_id=None, run_id=None)
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", str(model), "-p", str(port)]
    with _running([*command, "--env-manager", "local"], work / "mlflow.log") as (process, log):
        yield _ready("mlflow", "/invocations", port, process, log, example)


def free_port() -> int:
    """Return a port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def _running(command: Sequence[str], log: Path) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """Yield a process with one thread for each library; it and all that it started are ended in the end."""
    one_thread = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])  # mlflow looks for uvicorn
    environment = {**os.environ, **one_thread, "PATH": path}
    with log.open("wb") as out, subprocess.Popen(command, stdout=out, stderr=out, env=environment) as process:
        tree = psutil.Process(process.pid)
        try:
            yield process, log
        finally:
            _end(tree)


def _end(tree: psutil.Process) -> None:
    try:
        processes = [tree, *tree.children(recursive=True)]
        tree.send_signal(signal.SIGTERM)
    except psutil.NoSuchProcess:
        return
    _, alive = psutil.wait_procs(processes, timeout=_END_S)
    for process in alive:
        process.kill()


def _first_line(process: subprocess.Popen[bytes], log: Path) -> str:
    until = time.monotonic() + _READY_S
    while time.monotonic() < until and process.poll() is None:
        for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith('{"url"') and line.endswith("}"):
                return line
        time.sleep(0.02)
    raise NotRunning(_last_words(log))


def _ready(name: str, path: str, port: int, process: subprocess.Popen[bytes], log: Path, example: bytes) -> Server:
    """Return a server once it answers an example with 200."""
    until = time.monotonic() + _READY_S
    url = f"http://127.0.0.1:{port}{path}"
    said = ""
    while time.monotonic() < until and process.poll() is None:
        request = urllib.request.Request(url, data=example, headers={"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=_READY_S):
                return Server(name=name, port=port, path=path, process=psutil.Process(process.pid))
        except urllib.error.HTTPError as error:
            said = f"{error.code} {error.read()[:200]!r}"
        except OSError:
            pass
        time.sleep(0.1)
    raise NotRunning(said or _last_words(log))


def _last_words(log: Path) -> str:
    return log.read_text(encoding="utf-8", errors="replace").strip()[-300:]
