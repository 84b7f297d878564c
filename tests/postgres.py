"""A PostgreSQL server for the tests alone: on loopback, in a folder of its own, gone when they are done.

Without its programs (Debian: `apt-get install postgresql`) a test that needs one is skipped; where CI or FRAUD_CI is
set it fails, so that nobody believes in a database that was never tried.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest

_START_S = 60


def _programs() -> Path | None:
    """Return the folder of initdb and postgres, the newest there is."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: float(path.parts[-3]))
    on_path = shutil.which("initdb")
    return found[-1].parent if found else Path(on_path).resolve().parent if on_path else None


class PostgresServer:
    """One server. Its databases forget nothing in a crash of the server; of the machine they would (fsync is off)."""

    def __init__(self, programs: Path, folder: Path) -> None:
        """Make an empty cluster in a folder."""
        self._programs, self._folder = programs, folder
        # PostgreSQL refuses to run as root.
        self._as_user: dict[str, Any] = (
            {"user": "postgres", "group": "postgres", "extra_groups": ()} if os.getuid() == 0 else {}
        )
        if self._as_user:
            shutil.chown(folder, "postgres", "postgres")
        self._run("initdb", "-D", str(folder / "data"), "-U", "fraud", "-A", "trust", "-E", "UTF8", "--no-locale", "-N")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self._process: subprocess.Popen[Any] | None = None  # Any: its output goes to a file
        self._n_databases = 0
        self._free: list[str] = []

    def start(self) -> None:
        """Start it, and return when it answers."""
        settings = {
            "port": self.port, "listen_addresses": "127.0.0.1", "unix_socket_directories": "", "fsync": "off",
            "max_connections": 50, "shared_buffers": "16MB", "autovacuum": "off", "deadlock_timeout": "100ms",
        }  # fmt: skip
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        with (self._folder / "log").open("ab") as log:
            process = subprocess.Popen(
                [self._programs / "postgres", "-D", self._folder / "data", *options],
                stdout=log, stderr=log, cwd=self._folder, **self._as_user,
            )  # fmt: skip
        self._process = process
        deadline = time.monotonic() + _START_S
        while True:
            try:
                psycopg.connect(self.url("postgres")).close()
            except psycopg.OperationalError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError((self._folder / "log").read_text()) from None
                time.sleep(0.05)
            else:
                return

    def stop(self) -> None:
        """Stop it at once, as an operator in a hurry would: open connections break."""
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait(_START_S)
            self._process = None

    def pause(self) -> None:
        """Stop all its processes where they are: connections stay open, and nothing answers."""
        for process in self._all_processes():
            process.suspend()

    def resume(self) -> None:
        """Let its processes go on."""
        for process in self._all_processes():
            process.resume()

    def url(self, database: str) -> str:
        """Return the URL of a database."""
        return f"postgresql://fraud@127.0.0.1:{self.port}/{database}"

    def fresh_database(self) -> str:
        """Return the URL of a new, empty database."""
        self._n_databases += 1
        name = f"state_{self._n_databases}"
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}".encode())
        return self.url(name)

    @contextlib.contextmanager
    def lent_database(self) -> Iterator[str]:
        """Yield the URL of an empty database that goes back afterwards: to make one takes ten times as long."""
        url = self._free.pop() if self._free else self.fresh_database()
        yield url
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
            connection.execute("DROP SCHEMA IF EXISTS fraud CASCADE")
        self._free.append(url)

    def _all_processes(self) -> list[psutil.Process]:
        assert self._process is not None
        postmaster = psutil.Process(self._process.pid)
        return [postmaster, *postmaster.children(recursive=True)]

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [self._programs / program, *arguments],
            capture_output=True, text=True, check=False, cwd=self._folder, **self._as_user,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(done.stderr)


@contextlib.contextmanager
def running_postgres() -> Iterator[PostgresServer]:
    """Yield a server of one's own, started; skip or fail where PostgreSQL is not installed."""
    programs = _programs()
    if programs is None:
        reason = "PostgreSQL is not installed: no initdb (Debian: apt-get install postgresql)"
        if os.environ.get("CI") or os.environ.get("FRAUD_CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    # Not in pytest's own folder: that one is closed to the user who runs the server.
    with tempfile.TemporaryDirectory(prefix="fraud-postgres-", ignore_cleanup_errors=True) as folder:
        server = PostgresServer(programs, Path(folder))
        server.start()
        try:
            yield server
        finally:
            server.stop()


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """Return a server that all tests of this process share; each takes a fresh database, and leaves it running."""
    with running_postgres() as server:
        yield server
