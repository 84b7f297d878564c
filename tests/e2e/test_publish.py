"""The link DIR/current is at every moment one whole bundle of the registry, and in the end the one an alias names."""

from __future__ import annotations

import fcntl
import http.server
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fraud.bundle import load_bundle
from fraud.errors import BundleError, ConfigError
from pipelines.console import Screen
from pipelines.publish import KEPT, publish
from pipelines.registry import Registry, open_registry
from pipelines.versions import Version
from tests.commands import ROOT, contents, leftovers
from tests.registered import NAME, Registered, registered
from tests.tampered import copied, tampered
from tests.trained import Trained, trained_bundles

_SCREEN = Screen(as_json=True)
_WAIT_S = 60.0
_FOLLOW = """
import json, pathlib, sys
from pipelines.console import Screen
from pipelines.publish import publish
uri, out, every_s = sys.argv[1:]
screen = Screen(as_json=False)
document = publish("models:/fraud@champion", pathlib.Path(out), tracking_uri=uri, every_s=float(every_s), screen=screen)
print(json.dumps(document))
"""
_CHAMPION = f"models:/{NAME}@champion"


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return trained_bundles(tmp_path_factory)


@pytest.fixture(scope="module")
def store(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Registered:
    """Return a registry of two versions, each the bundle of a tracked run: 1 the lstm's, 2 the boosting's."""
    folder = tmp_path_factory.mktemp("store")
    bundles = {name: trained.folder / name for name in ("lstm", "boosting")}
    return registered(f"sqlite:///{folder}/mlflow.db", bundles, folder)


@pytest.fixture
def registry(store: Registered, tmp_path: Path) -> Registry:
    """Return a copy of that registry whose champion is version 1; its artefacts stay where they are."""
    shutil.copy(store.uri.removeprefix("sqlite:///"), tmp_path / "mlflow.db")
    registry = open_registry(f"sqlite:///{tmp_path}/mlflow.db", NAME)
    registry.promote(registry.named("1"), expected_champion=None, reason="the first")
    return registry


def _publish(registry: Registry, out: Path, uri: str = _CHAMPION) -> dict[str, object]:
    return publish(uri, out, tracking_uri=registry.uri, every_s=None, screen=_SCREEN)


def _promote(registry: Registry, number: str) -> None:
    champion = registry.champion()
    expected = None if champion is None else champion.number
    registry.promote(registry.named(number), expected_champion=expected, reason="better")


def _planted(registry: Registry, bundle: Path, folder: Path, digits: str) -> Version:
    """Return a version of whatever stands in a folder, made by hand."""
    home = folder / f"planted-{digits}"
    shutil.copytree(bundle, home / "bundle")
    client, tags = registry.client, {"fraud.bundle": digits}
    made = client.create_model_version(NAME, home.as_uri(), tags=tags, await_creation_for=0)
    return registry.named(str(made.version))


def _folders(out: Path) -> set[str]:
    return {path.name for path in out.iterdir() if path.is_dir() and not path.is_symlink()}


def test_the_link_stands_on_the_champion_and_moves_with_it(
    trained: Trained, store: Registered, registry: Registry, tmp_path: Path
) -> None:
    out, first, second = tmp_path / "versions", store.versions["lstm"].bundle, store.versions["boosting"].bundle
    document = _publish(registry, out)
    assert document == {"name": NAME, "version": "1", "bundle": first, "current": str(out / "current")}
    assert contents(out / "current") == contents(trained.folder / "lstm")
    _promote(registry, "2")
    _publish(registry, out)
    assert os.readlink(out / "current") == second
    assert contents(out / "current") == contents(trained.folder / "boosting")
    registry.rollback()
    _publish(registry, out)
    assert os.readlink(out / "current") == first
    assert (_folders(out), leftovers(out), leftovers(tmp_path)) == ({first, second}, [], [])


def test_the_same_bundle_twice_is_one_version(trained: Trained, store: Registered) -> None:
    version = store.versions["lstm"]
    again = store.registry.add(trained.folder / "lstm", run_id=version.run_id, tags={"asked": "twice"})
    assert again.number == version.number == "1"
    assert [version.number for version in store.registry.versions()] == ["2", "1"]


def test_a_version_needs_the_run_its_bundle_came_from(trained: Trained, store: Registered) -> None:
    with pytest.raises(ConfigError, match="holds no whole model of the bundle"):
        store.registry.add(trained.folder / "gru", run_id=store.versions["lstm"].run_id, tags={})
    with pytest.raises(ConfigError, match="run 'never': holds no whole model"):
        store.registry.add(trained.folder / "gru", run_id="never", tags={})


def test_a_version_made_on_mlflows_own_page_is_published_too(registry: Registry, tmp_path: Path) -> None:
    source = registry.client.get_model_version(NAME, "2").source
    made = registry.client.create_model_version(NAME, source, await_creation_for=0)  # without any tag of ours
    registry.client.set_registered_model_alias(NAME, "champion", str(made.version))
    assert _publish(registry, tmp_path / "versions")["bundle"] == registry.named("2").bundle


def test_the_champion_in_a_local_store_is_changed_by_one_at_a_time(registry: Registry, tmp_path: Path) -> None:
    other = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    promotion = threading.Thread(target=_promote, args=(registry, "2"))
    promotion.start()
    promotion.join(1.0)
    assert registry.named("1").aliases == ("champion",)
    os.close(other)
    promotion.join(_WAIT_S)
    assert registry.named("2").aliases == ("champion",)


def test_what_stands_there_whole_is_not_downloaded_again(registry: Registry, tmp_path: Path) -> None:
    out = tmp_path / "versions"
    _publish(registry, out)
    inode = (out / "current" / "manifest.json").stat().st_ino
    _promote(registry, "2")
    _publish(registry, out)
    registry.rollback()
    _publish(registry, out)
    assert (out / "current" / "manifest.json").stat().st_ino == inode


def test_a_bundle_damaged_in_the_folder_is_replaced_by_a_whole_one(registry: Registry, tmp_path: Path) -> None:
    out = tmp_path / "versions"
    _publish(registry, out)
    whole = contents(out / "current")
    (out / "current" / "calibration.json").write_text("{}", encoding="utf-8")
    _publish(registry, out)
    assert contents(out / "current") == whole
    assert leftovers(out) == []


@pytest.mark.parametrize("damage", ["a changed byte", "another bundle"])
def test_what_is_not_the_bundle_of_the_version_is_never_published(
    damage: str, trained: Trained, registry: Registry, tmp_path: Path
) -> None:
    out = tmp_path / "versions"
    _publish(registry, out)
    before = contents(out)
    bundle = copied(trained.folder / "gru", tmp_path)
    digits = load_bundle(bundle).version
    if damage == "a changed byte":
        weights = bytearray((bundle / "weights.safetensors").read_bytes())
        weights[-1] ^= 1
        (bundle / "weights.safetensors").write_bytes(weights)
    else:
        digits = digits[::-1]
    _promote(registry, _planted(registry, bundle, tmp_path, digits).number)
    with pytest.raises(BundleError, match="the file was changed" if damage == "a changed byte" else "was expected"):
        _publish(registry, out)
    assert contents(out) == before
    assert os.readlink(out / "current") == registry.named("1").bundle
    assert leftovers(out) == []


def test_a_version_that_is_no_bundle_is_refused_in_words(registry: Registry, tmp_path: Path) -> None:
    made = registry.client.create_model_version(NAME, tmp_path.as_uri(), await_creation_for=0)
    with pytest.raises(BundleError, match=f"version {made.version} of the model 'fraud' is no bundle of this library"):
        _publish(registry, tmp_path / "versions", f"models:/{NAME}/{made.version}")


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("models:/fraud@nobody", "has no version that is its nobody"),
        ("models:/fraud/99", "has no version 99"),
        ("models:/other@champion", "'other' has no version that is its champion"),
        ("models:/fraud", "expected models:/NAME@ALIAS"),
        ("models:/fraud/latest", "expected models:/NAME@ALIAS"),
        ("runs:/0123/model", "expected models:/NAME@ALIAS"),
    ],
)
def test_what_is_not_there_is_named_and_leaves_the_link(
    uri: str, words: str, registry: Registry, tmp_path: Path
) -> None:
    out = tmp_path / "versions"
    _publish(registry, out)
    with pytest.raises(ConfigError, match=words):
        _publish(registry, out, uri)
    assert os.readlink(out / "current") == registry.named("1").bundle


