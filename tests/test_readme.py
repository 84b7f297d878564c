"""What the README shows runs as it is printed."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest

from fraud.config import config_to_toml, load_config
from pipelines.cli import app
from tests.trained import Trained, trained_bundles

_README = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return trained_bundles(tmp_path_factory)


@pytest.mark.filterwarnings("ignore:Series.values returning an ndarray:DeprecationWarning")  # pyarrow 25 on pandas 3.1
def test_the_python_block_runs(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", _README, flags=re.DOTALL)
    settings = (f"log.events={trained.events}", f"labels.path={trained.log / 'labels.parquet'}", "training.epochs=2")
    config = load_config(trained.config_file, settings)
    (tmp_path / "config.toml").write_text(config_to_toml(config), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"frame": pd.read_parquet(trained.events)}
    exec(compile(block, "README.md", "exec"), names)
    scores = names["scores"]
    assert len(scores) == len(pd.read_parquet(trained.events))  # type: ignore[arg-type]
    assert "validation picks" in capsys.readouterr().out


def test_every_command_is_shown() -> None:
    names = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    assert len(names) > 8
    assert not [name for name in names if f"fraud {name}" not in _README]


def test_every_linked_file_exists() -> None:
    root = Path(__file__).resolve().parents[1]
    links = re.findall(r"\]\(([^)#:]+)\)", _README)
    assert len(links) > 5
    assert not [link for link in links if not (root / link).exists()]
