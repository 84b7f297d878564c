"""The registry behind a real MLflow server, artefacts too, all through HTTP; a server that dies and comes back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from fraud.errors import ConfigError
from pipelines.registry import open_registry
from tests.commands import ROOT, call_fraud, contents
from tests.mlflow_server import MlflowServer, running_mlflow
from tests.postgres import PostgresServer
from tests.registered import NAME, registered
from tests.trained import Trained, trained_bundles

pytestmark = [pytest.mark.server, pytest.mark.timeout(900)]
_FRAUD = "from pipelines.cli import main; main()"
_WAIT_S = 120.0


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return trained_bundles(tmp_path_factory)


def test_promote_publish_and_roll_back_through_http(
    trained: Trained, mlflow_server: MlflowServer, tmp_path: Path
) -> None:
    bundles = {name: trained.folder / name for name in ("lstm", "fused")}
    store = registered(mlflow_server.url, bundles, tmp_path, name="by_http")
    at, out = ("--tracking-uri", mlflow_server.url), tmp_path / "versions"
    first, second = (store.versions[name].bundle for name in ("lstm", "fused"))
    for version in ("1", second):
        promoted = call_fraud("promote", version, *at, "--name", "by_http", "--because", "tried", "--json")
        assert promoted.exit_code == 0, promoted.stderr
    published = call_fraud("publish", "models:/by_http@champion", "-o", out, *at, "--json")
    assert (published.exit_code, published.document["bundle"]) == (0, second), published.stderr
    assert contents(out / "current") == contents(trained.folder / "fused")
    rolled_back = call_fraud("rollback", *at, "--name", "by_http", "--json")
    assert (rolled_back.document["from"], rolled_back.document["to"]) == ("2", "1")
    listed = call_fraud("models", *at, "--name", "by_http", "--json").document
    assert (listed["champion"], listed["previous"], listed["pending"]) == ("1", None, None)
    assert [version["bundle"] for version in listed["versions"]] == [second, first]
    assert listed["versions"][0]["rolled_back_at"]
    assert listed["versions"][1]["test"]["ap"] == trained.document("lstm")["ap"]


def test_of_two_that_promote_at_once_through_http_one_is_told(
    trained: Trained, mlflow_server: MlflowServer, tmp_path: Path
) -> None:
    bundles = {name: trained.folder / name for name in ("lstm", "gru", "boosting")}
    store = registered(mlflow_server.url, bundles, tmp_path, name="at_once")
    store.registry.promote(store.versions["lstm"], expected_champion=None, reason="the first")
    refused, start = list[str](), threading.Barrier(2)

    def promote(number: str) -> None:
        registry = open_registry(mlflow_server.url, "at_once")
        start.wait()
        try:
            registry.promote(registry.named(number), expected_champion="1", reason="better")
        except ConfigError:
            refused.append(number)

    threads = [threading.Thread(target=promote, args=(number,)) for number in ("2", "3")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    champion, previous = store.registry.champion(), store.registry.previous()
    assert champion is not None
    assert previous is not None
    assert {champion.number, *refused} == {"2", "3"}
    assert previous.number == "1"
    assert store.registry.pending() is None


@pytest.mark.slow
def test_a_publisher_outlives_its_tracker(trained: Trained, postgres: PostgresServer, tmp_path: Path) -> None:
    bundles, out = {name: trained.folder / name for name in ("lstm", "gru")}, tmp_path / "versions"
    with running_mlflow(postgres, tmp_path) as server:
        store = registered(server.url, bundles, tmp_path)
        store.registry.promote(store.versions["lstm"], expected_champion=None, reason="the first")
        command = ["publish", f"models:/{NAME}@champion", "-o", str(out), "--every", "1s", "--tracking-uri", server.url]
        publisher = subprocess.Popen(
            [sys.executable, "-c", _FRAUD, *command],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd=ROOT,
        )  # fmt: skip
        try:
            _wait_for(out, store.versions["lstm"].bundle, publisher)
            server.kill()
            time.sleep(20)  # several looks, each of them with MLflow's own attempts
            assert publisher.poll() is None
            assert os.readlink(out / "current") == store.versions["lstm"].bundle
            server.start()
            store.registry.promote(store.versions["gru"], expected_champion="1", reason="better")
            _wait_for(out, store.versions["gru"].bundle, publisher)
            publisher.send_signal(signal.SIGTERM)
            _, said = publisher.communicate(timeout=_WAIT_S)
        finally:
            publisher.kill()
            publisher.communicate()
    assert publisher.returncode == 0
    warnings = [line for line in said.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == 1, said
    assert f"the tracker at {server.url} did not do what was asked: Connection refused" in warnings[0]
    assert "all is well again" in said


def _wait_for(out: Path, bundle: str, publisher: subprocess.Popen[str]) -> None:
    """Return when the link stands on a bundle."""
    until = time.monotonic() + _WAIT_S
    while not (out / "current").is_symlink() or os.readlink(out / "current") != bundle:
        assert publisher.poll() is None
        assert time.monotonic() < until, "the publisher does not follow"
        time.sleep(0.05)