def test_a_current_that_is_no_link_is_never_touched(registry: Registry, tmp_path: Path) -> None:
    (tmp_path / "versions" / "current").mkdir(parents=True)
    (tmp_path / "versions" / "current" / "mine").touch()
    with pytest.raises(ConfigError, match="current: is no link"):
        _publish(registry, tmp_path / "versions")
    assert (tmp_path / "versions" / "current" / "mine").exists()


def test_the_bundles_that_were_pointed_at_the_longest_ago_go(
    trained: Trained, registry: Registry, tmp_path: Path
) -> None:
    out, mine = tmp_path / "versions", tmp_path / "versions" / "mine"
    mine.mkdir(parents=True)
    bundles = [_published_anew(trained, registry, tmp_path, n, out) for n in range(KEPT + 4)]
    assert _folders(out) == {"mine", *bundles[2:]}
    for _ in range(KEPT + 1):
        registry.rollback()
    _publish(registry, out)
    assert os.readlink(out / "current") == bundles[2]  # the first to come of all that are there, the last pointed at
    newer = [_published_anew(trained, registry, tmp_path, n, out) for n in (KEPT + 4, KEPT + 5)]
    assert _folders(out) == {"mine", bundles[2], *bundles[5:], *newer}
    assert leftovers(out) == []


