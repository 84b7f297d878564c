"""README's week in the life of a model runs as it is printed, command by command, in one folder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

_README = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")
_MAY_END_WITH = {"retrain": {0, 3}, "monitor": {0, 4}}  # refused, alarm: what the section says they mean


@pytest.mark.slow  # trains an lstm five times on 8,000 users: three minutes on two free cores
@pytest.mark.timeout(1800)
def test_every_command_of_the_week_runs_as_printed(tmp_path: Path) -> None:
    (block,) = re.findall(r"```sh\n(fraud simulate.*?)```", _README, flags=re.DOTALL)
    folder, n_run = tmp_path, 0
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    for line in block.splitlines():
        command = re.sub(r"\s{2,}#.*|^#.*", "", line).strip()
        if command.startswith("cd "):
            folder = folder / command.removeprefix("cd ")
            continue
        if not command:
            continue
        done = subprocess.run(
            ["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode in _MAY_END_WITH.get(command.split()[1], {0}), f"{command}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr
        n_run += 1
    assert n_run >= 10
    for name in ("monitor.html", "verdict.html", "diff.html", "backtest/backtest.html"):
        assert (folder / name).stat().st_size > 1000, name
