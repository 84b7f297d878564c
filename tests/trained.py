"""One small simulated log and a bundle of each scorer trained on it, made by the commands once a test session.

The workers of a parallel session share them: the first one makes them, the others wait for its lock.
"""

from __future__ import annotations

import fcntl
import json
import os
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fraud.bundle import Bundle, load_bundle
from fraud.config import Config, config_to_toml, load_config
from fraud.judging import train
from fraud.logs import read_log
from pipelines.simulate import simulate
from tests.commands import run_fraud

MODELS = ("boosting", "lstm", "fused")
MORE_MODELS = ("gru", "transformer")  # trained in process, without a tracker
# Contexts of 16 events, so that most users have more than one; 300 users, so that both are trained in seconds.
_OVERRIDES = (
    "sessions.max_events=16",
    "model.layers=1",
    "model.width=16",
    "model.trees=40",
    'model.members=["gru", "boosting"]',
    "training.epochs=8",
    "training.batch_events=512",
    "training.learning_rate=0.01",
)
# Nothing listens on port 9.
_TRACKERS = {"lstm": "sqlite:///mlflow.db", "fused": "sqlite:///mlflow.db", "boosting": "http://127.0.0.1:9"}


@dataclass(frozen=True, slots=True)
class Trained:
    """A folder with log/ (events, labels, oracle, small.toml) and, by the name of each model, a bundle."""

    folder: Path

    @property
    def log(self) -> Path:
        """Return the folder of the simulated log."""
        return self.folder / "log"

    @property
    def config_file(self) -> Path:
        """Return the configuration that both bundles were trained under, but for the model's name."""
        return self.log / "small.toml"

    @property
    def config(self) -> Config:
        """Return that configuration, read."""
        return load_config(self.config_file)

    @property
    def events(self) -> Path:
        """Return the log itself."""
        return self.log / "events.parquet"

    def bundle(self, model: str) -> Bundle:
        """Return the loaded bundle of a model."""
        return load_bundle(self.folder / model)

    @property
    def plain(self) -> Path:
        """Return the bundle of an lstm that reads no entity: user_id, ts, type, event_id, amount, channel."""
        return self.folder / "plain"

    def document(self, model: str) -> dict[str, Any]:
        """Return what `fraud train --json` printed."""
        return json.loads((self.folder / f"{model}.out").read_text(encoding="utf-8"))

    def said(self, model: str) -> str:
        """Return what `fraud train` wrote to stderr."""
        return (self.folder / f"{model}.err").read_text(encoding="utf-8")


def trained_bundles(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Return the log and the bundles of this test session."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "trained"
    with (folder.with_name("trained.lock")).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "whole").exists():
            _make(folder)
            (folder / "whole").touch()
    return Trained(folder)


def _make(folder: Path) -> None:
    simulate(folder / "log", users=300, days=60, seed=11, fraud_rate=0.04)
    trained = Trained(folder)
    small = config_to_toml(load_config(folder / "log" / "config.toml", _OVERRIDES))
    trained.config_file.write_text(small, encoding="utf-8")
    for model in MODELS:
        settings = ("--set", f"model.name={model}", "--set", f"tracking.uri={_TRACKERS[model]}")
        done = run_fraud("train", trained.config_file, "-o", folder / model, *settings, "--json")
        assert done.returncode == 0, done.stderr
        (folder / f"{model}.out").write_text(done.stdout, encoding="utf-8")
        (folder / f"{model}.err").write_text(done.stderr, encoding="utf-8")
    for model in MORE_MODELS:
        config = load_config(trained.config_file, (f"model.name={model}",))
        with closing(read_log(config)) as log:
            train(log, config, folder / model)
    plain = load_config(trained.config_file, ("fields.entity=[]", "sessions.max_events=64", "training.epochs=1"))
    with closing(read_log(plain)) as log:
        train(log, plain, trained.plain)