def _published_anew(trained: Trained, registry: Registry, folder: Path, n: int, out: Path) -> str:
    """Return a bundle that differs from all others, promoted and published."""
    (folder / str(n)).mkdir()
    bundle = tampered(trained.folder / "boosting", folder / str(n), {"MODEL_CARD.md": f"# {n}\n".encode()})
    version = _planted(registry, bundle, folder / str(n), load_bundle(bundle).version)
    _promote(registry, version.number)
    _publish(registry, out)
    return version.bundle


def test_a_folder_has_one_publisher(registry: Registry, tmp_path: Path) -> None:
    with _publishing(registry.uri, tmp_path / "versions") as process:
        _wait_for(tmp_path / "versions", registry.named("1").bundle)
        with pytest.raises(ConfigError, match="another run is writing it"):
            _publish(registry, tmp_path / "versions")
        assert process.poll() is None


def test_a_publisher_that_goes_on_follows_the_alias_and_ends_well_when_told(registry: Registry, tmp_path: Path) -> None:
    out, first, second = tmp_path / "versions", registry.named("1").bundle, registry.named("2").bundle
    with _publishing(registry.uri, out) as process:
        _wait_for(out, first)
        _promote(registry, "2")
        _wait_for(out, second)
        (out / "current").unlink()  # whoever takes the link away gets it back
        _wait_for(out, second)
        process.send_signal(signal.SIGTERM)
        stdout, stderr = process.communicate(timeout=_WAIT_S)
    assert process.returncode == 0, stderr
    assert json.loads(stdout) == {"name": NAME, "bundle": second, "current": str(out / "current")}
    assert f"now stands on version 2 (bundle {second})" in stderr
    assert (leftovers(out), leftovers(tmp_path)) == ([], [])


