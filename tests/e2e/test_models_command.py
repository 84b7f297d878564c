"""`fraud models`, `promote`, `rollback` as a person calls them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pipelines.registry import Registry, open_registry
from tests.commands import Ended, call_fraud, refused
from tests.registered import NAME, Killed, Registered, Watched, killed, registered
from tests.trained import Trained, trained_bundles


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return trained_bundles(tmp_path_factory)


@pytest.fixture(scope="module")
def store(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Registered:
    """Return a registry of two versions without an alias."""
    folder = tmp_path_factory.mktemp("store")
    bundles = {name: trained.folder / name for name in ("lstm", "boosting")}
    return registered(f"sqlite:///{folder}/mlflow.db", bundles, folder)


@pytest.fixture
def uri(store: Registered, tmp_path: Path) -> str:
    """Return the URI of a copy of that registry; its artefacts stay where they are."""
    shutil.copy(store.uri.removeprefix("sqlite:///"), tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path}/mlflow.db"


def _fraud(command: str, uri: str, *arguments: str) -> Ended:
    return call_fraud(command, *arguments, "--tracking-uri", uri)


def test_who_is_champion_since_when_on_which_data_with_which_figures(
    trained: Trained, store: Registered, uri: str
) -> None:
    assert _fraud("promote", uri, "1").exit_code == 0
    assert _fraud("promote", uri, store.versions["boosting"].bundle, "--because", "half the size").exit_code == 0
    document = _fraud("models", uri, "--json").document
    assert [document[name] for name in ("name", "champion", "previous", "challenger")] == [NAME, "2", "1", None]
    champion = document["versions"][0]
    figures, manifest = trained.document("boosting"), trained.bundle("boosting").manifest
    assert champion["bundle"] == store.versions["boosting"].bundle
    assert (champion["model"], champion["reason"], champion["aliases"]) == ("boosting", "half the size", ["champion"])
    assert (champion["newest_event"], champion["newest_label"]) == (manifest.newest_event, manifest.newest_label)
    assert (champion["test"]["ap"], champion["test"]["ap_ci"]) == (figures["ap"], figures["ap_ci"])
    table = _fraud("models", uri).stdout
    row = next(line for line in table.splitlines() if champion["bundle"] in line)
    low, high = figures["ap_ci"]
    for part in (
        "boosting",
        "champion",
        champion["champion_since"][:16].replace("T", " "),
        f"{figures['ap']:.3f} [{low:.3f}, {high:.3f}]",
    ):
        assert part in row


def test_a_rollback_says_from_where_to_where_and_ends_where_nothing_was_before(store: Registered, uri: str) -> None:
    refused(_fraud("rollback", uri), "has no champion")
    for number in ("1", "2"):
        assert _fraud("promote", uri, number).exit_code == 0
    done = _fraud("rollback", uri)
    was, now = (store.versions[name].bundle for name in ("boosting", "lstm"))
    assert f"version 1 (bundle {now}) is the champion of the model fraud again" in done.stderr
    assert f"rolled back: version 2 (bundle {was})" in done.stderr
    assert "rolled back" in _fraud("models", uri).stdout
    refused(_fraud("rollback", uri), "there is nothing to go back to")


def test_only_a_whole_bundle_is_promoted(trained: Trained, uri: str, tmp_path: Path) -> None:
    assert _fraud("promote", uri, "1").exit_code == 0
    shutil.copytree(trained.folder / "gru", tmp_path / "planted" / "bundle")
    (tmp_path / "planted" / "bundle" / "policy.toml").write_text("", encoding="utf-8")
    tags = {"fraud.bundle": "0123456789ab"}
    source = (tmp_path / "planted").as_uri()
    open_registry(uri, NAME).client.create_model_version(NAME, source, tags=tags, await_creation_for=0)
    refused(_fraud("promote", uri, "3"), "policy.toml", "the file was changed")
    assert _fraud("models", uri, "--json").document["champion"] == "1"


def test_promoting_the_champion_says_so(uri: str) -> None:
    for _ in range(2):
        done = _fraud("promote", uri, "1")
        assert done.exit_code == 0
    assert "is the champion already" in done.stderr


def test_what_no_version_is_called_is_refused_with_what_there_is(store: Registered, uri: str) -> None:
    refused(_fraud("promote", uri, "7"), "version '7'", f"the newest: 2 = {store.versions['boosting'].bundle}")
    refused(_fraud("promote", uri, "7", "--name", "cards"), "the model 'cards' has no such version", "none yet")


def test_a_model_without_a_version_says_what_makes_the_first(uri: str) -> None:
    listed = _fraud("models", uri, "--name", "cards")
    assert (listed.exit_code, listed.stdout) == (0, "")
    assert "`fraud retrain CONFIG` makes the first" in listed.stderr


def test_a_promotion_that_was_cut_short_is_told_and_finished_by_the_next_command(uri: str) -> None:
    assert _fraud("promote", uri, "1").exit_code == 0
    registry = open_registry(uri, NAME)
    dying = Registry(Watched(registry.client, 3, killed), uri, NAME)  # type: ignore[arg-type]
    with pytest.raises(Killed):
        dying.promote(registry.named("2"), expected_champion="1", reason="better")
    listed = _fraud("models", uri, "--json")
    assert (listed.document["champion"], listed.document["pending"]["champion"]) == ("1", "2")
    assert "a promotion of version 2 was cut short" in _fraud("models", uri).stderr
    assert _fraud("promote", uri, "2").exit_code == 0
    listed = _fraud("models", uri, "--json")
    assert (listed.document["champion"], listed.document["pending"]) == ("2", None)
