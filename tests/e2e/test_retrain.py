"""`fraud retrain`: promoted, refused with the reason, or nothing to do; whatever happens, the champion goes on."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

import pipelines.retrain
from fraud.bundle import load_bundle
from fraud.config import config_to_toml, load_config
from pipelines.files import only_one
from pipelines.registry import Registry, open_registry
from pipelines.retrain import work_folder
from pipelines.tracking import tracking_uri
from tests.commands import Ended, call_fraud
from tests.small_disk import sized
from tests.trained import Trained, trained_bundles

_EARLIER = "split.as_of=2025-02-20T00:00:00Z"  # the log ends on 7 March
_KEPT = ("sessions.max_events=16", "model.name=boosting", "model.trees=30", "retrain.positives=30")


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return trained_bundles(tmp_path_factory)


@pytest.fixture
def config(trained: Trained, tmp_path: Path) -> Path:
    """Return the configuration of a log of its own, with a registry of its own."""
    return _log_of_its_own(trained, tmp_path / "log")


@pytest.fixture
def with_champion(config: Path) -> Path:
    """Return such a configuration, after a first retraining as of two weeks before the log's end."""
    return _with_champion(config)


@pytest.fixture(scope="module")
def same_champion(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return one with a champion for all the tests that leave him where he is."""
    return _with_champion(_log_of_its_own(trained, tmp_path_factory.mktemp("same") / "log"))


def _log_of_its_own(trained: Trained, folder: Path) -> Path:
    shutil.copytree(trained.log, folder)
    (folder / "mlflow.db").unlink(missing_ok=True)
    path = folder / "retrain.toml"
    path.write_text(config_to_toml(load_config(trained.config_file, _KEPT)), encoding="utf-8")
    return path


def _with_champion(config: Path) -> Path:
    ended = _retrain(config, _EARLIER)
    assert ended.document["verdict"] == "promoted", ended.stderr
    return config


def _retrain(config: Path, *settings: str, options: Sequence[str] = ()) -> Ended:
    overrides = [part for setting in settings for part in ("--set", setting)]
    return call_fraud("retrain", config, *overrides, *options, "--json")


def _registry(config: Path) -> Registry:
    read = load_config(config)
    return open_registry(tracking_uri(read), read.tracking.model_name)


def _champion(config: Path) -> tuple[str, str]:
    champion = _registry(config).champion()
    assert champion is not None
    return champion.number, champion.bundle


def _visible(config: Path) -> set[str]:
    return {path.name for path in config.parent.iterdir()} - {"mlflow.db", "mlartifacts"}


def test_a_first_model_is_promoted_and_the_same_data_again_change_nothing(config: Path, tmp_path: Path) -> None:
    there = _visible(config)
    ended = _retrain(config, options=["--html", str(tmp_path / "verdict.html")])
    document = ended.document
    assert (ended.exit_code, document["verdict"], document["reason"]) == (0, "promoted", "first_model"), ended.stderr
    assert document["champion"] is None
    assert document["challenger"]["n_positive"] == document["periods"]["n_judged"]
    number, bundle = _champion(config)
    assert (number, bundle) == (document["version"], document["challenger"]["bundle"])
    fetched = load_bundle(_registry(config).fetch(_registry(config).named(number), tmp_path / "fetched"))
    assert fetched.metrics["periods"]["valid_until"] == document["periods"]["valid_until"]
    assert "Promoted: boosting" in (tmp_path / "verdict.html").read_text(encoding="utf-8")
    again = _retrain(config)
    assert (again.exit_code, again.document["verdict"]) == (0, "unchanged")
    assert f"version {number}" in again.document["text"]
    assert len(_registry(config).versions()) == 1
    assert _visible(config) == there, "a working folder stayed behind"


def test_a_better_challenger_replaces_the_champion_who_becomes_the_previous(with_champion: Path) -> None:
    before = _champion(with_champion)
    ended = _retrain(with_champion, options=["--promote-if", "ap >= 0.01"])
    document = ended.document
    assert (ended.exit_code, document["verdict"], document["reason"]) == (0, "promoted", "gate_passed"), ended.stderr
    assert (document["champion"]["version"], document["champion"]["bundle"]) == before
    assert _champion(with_champion) == (document["version"], document["challenger"]["bundle"])
    previous = _registry(with_champion).previous()
    assert previous is not None
    assert previous.number == before[0]


def test_a_challenger_that_fails_the_gate_is_refused_with_the_clause(same_champion: Path) -> None:
    before = _champion(same_champion)
    gate = ["--promote-if", "ap >= champion + 0.5 and recall_at_budget >= 0"]
    ended = _retrain(same_champion, options=gate)
    assert (ended.exit_code, ended.document["verdict"], ended.document["reason"]) == (3, "refused", "gate_failed")
    assert [ruling["passed"] for ruling in ended.document["gate"]] == [False, True]
    assert "is below +0.5" in ended.document["text"]
    assert _champion(same_champion) == before
    challenger = _registry(same_champion).challenger()
    assert challenger is not None
    assert challenger.number == ended.document["version"]
    again = _retrain(same_champion, options=gate)
    assert (again.exit_code, again.document["verdict"]) == (0, "unchanged")
    assert "gate_failed" in again.document["text"]


def test_both_models_stand_side_by_side_in_the_tracker(same_champion: Path) -> None:
    document = _retrain(same_champion, options=["--promote-if", "ap >= champion + 0.5"]).document
    registry = _registry(same_champion)
    version = registry.named(document["version"])
    challenger = registry.client.get_run(version.run_id)
    parent = registry.client.get_run(challenger.data.tags["mlflow.parentRunId"])
    assert parent.info.status == challenger.info.status == "FINISHED"
    assert parent.data.tags["verdict"] == "refused"
    for name in ("challenger", "champion"):
        assert parent.data.metrics[f"{name}_ap"] == pytest.approx(document[name]["ap"])
    assert parent.data.metrics["difference_ap_low"] == pytest.approx(document["gate"][0]["ci"][0])
    files = {file.path for file in registry.client.list_artifacts(parent.info.run_id)}
    assert {"verdict.json", "verdict.html", "config.toml"} <= files


@pytest.mark.parametrize(
    ("settings", "reason", "words"),
    [
        (("retrain.positives=5000",), "too_few_positives", "expected 5000 to judge on"),
        (("retrain.positives=70",), "too_few_positives", "the champion learned from all up to"),
        (("sessions.gap=10m",), "needs_warm", "[sessions] differ from the champion's"),
        (("labels.delay=3d",), "needs_warm", "[labels] (its path or delay) differ"),
        (("retrain.max_slower=1", "model.trees=2500"), "too_slow", "retrain.max_slower"),
        (("retrain.max_miscalibration=1.0001",), "miscalibrated", "retrain.max_miscalibration"),
    ],
)
def test_what_cannot_be_promoted_is_refused_with_its_reason(
    same_champion: Path, settings: tuple[str, ...], reason: str, words: str
) -> None:
    before = _champion(same_champion)
    ended = _retrain(same_champion, *settings, options=["--promote-if", "ap >= 0"])
    assert (ended.exit_code, ended.document["verdict"], ended.document["reason"]) == (3, "refused", reason)
    assert words in ended.document["text"]
    assert _champion(same_champion) == before


def test_a_champion_promoted_meanwhile_is_not_replaced_unjudged(
    with_champion: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = _retrain(with_champion, options=["--promote-if", "ap >= champion + 0.5"]).document
    judge = pipelines.retrain.judge_challenger

    def judge_while_another_promotes(*arguments: Any) -> Any:
        registry = _registry(with_champion)
        champion = registry.champion()
        assert champion is not None
        registry.promote(registry.named(refused["version"]), expected_champion=champion.number, reason="by hand")
        return judge(*arguments)

    monkeypatch.setattr(pipelines.retrain, "judge_challenger", judge_while_another_promotes)
    ended = _retrain(with_champion, "training.seed=1", options=["--promote-if", "ap >= 0"])
    assert (ended.exit_code, ended.document["reason"]) == (3, "champion_changed")
    assert _champion(with_champion)[0] == refused["version"]


def test_a_tracker_that_does_not_take_it_costs_nothing_but_a_second_call(
    with_champion: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = _champion(with_champion)
    gate = ["--promote-if", "ap >= 0"]
    with monkeypatch.context() as away:
        away.setattr(pipelines.retrain, "track", lambda *_: None)
        ended = _retrain(with_champion, options=gate)
    assert ended.exit_code == 1
    assert "did not take the challenger, so the champion goes on" in ended.stderr
    assert _champion(with_champion) == before
    with monkeypatch.context() as patch:
        patch.setattr("pipelines.train.prepare", lambda *_, **__: pytest.fail("prepared again"))
        again = _retrain(with_champion, options=gate)
    assert (again.exit_code, again.document["verdict"]) == (0, "promoted"), again.stderr


def test_no_tracker_at_all_is_said_before_anything_is_done(config: Path) -> None:
    ended = _retrain(config, "tracking.uri=http://127.0.0.1:9")
    assert ended.exit_code == 1
    assert "http://127.0.0.1:9" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_tracker_that_answers_500_is_named_and_nothing_is_left_behind(config: Path) -> None:
    class Broken(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(500)

        do_POST = do_GET

        def log_message(self, *_: object) -> None:
            return

    there = _visible(config)
    with ThreadingHTTPServer(("127.0.0.1", 0), Broken) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        uri = f"http://127.0.0.1:{server.server_address[1]}"
        ended = _retrain(config, f"tracking.uri={uri}")
        server.shutdown()
    assert ended.exit_code == 1
    assert uri in ended.stderr.splitlines()[-1]
    assert "Traceback" not in ended.stderr
    assert _visible(config) == there


def test_a_full_disk_is_said_the_champion_goes_on_and_with_room_it_ends(
    trained: Trained, tmp_path: Path, disk: Path
) -> None:
    sized(disk, 2**24)
    config = _log_of_its_own(trained, disk / "log")
    settings = (f"tracking.uri=sqlite:///{tmp_path}/mlflow.db", "model.trees=5")
    first = _retrain(config, _EARLIER, *settings)
    assert first.document["verdict"] == "promoted", first.stderr
    held = os.statvfs(disk)
    used = (held.f_blocks - held.f_bfree) * held.f_frsize
    registry = open_registry(f"sqlite:///{tmp_path}/mlflow.db", "fraud")
    n_full, room = 0, 2**17
    while True:
        sized(disk, used + room)
        ended = _retrain(config, *settings, options=["--promote-if", "ap >= 0"])
        if ended.exit_code == 0:
            break
        n_full += 1
        assert (ended.exit_code, ended.stdout) == (1, ""), ended.stderr
        assert "No space left on device" in ended.stderr.splitlines()[-1]
        champion = registry.champion()
        assert champion is not None
        assert champion.number == first.document["version"]
        room *= 3
    assert n_full >= 2
    assert ended.document["verdict"] == "promoted"


def test_of_two_at_once_one_is_refused(config: Path) -> None:
    with only_one(work_folder(load_config(config))):
        ended = _retrain(config)
    assert ended.exit_code == 2
    assert "another run is writing it" in ended.stderr


def test_a_gate_nobody_can_read_is_refused_before_training(config: Path) -> None:
    ended = _retrain(config, options=["--promote-if", "ap is better"])
    assert ended.exit_code == 2
    assert "'ap is better'" in ended.stderr


def test_the_document_of_every_verdict_has_the_same_names(same_champion: Path) -> None:
    names = {"verdict", "reason", "text", "champion", "challenger", "version", "gate", "checks", "periods", "labels"}
    for settings in ((), (), ("retrain.positives=5000",)):
        document = _retrain(same_champion, *settings).document
        assert set(document) == names | {"seconds"}
        json.dumps(document)


def test_a_promotion_that_was_decided_and_not_carried_out_is_finished_by_the_next_call(
    with_champion: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = _champion(with_champion)
    gate = ["--promote-if", "ap >= 0"]

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Registry, "promote", killed)
        assert _retrain(with_champion, options=gate).exit_code == 1
    assert _champion(with_champion) == before
    again = _retrain(with_champion, options=gate)
    assert (again.exit_code, again.document["verdict"]) == (0, "unchanged"), again.stderr
    assert _champion(with_champion)[0] == str(int(before[0]) + 1)
    assert "the champion, was made from these data" in again.document["text"]


def test_a_rollback_is_not_undone_by_what_a_killed_call_left_behind(
    with_champion: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = _champion(with_champion)
    gate = ["--promote-if", "ap >= 0"]
    note = Registry.note

    def killed_after_the_promotion(registry: Registry, tag: str, text: str) -> None:
        if '"is_done": true' in text:
            raise KeyboardInterrupt
        note(registry, tag, text)

    with monkeypatch.context() as patch:
        patch.setattr(Registry, "note", killed_after_the_promotion)
        assert _retrain(with_champion, options=gate).exit_code == 1
    assert _champion(with_champion) != before
    assert call_fraud("rollback", "--config", with_champion).exit_code == 0
    again = _retrain(with_champion, options=gate)
    assert (again.document["verdict"], again.exit_code) == ("unchanged", 0)
    assert "not the champion any more" in again.document["text"]
    assert _champion(with_champion) == before


def test_the_same_model_trained_again_is_not_promoted_as_a_new_one(with_champion: Path) -> None:
    promoted = _retrain(with_champion, options=["--promote-if", "ap >= 0"]).document
    assert promoted["verdict"] == "promoted"
    again = _retrain(with_champion, options=["--promote-if", "ap >= 0.001"])
    assert (again.exit_code, again.document["verdict"], again.document["reason"]) == (0, "unchanged", "same_model")
    assert _champion(with_champion)[0] == promoted["version"]


def test_what_reviews_cost_is_the_same_for_both(with_champion: Path) -> None:
    gate = ["--promote-if", "money_saved >= champion - 1000000"]
    cheap = _retrain(with_champion, "policy.costs={review=0.01}", options=gate).document
    dear = _retrain(with_champion, "policy.costs={review=50.0}", "training.seed=1", options=gate).document
    assert cheap["champion"]["money_saved"] is not None
    # The champion of the second call is the cheap one's: charged at 50 a review, it has saved less than it said.
    assert dear["champion"]["version"] == cheap["version"]
    assert dear["champion"]["money_saved"] < cheap["challenger"]["money_saved"]


def test_a_page_that_cannot_be_written_is_found_out_before_anything_is_done(config: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    ended = _retrain(config, options=["--html", str(tmp_path / "file" / "verdict.html")])
    assert ended.exit_code == 1
    assert _registry(config).champion() is None


def test_a_bundle_that_was_only_trained_is_promoted_by_its_directory(with_champion: Path, trained: Trained) -> None:
    before = _champion(with_champion)
    ended = call_fraud("promote", trained.folder / "lstm", "--config", with_champion, "--json")
    assert ended.exit_code == 0, ended.stderr
    assert _champion(with_champion)[1] == trained.bundle("lstm").version
    again = call_fraud("promote", trained.folder / "lstm", "--config", with_champion, "--json")
    assert again.document["champion"]["version"] == ended.document["champion"]["version"]
    assert call_fraud("rollback", "--config", with_champion).exit_code == 0
    assert _champion(with_champion) == before


def test_another_kind_of_model_is_judged_on_twice_as_many_frauds(same_champion: Path) -> None:
    gate = ["--promote-if", "ap >= champion + 0.9"]
    same = _retrain(same_champion, "training.seed=5", options=gate).document
    other = _retrain(same_champion, "model.name=lstm", "training.epochs=1", options=gate).document
    assert 30 <= same["periods"]["n_judged"] < 60 <= other["periods"]["n_judged"]