def test_a_publisher_says_trouble_once_and_goes_on(trained: Trained, registry: Registry, tmp_path: Path) -> None:
    out, first = tmp_path / "versions", registry.named("1").bundle
    bad = _planted(registry, trained.folder / "gru", tmp_path, "0123456789ab")
    with _publishing(registry.uri, out) as process:
        _wait_for(out, first)
        written = out.stat().st_mtime_ns
        _promote(registry, bad.number)
        until = time.monotonic() + _WAIT_S
        while out.stat().st_mtime_ns == written:  # it is downloaded aside
            assert time.monotonic() < until
            time.sleep(0.02)
        time.sleep(3)
        written = out.stat().st_mtime_ns
        time.sleep(1)
        assert out.stat().st_mtime_ns == written  # and not again
        assert os.readlink(out / "current") == first
        registry.rollback()
        _promote(registry, "2")
        _wait_for(out, registry.named("2").bundle)
        process.send_signal(signal.SIGTERM)
        _, stderr = process.communicate(timeout=_WAIT_S)
    warnings = [line for line in stderr.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == 1, stderr
    assert "0123456789ab" in warnings[0]
    assert warnings[0].endswith(f"current stays on {first}")
    assert "all is well again" in stderr


def test_another_trouble_of_the_same_kind_is_said_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = iter(["away", "away", "full", "full", "full", "away"])

    def fails(_: object) -> Registry:
        for words in asked:
            raise ConnectionError(words)
        signal.raise_signal(signal.SIGTERM)
        raise AssertionError("the signal ends it")

    monkeypatch.setattr("pipelines.publish.registry_at", fails)
    publish(_CHAMPION, tmp_path, tracking_uri="http://tracker", every_s=0.001, screen=Screen(as_json=True))
    said = [f"warning: {words}; {tmp_path}/current stays on nothing" for words in ("away", "full", "away")]
    assert capsys.readouterr().err.splitlines() == said


@pytest.mark.parametrize("every_s", [0.0, -1.0])
def test_a_publisher_never_looks_without_a_pause(every_s: float, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--every: -?[01] s from one look to the next; expected more than 0"):
        publish(_CHAMPION, tmp_path / "new", tracking_uri=None, every_s=every_s, screen=_SCREEN)
    assert not (tmp_path / "new").exists()


def test_a_tracker_that_answers_500_or_not_at_all_is_named_and_the_link_stays(
    registry: Registry, tmp_path: Path
) -> None:
    out = tmp_path / "versions"
    _publish(registry, out)
    with _broken_tracker() as url:
        for uri, words in ((url, "too many 500 error responses"), ("http://127.0.0.1:9", "Connection refused")):
            with pytest.raises(ConnectionError, match=f"the tracker at {uri} did not do what was asked: .*{words}"):
                publish(_CHAMPION, out, tracking_uri=uri, every_s=None, screen=_SCREEN)
            with pytest.raises(ConnectionError, match=f"^the tracker at {uri} did not do what was asked: {words}$"):
                open_registry(uri, NAME).rollback()
    assert load_bundle(out / "current").version == registry.named("1").bundle


@contextmanager
def _publishing(uri: str, out: Path) -> Iterator[subprocess.Popen[str]]:
    """Yield a process that publishes the champion ten times a second; killed at the end if it still runs."""
    command = [sys.executable, "-c", _FOLLOW, uri, str(out), "0.1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def _wait_for(out: Path, bundle: str) -> None:
    """Return when the link stands on a bundle."""
    until = time.monotonic() + _WAIT_S
    while not (out / "current").is_symlink() or os.readlink(out / "current") != bundle:
        assert time.monotonic() < until, "the publisher does not follow"
        time.sleep(0.02)


class _Always500(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = b"the database is gone"
        self.send_response(500)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET

    def log_message(self, *_: object) -> None: ...


@contextmanager
def _broken_tracker() -> Iterator[str]:
    """Yield the URL of a server that answers 500 to everything."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Always500) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
