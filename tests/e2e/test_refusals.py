"""What the commands refuse, by which words and with which exit code; what is there already is never harmed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.commands import (
    SMALL_CONFIG,
    SMALL_LOG,
    call_fraud,
    contents,
    leftovers,
    refused,
    run_fraud,
    small_log,
    with_rows,
)
from tests.tampered import copied, with_manifest
from tests.trained import Trained, trained_bundles


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return trained_bundles(tmp_path_factory)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return small_log(tmp_path)


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("model.widht=3", ("unknown name 'model.widht'", "layers", "width", "trees")),
        ("modle.width=3", ("unknown name 'modle'", "log", "fields", "sessions", "model")),
        ("log.usr=x", ("unknown name 'log.usr'", "user", "time", "type")),
        ("model.width=1000000000", ("model.width = 1000000000", "1024")),
        ("model.name=lstmm", ("model.name = 'lstmm'", "known here: average, boosting, fused")),
        ("sessions.gap=30", ("sessions.gap", "30m")),
        ("labels.level=day", ("labels.level", "event", "session", "user")),
        ("width=3", ("--set 'width=3'", "SECTION.FIELD=VALUE")),
        ('fields.categorical=["channel", "fraud_flag"]', ("no column 'fraud_flag'", "fields.categorical", "channel")),
    ],
)
def test_a_wrong_setting_is_refused_with_what_is_known(
    trained: Trained, setting: str, says: tuple[str, ...], tmp_path: Path
) -> None:
    ended = call_fraud("train", trained.config_file, "-o", tmp_path / "bundle", "--set", setting)
    refused(ended, *says)
    assert list(tmp_path.iterdir()) == []


def test_a_misspelt_key_in_the_file_names_the_file_and_the_known_ones(small: Path) -> None:
    small.write_text(SMALL_CONFIG.replace("amount =", "ammount ="), encoding="utf-8")
    ended = call_fraud("prepare", small, "-o", small.parent / "out")
    refused(
        ended, str(small), "unknown name 'fields.ammount'", "amount", "numeric", "categorical", "entity", "key_types"
    )


@pytest.mark.parametrize(
    "fields",
    ['fields.numeric=["fraud"]', 'fields.categorical=["fraud"]', 'fields.entity=["fraud"]', 'log.type="fraud"'],
)
def test_a_label_column_among_the_features_is_refused_by_name(small: Path, fields: str) -> None:
    ended = call_fraud("train", small, "-o", small.parent / "out", "--set", 'labels.column="fraud"', "--set", fields)
    refused(ended, "column 'fraud' is the label")


def test_a_bundle_of_another_format_version_isrefused(trained: Trained, tmp_path: Path) -> None:
    copy = with_manifest(copied(trained.folder / "lstm", tmp_path), format_version=7)
    for command in (
        ("score", copy, trained.events, "-o", tmp_path / "out.parquet"),
        ("evaluate", copy, trained.config_file),
    ):
        refused(call_fraud(*command), "manifest.json: format version 7; this code reads version 1")
    assert not (tmp_path / "out.parquet").exists()


def test_a_configuration_that_shapes_another_state_isrefused(trained: Trained, tmp_path: Path) -> None:
    other = ("--set", "sessions.gap=31m")
    says = "the bundle was made for another [log], [fields] or [sessions]"
    ended = call_fraud(
        "score",
        trained.folder / "lstm",
        trained.events,
        "-o",
        tmp_path / "x.parquet",
        "--config",
        trained.config_file,
        *other,
    )
    refused(ended, says, "config.toml")
    refused(call_fraud("evaluate", trained.folder / "lstm", trained.config_file, *other), says)
    # How a model is fitted shapes no state.
    same = ("--set", "model.width=8", "--set", "policy.alert_budget=0.02")
    assert call_fraud("evaluate", trained.folder / "lstm", trained.config_file, *same).exit_code == 0


@pytest.mark.parametrize("command", ["simulate", "prepare", "train", "score"])
def test_an_output_that_exists_is_refused_unless_it_may_be_replaced(
    trained: Trained, small: Path, command: str
) -> None:
    out = small.parent / ("out.parquet" if command == "score" else "out")
    arguments: dict[str, tuple[str | Path, ...]] = {
        "simulate": ("simulate", "--users", "10", "--days", "7", "-o", out),
        "prepare": ("prepare", small, "-o", out),
        "train": ("train", trained.config_file, "-o", out),
        "score": ("score", trained.plain, small.parent / "events.csv", "-o", out),
    }
    with_rows(small, SMALL_LOG.replace("amount\n", "amount,channel\n").replace(",\n", ",,\n"))
    if command == "score":
        out.write_bytes(b"mine")
    elif command == "train":
        copied(trained.folder / "boosting", small.parent).rename(out)
    else:
        assert call_fraud(*arguments[command]).exit_code == 0
    before = contents(out)
    refused(call_fraud(*arguments[command]), str(out), "exists", "--overwrite")
    assert contents(out) == before
    if command != "train":  # which the tests of a killed run do
        assert call_fraud(*arguments[command], "--overwrite").exit_code == 0
        assert contents(out) != {".": b"mine"}
    assert not leftovers(small.parent)


@pytest.mark.parametrize("command", ["prepare", "train"])
def test_no_option_replaces_a_folder_that_is_somebody_elses(trained: Trained, command: str, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("years", encoding="utf-8")
    ended = call_fraud(command, trained.config_file, "-o", tmp_path / "home", "--overwrite")
    refused(ended, f"{tmp_path}/home", "no output of this command")
    assert (tmp_path / "home" / "thesis.txt").read_text(encoding="utf-8") == "years"


def test_scores_never_replace_the_log_itself(trained: Trained, tmp_path: Path) -> None:
    log = tmp_path / "events.parquet"
    log.write_bytes(trained.events.read_bytes())
    refused(call_fraud("score", trained.folder / "boosting", log, "-o", log, "--overwrite"), "is the log itself")
    assert log.read_bytes() == trained.events.read_bytes()
    assert not leftovers(tmp_path)


def test_a_score_file_of_an_unknown_kind_isrefused(trained: Trained, tmp_path: Path) -> None:
    ended = call_fraud("score", trained.folder / "boosting", trained.events, "-o", tmp_path / "scores.xlsx")
    refused(ended, "scores.xlsx", ".parquet or .csv")


def test_what_the_system_refuses_ends_with_1_and_says_what(trained: Trained, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    for command in (
        ("score", trained.folder / "boosting", trained.events, "-o", tmp_path / "file" / "scores.parquet"),
        ("prepare", trained.config_file, "-o", tmp_path / "file" / "out"),
    ):
        ended = call_fraud(*command)
        assert (ended.exit_code, ended.stdout) == (1, "")
        assert ended.stderr.startswith(f"error: {tmp_path}/file")
        assert ended.stderr.count("\n") == 1


def test_a_missing_argument_is_a_usage_error() -> None:
    done = run_fraud("score")
    assert done.returncode == 2
    assert "BUNDLE" in done.stderr
    assert "Traceback" not in done.stderr
