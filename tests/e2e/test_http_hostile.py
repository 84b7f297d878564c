"""170 hostile requests and 16 attacks on the transport: no failure and no warning (../shared/tools/hostile)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.http_server import ROOT, serving

pytestmark = pytest.mark.server

ATTACK = ROOT.parent / "shared" / "tools" / "hostile" / "attack_http.py"
SLOW = "slow_headers,slow_body,idle_connect,slow_read,herd"
needs_the_tool = pytest.mark.skipif(
    not ATTACK.is_file(), reason="needs ../shared/tools/hostile/attack_http.py, which is not part of the repository"
)


def attacked(tmp_path: Path, *arguments: str) -> dict[str, str]:
    """Return the verdict on each attack, and on each hostile request that was not answered as it should be."""
    report = tmp_path / "report.json"
    with serving(tmp_path / "log") as running:
        done = subprocess.run(
            [
                sys.executable, str(ATTACK), running.url, "--pid", str(running.process.pid), "--max-rss", "16",
                "--slow-seconds", "6", "--max-seconds", "250", "--json", str(report), *arguments,
            ],
            capture_output=True, text=True, timeout=280, check=False,
        )  # fmt: skip
        log = running.log.read_text()
    assert done.returncode == 0, done.stdout
    assert "level=error" not in log
    found = json.loads(report.read_text())
    verdicts = {row["name"]: "ok" if row["verdict"] == "ok" else row["verdict"] + row["note"] for row in found["rows"]}
    cases = {case["id"]: case["verdict"] for case in found["cases"] if case.get("verdict", "ok") != "ok"}
    return verdicts | cases


@needs_the_tool
def test_hostile_requests_get_what_they_should(tmp_path: Path) -> None:
    verdicts = attacked(tmp_path, "--skip", SLOW)
    assert len(verdicts) >= 25
    assert set(verdicts.values()) == {"ok"}, verdicts


@needs_the_tool
@pytest.mark.slow  # every attack waits for the time limit it is about: a minute in all
def test_slow_clients_are_closed_while_others_are_answered(tmp_path: Path) -> None:
    verdicts = attacked(tmp_path, "--only", SLOW)
    assert set(verdicts) == set(SLOW.split(","))
    assert set(verdicts.values()) == {"ok"}, verdicts
