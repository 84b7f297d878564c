"""The examples of docs/serving.md run as they are printed, against a running service."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.serving import ServerProcess, serving
from tests.trained import trained_bundles

pytestmark = pytest.mark.server
_DOCS = (Path(__file__).resolve().parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """Return a service of a bundle with the fields of the simulated bank."""
    folder = tmp_path_factory.mktemp("docs")
    bundle = trained_bundles(tmp_path_factory).folder / "lstm"
    with serving(bundle, f"sqlite:///{folder}/state.db", folder=folder) as running:
        yield running


def test_the_curl_examples_are_answered(server: ServerProcess) -> None:
    if shutil.which("curl") is None:
        assert "FRAUD_CI" not in os.environ, "curl is not installed"
        pytest.skip("curl is not installed")
    blocks = re.findall(r"```sh\n(.*?)```", _DOCS, flags=re.DOTALL)
    assert len(blocks) >= 3
    for block in blocks:
        done = subprocess.run(
            ["bash", "-ec", block.replace("curl -s", "curl -sS --fail-with-body -w '\\n'")],
            env={"URL": server.url, "PATH": "/usr/bin:/bin"}, capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        answers = [json.loads(line) for line in done.stdout.splitlines() if line.strip()]
        assert len(answers) == block.count("curl -s")
        assert all(answer.get("score", 0) is not None for answer in answers)


def test_the_python_example_prints_a_decision(server: ServerProcess, capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", _DOCS, flags=re.DOTALL)
    exec(compile(block, "docs/serving.md", "exec"), {"url": server.url})
    assert capsys.readouterr().out.split()[0] in ("allow", "review", "block")
