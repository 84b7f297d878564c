"""A bundle gives back the scorer that was written, to the bit, and stands whole or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import fraud.bundle
from fraud.bundle import Bundle, BundleParts, load_bundle, write_bundle
from fraud.errors import BundleError, ConfigError
from fraud.golden import golden_events, golden_tables
from fraud.scoring import score_log
from tests.tampered import copied, tampered, with_manifest
from tests.trained import MODELS, Trained, trained_bundles

_NETWORK_FILES = {"weights.safetensors", "window.onnx", "step.onnx"}
_MODEL_FILES = {
    "boosting": {"boosting.onnx"},
    "lstm": _NETWORK_FILES,
    "fused": {"fusion.json", "members/boosting/boosting.onnx"} | {f"members/gru/{name}" for name in _NETWORK_FILES},
}
_TEXT_FILES = {
    "manifest.json", "config.toml", "vocabulary.json", "calibration.json", "policy.toml", "reference.json",
    "golden.json", "metrics.json", "MODEL_CARD.md",
}  # fmt: skip


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return trained_bundles(tmp_path_factory)


def _parts(bundle: Bundle) -> BundleParts:
    """Return what a bundle was written from."""
    manifest = bundle.manifest
    return BundleParts(
        name=manifest.name,
        config=bundle.scorer.config,
        vocabulary=bundle.scorer.model.vocabulary,
        model_files={name: (bundle.path / name).read_bytes() for name in _MODEL_FILES[manifest.name]},
        calibration=bundle.scorer.calibration,
        policy=bundle.scorer.policy,
        reference=bundle.reference,
        metrics=bundle.metrics,
        model_card=(bundle.path / "MODEL_CARD.md").read_text(encoding="utf-8"),
        fingerprint=manifest.fingerprint,
        newest_event=manifest.newest_event,
        newest_label=manifest.newest_label,
        packages=manifest.packages,
    )


def _contents(directory: Path) -> dict[str, bytes]:
    paths = [path for path in directory.rglob("*") if path.is_file()]
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in paths}


@pytest.mark.parametrize("model", MODELS)
def test_what_is_read_from_a_bundle_writes_the_same_bytes_again(trained: Trained, model: str, tmp_path: Path) -> None:
    bundle = trained.bundle(model)
    again = write_bundle(tmp_path / "again", _parts(bundle))
    assert _contents(again.path) == _contents(bundle.path)
    assert again.version == bundle.version


@pytest.mark.parametrize("model", MODELS)
def test_a_bundle_read_twice_scores_to_the_same_bits(trained: Trained, model: str, tmp_path: Path) -> None:
    bundle = trained.bundle(model)
    again = write_bundle(tmp_path / "again", _parts(bundle))
    events = golden_events(bundle.scorer.config, bundle.scorer.model.vocabulary)
    tables = golden_tables(events)
    for one, other in zip(
        score_log(bundle.scorer, events, tables), score_log(again.scorer, events, tables), strict=True
    ):
        np.testing.assert_array_equal(one.logit_N, other.logit_N)
        np.testing.assert_array_equal(one.score_N, other.score_N)
        np.testing.assert_array_equal(one.decision_N, other.decision_N)


@pytest.mark.parametrize("model", MODELS)
def test_a_bundle_holds_the_files_of_its_kind_and_nothing_else(trained: Trained, model: str) -> None:
    assert set(_contents(trained.folder / model)) == _TEXT_FILES | _MODEL_FILES[model]


def test_every_known_type_stands_among_the_golden_events(trained: Trained) -> None:
    scorer = trained.bundle("lstm").scorer
    events = golden_events(scorer.config, scorer.model.vocabulary)
    assert set(scorer.model.vocabulary.types) <= set(events.type.values[np.unique(events.type.codes_N)])
    assert max(np.diff(events.user_starts)) > scorer.config.sessions.max_events


def test_no_user_of_the_log_is_in_the_bundle(trained: Trained) -> None:
    users = pq.read_table(trained.events, columns=["user_id", "payee", "device"])
    for directory in (trained.folder / model for model in MODELS):
        whole = b"\n".join(_contents(directory).values())
        for column in users.columns:
            ids = [value for value in column.unique().to_pylist() if value is not None]
            assert len(ids) > 10
            assert not [value for value in ids if value.encode() in whole]


def test_an_existing_directory_is_never_written_over(trained: Trained, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "mine.txt").write_text("keep me", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"there: exists"):
        write_bundle(tmp_path / "there", _parts(trained.bundle("boosting")))
    assert _contents(tmp_path / "there") == {"mine.txt": b"keep me"}


def test_a_bundle_that_does_not_verify_is_never_published(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = fraud.bundle._write_synced

    def flip(path: Path, content: bytes) -> None:
        write(path, content if path.name != "calibration.json" else content[:-1] + b" ")

    monkeypatch.setattr(fraud.bundle, "_write_synced", flip)
    with pytest.raises(BundleError, match=r"calibration\.json"):
        write_bundle(tmp_path / "new", _parts(trained.bundle("boosting")))
    assert list(tmp_path.iterdir()) == []


def test_a_write_that_fails_leaves_nothing_behind(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = fraud.bundle._write_synced

    def fail_on_the_last(path: Path, content: bytes) -> None:
        if path.name == "manifest.json":
            raise OSError(28, os.strerror(28), str(path))
        write(path, content)

    monkeypatch.setattr(fraud.bundle, "_write_synced", fail_on_the_last)
    with pytest.raises(OSError, match="No space left"):
        write_bundle(tmp_path / "new", _parts(trained.bundle("boosting")))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("model", MODELS)
def test_the_score_of_a_table_equals_the_score_of_its_events(trained: Trained, model: str) -> None:
    table = pq.read_table(trained.events)
    shuffled = table.take(pa.array(np.random.default_rng(0).permutation(len(table))))
    bundle = trained.bundle(model)
    scored = bundle.score(table)
    assert scored.equals(bundle.score(shuffled))
    assert len(scored) == len(table)
    by_id = dict(zip(scored["event_id"].to_pylist(), scored["ts"].to_pylist(), strict=True))
    assert by_id == dict(zip(table["event_id"].to_pylist(), table["ts"].to_pylist(), strict=True))


def test_a_bundle_is_found_through_a_link_to_its_directory(trained: Trained, tmp_path: Path) -> None:
    (tmp_path / "current").symlink_to(trained.folder / "lstm")
    assert load_bundle(tmp_path / "current").version == trained.bundle("lstm").version


def test_the_version_names_the_manifest(trained: Trained, tmp_path: Path) -> None:
    copy = copied(trained.folder / "boosting", tmp_path)
    before = load_bundle(copy).version
    assert load_bundle(with_manifest(copy, name="another")).version != before


def test_an_edited_policy_counts_once_the_manifest_vouches_for_it(trained: Trained, tmp_path: Path) -> None:
    policy = (trained.folder / "boosting" / "policy.toml").read_text(encoding="utf-8")
    lines = ["block_at = 1.0" if line.startswith("block_at") else line for line in policy.splitlines()]
    copy = tampered(trained.folder / "boosting", tmp_path, {"policy.toml": "\n".join(lines).encode()})
    assert load_bundle(copy).scorer.policy.block_at == 1.0


def test_golden_scores_are_no_constant(trained: Trained) -> None:
    for model in MODELS:
        golden = json.loads((trained.folder / model / "golden.json").read_text(encoding="utf-8"))
        assert np.std(golden["logits"]) > 0.01
