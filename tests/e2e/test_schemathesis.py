"""schemathesis reads our OpenAPI document and tries to prove it wrong: every status, type and limit, from outside."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.http_server import ROOT, serving

pytestmark = pytest.mark.server

N_CASES = 1500
CONFIG = """
hooks = "tests.e2e.schemathesis_hooks"

[checks.not_a_server_error]
# 503 is an answer of ours: X-Deadline-Ms: 1 may well have passed.
expected-statuses = ["2xx", "3xx", "4xx", "503"]

[checks.positive_data_acceptance]
enabled = false  # valid_requests_are_accepted, in the hooks, is stricter where it can be and knows what no schema tells
"""


def test_schemathesis_finds_nothing_wrong(tmp_path: Path) -> None:
    config = tmp_path / "schemathesis.toml"
    config.write_text(CONFIG)
    with serving(tmp_path / "log") as running:
        done = subprocess.run(
            [
                str(Path(sys.executable).with_name("schemathesis")), "--config-file", str(config),
                "run", f"{running.url}/openapi.json", "--no-color", "--seed", "1", "--generation-deterministic",
                "--phases", "examples,coverage,fuzzing", "--max-examples", "160",
                "--continue-on-failure", "--no-shrink",
            ],
            capture_output=True, text=True, cwd=ROOT, timeout=280, check=False,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        assert "error" not in running.log.read_text()
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    found = re.search(r"(\d[\d,]*) generated", done.stdout)
    assert found is not None
    assert int(found[1].replace(",", "")) >= N_CASES, done.stdout[-2000:]
