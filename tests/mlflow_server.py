"""An MLflow server for the tests alone: its runs and models in PostgreSQL, its artefacts in a folder that it serves.

def test_of_the_tracker(mlflow_server: MlflowServer) -> None:
    run_fraud("train", config, "-o", bundle, "--set", f"tracking.uri={mlflow_server.url}")

Clients reach both through HTTP alone, as they do in docker-compose.yml. Without PostgreSQL: tests/postgres.py.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.commands import ROOT
from tests.postgres import PostgresServer

_START_S = 180  # 12 s on two free cores
_ASKED = "/api/2.0/mlflow/experiments/get?experiment_id=0"  # from its database: /health would answer without one


class MlflowServer:
    """`mlflow server` on a port of 127.0.0.1 that stays the same: started, stopped, killed, started again."""

    def __init__(self, database: str, folder: Path) -> None:
        """Take the URL of a database, and a folder for artefacts and what it says."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self._command = [
            sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port), "--workers", "1",
            "--backend-store-uri", database.replace("postgresql://", "postgresql+psycopg://"),
            "--artifacts-destination", str(folder / "artifacts"),
        ]  # fmt: skip
        self.database = database
        self._log = folder / "mlflow-server.log"
        self._process: subprocess.Popen[Any] | None = None  # Any: its output goes to a file

    @property
    def url(self) -> str:
        """Return what `tracking.uri` says to reach it."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def said(self) -> str:
        """Return all that it wrote, over all its lives."""
        return self._log.read_text(encoding="utf-8", errors="replace")

    def start(self) -> None:
        """Start it, and return when it answers from its database."""
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # three more processes, for evaluations of language models
        }
        with self._log.open("ab") as log:
            # A session of its own: its workers are told to end with it.
            self._process = subprocess.Popen(
                self._command, stdout=log, stderr=log, cwd=self._log.parent, env=environment, start_new_session=True
            )
        deadline = time.monotonic() + _START_S
        while not self.answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise RuntimeError(f"the MLflow server did not start: {self.said}")
            time.sleep(0.1)

    def answers(self) -> bool:
        """Return True where it answers from its database within two seconds."""
        try:
            with urllib.request.urlopen(self.url + _ASKED, timeout=2):
                return True
        except OSError:
            return False

    def stop(self) -> None:
        """Tell it to end, and return when it has."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Kill -9 all its processes at once."""
        self._end(signal.SIGKILL)

    def pause(self) -> None:
        """Stop all its processes where they are: connections are taken, and nothing answers."""
        self._tell(signal.SIGSTOP)

    def resume(self) -> None:
        """Let its processes go on."""
        self._tell(signal.SIGCONT)

    def _tell(self, told: signal.Signals) -> None:
        assert self._process is not None
        os.killpg(self._process.pid, told)

    def _end(self, told: signal.Signals) -> None:
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            self._tell(told)
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._tell(signal.SIGKILL)
            self._process.wait()
        self._process = None


@contextlib.contextmanager
def running_mlflow(postgres: PostgresServer, folder: Path) -> Iterator[MlflowServer]:
    """Yield a server of one's own, started, on a fresh database: for a test that kills it."""
    server = MlflowServer(postgres.fresh_database(), folder)
    try:
        server.start()
        yield server
    finally:
        server.kill()


@pytest.fixture(scope="session")
def mlflow_server(postgres: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    """Return a server that all tests of this process share: each takes its own experiment and model name."""
    with running_mlflow(postgres, tmp_path_factory.mktemp("mlflow-server")) as server:
        yield server
