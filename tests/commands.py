"""Running `fraud` from a test, in this process or in one of its own, and a log of six rows to run it on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

from typer.testing import CliRunner

from pipelines.cli import app

ROOT = Path(__file__).resolve().parents[1]
_MAIN = "from pipelines.cli import main; main()"

SMALL_CONFIG = """
[log]
events = "events.csv"
event_id = "event_id"
[fields]
amount = "amount"
"""
SMALL_LOG = """\
event_id,user_id,type,ts,amount
e0,u0,login,2026-11-20T10:00:00Z,
e1,u0,transfer_out,2026-11-20T10:01:00Z,12.5
e1,u0,transfer_out,2026-11-20T10:01:00Z,12.5
e2,u0,transfer_out,2026-11-20 10:02:00,1
e3,u1,login,2026-11-20T10:00:00Z,-4
e4,u1,login,2026-11-20T10:00:00Z,
"""


class Ended(NamedTuple):
    """How a command ended."""

    exit_code: int
    stdout: str
    stderr: str

    @property
    def document(self) -> dict[str, Any]:
        """Return the one JSON document on stdout."""
        return json.loads(self.stdout)


def call_fraud(*arguments: str | Path) -> Ended:
    """Return how a command ended in this process; an exception that the command line does not catch is raised here."""
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return Ended(done.exit_code, done.stdout, done.stderr)


def run_fraud(
    *arguments: str | Path, cwd: Path | None = None, code: str = _MAIN, timeout_s: float = 240
) -> subprocess.CompletedProcess[str]:
    """Return how a `fraud` command ended, run as a user runs it: in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True, text=True, cwd=cwd, timeout=timeout_s, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


def refused(ended: Ended, *says: str) -> None:
    """Check exit code 2, nothing on stdout, and one line on stderr that says what is wrong."""
    assert (ended.exit_code, ended.stdout) == (2, ""), ended.stderr
    errors = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    for part in says:
        assert part in errors[0]


def leftovers(folder: Path) -> list[str]:
    """Return what work in progress left in a folder."""
    return sorted(path.name for path in folder.iterdir() if path.name.startswith((".", "fraud-")))


def contents(path: Path) -> dict[str, bytes]:
    """Return the bytes of a file, or of each file below a folder, by name."""
    paths = [path] if path.is_file() else [found for found in path.rglob("*") if found.is_file()]
    return {str(found.relative_to(path)): found.read_bytes() for found in paths}


def small_log(folder: Path) -> Path:
    """Return the configuration of a log of six rows: three used, one repeated, two bad."""
    (folder / "events.csv").write_text(SMALL_LOG, encoding="utf-8")
    (folder / "config.toml").write_text(SMALL_CONFIG, encoding="utf-8")
    return folder / "config.toml"


def with_rows(config: Path, text: str) -> Path:
    """Return the configuration of a small log, the text of the log replaced."""
    (config.parent / "events.csv").write_text(text, encoding="utf-8")
    return config
