"""A scorer as a directory of plain files, and back; nothing in it executes on load.

A bundle is written whole or not at all: aside, synced, loaded once as a check, then renamed. It is verified on load:
the format, the set of files, their sha256, the shapes and finiteness of the weights, and the golden scores.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fraud.calibration import Calibration
from fraud.config import Config, config_to_toml, parse_config, state_hash
from fraud.decisions import Policy, check_policy, policy_from_toml, policy_to_toml
from fraud.errors import BundleError, ConfigError
from fraud.golden import check_golden, golden_json
from fraud.manifest import (
    FORMAT_VERSION,
    MANIFEST,
    MEMBERS,
    VERSION_DIGITS,
    Kind,
    Manifest,
    check_weights,
    json_object,
    manifest_json,
    read_files,
    read_manifest,
    weight_shapes,
)
from fraud.models.fusion import fusion_from_json
from fraud.runtime import StepModel, TreeModel, WindowModel
from fraud.scoring import BoostingModel, FusedModel, LogitModel, NetworkModel, Scorer
from fraud.tokens import Vocabulary, vocabulary_from_json

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleParts:
    """What `write_bundle` writes.

    model_files: window.onnx, weights.safetensors and perhaps step.onnx; or boosting.onnx; or fusion.json and the files
    of each member as members/NAME/FILE.
    """

    name: str
    config: Config
    vocabulary: Vocabulary
    model_files: Mapping[str, bytes]
    calibration: Calibration
    policy: Policy
    reference: Mapping[str, Any]  # Any: JSON
    metrics: Mapping[str, Any]  # Any: JSON
    model_card: str
    fingerprint: str
    newest_event: str
    newest_label: str | None
    packages: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """A verified bundle: its scorer, its manifest with the sha256 of the file, and where it stands."""

    scorer: Scorer
    manifest: Manifest
    sha256: str
    reference: Mapping[str, Any]  # Any: JSON
    metrics: Mapping[str, Any]  # Any: JSON
    path: Path

    @property
    def version(self) -> str:
        """Return the first 12 hex digits of the manifest's sha256."""
        return self.scorer.version

    def score(self, table: pa.Table) -> pa.Table:
        """Return the columns of `fraud score --per-event` for a table in the log's columns (Arrow, or a DataFrame).

        One row an event that could be used, by user and time. Raises DataError when a declared column is missing.
        """
        from fraud.tables import score_table

        return score_table(self.scorer, table)


def write_bundle(directory: Path, parts: BundleParts) -> Bundle:
    """Return the bundle written to `directory`, which must not exist; nothing stands there unless all of it does.

    Raises ConfigError when the directory exists, BundleError when what was written does not verify, OSError when the
    disk is full.
    """
    if directory.exists():
        raise ConfigError(f"{directory}: exists; expected a new directory (--overwrite replaces it)")
    aside = directory.with_name(f".{directory.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        files = _content(parts)
        for name, content in files.items():
            (aside / name).parent.mkdir(parents=True, exist_ok=True)
            _write_synced(aside / name, content)
        manifest = _manifest_of(parts, files)
        _write_synced(aside / MANIFEST, manifest_json(manifest).encode())
        load_bundle(aside)
        for folder in {(aside / name).parent for name in files} | {aside / MEMBERS, aside}:
            if folder.exists():
                sync_directory(folder)
        aside.rename(directory)
        sync_directory(directory.parent)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return load_bundle(directory)


def load_bundle(directory: Path | str, *, threads: int = 1) -> Bundle:
    """Return the verified bundle of a directory; raise BundleError that names the file and what is wrong with it."""
    directory = Path(directory)
    manifest, sha256 = read_manifest(directory)
    files = read_files(directory, manifest)
    try:
        config = parse_config(files["config.toml"].decode("utf-8"), source="config.toml", root=directory)
    except (ConfigError, UnicodeDecodeError) as error:
        raise BundleError(f"{directory}: {error}") from None
    if state_hash(config) != manifest.state_hash or config.sessions.max_events != manifest.max_events:
        raise BundleError(f"{directory}/config.toml: not the configuration that manifest.json was made for")
    try:
        scorer = _scorer_of(files, config, manifest.kind, sha256[:VERSION_DIGITS], threads)
        check_weights(files, manifest)
        check_golden(scorer, files)
        reference = json_object(files["reference.json"], "reference.json")
        metrics = json_object(files["metrics.json"], "metrics.json")
    except BundleError as error:
        raise BundleError(f"{directory}: {error}") from None
    return Bundle(scorer=scorer, manifest=manifest, sha256=sha256, reference=reference, metrics=metrics, path=directory)


def sync_directory(directory: Path) -> None:
    """Flush a directory's entries to disk, so that a rename in it survives a crash."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _content(parts: BundleParts) -> dict[str, bytes]:
    texts = {
        "config.toml": config_to_toml(parts.config),
        "vocabulary.json": parts.vocabulary.to_json(),
        "calibration.json": json.dumps(parts.calibration.to_json(), indent=1),
        "policy.toml": policy_to_toml(parts.policy),
        "reference.json": json.dumps(parts.reference, indent=1, allow_nan=False),
        "metrics.json": json.dumps(parts.metrics, indent=1, allow_nan=False),
        "MODEL_CARD.md": parts.model_card,
    }
    files = {name: text.encode("utf-8") for name, text in texts.items()} | dict(parts.model_files)
    scorer = _scorer_of(files, parts.config, _kind(files), "golden", 1)
    files["golden.json"] = golden_json(scorer, files).encode("utf-8")
    return files


def _manifest_of(parts: BundleParts, files: Mapping[str, bytes]) -> Manifest:
    return Manifest(
        format_version=FORMAT_VERSION,
        name=parts.name,
        kind=_kind(files),
        fingerprint=parts.fingerprint,
        newest_event=parts.newest_event,
        newest_label=parts.newest_label,
        state_hash=state_hash(parts.config),
        max_events=parts.config.sessions.max_events,
        packages=dict(parts.packages),
        shapes=weight_shapes(files),
        files={name: hashlib.sha256(content).hexdigest() for name, content in sorted(files.items())},
    )


def _scorer_of(files: Mapping[str, bytes], config: Config, kind: Kind, version: str, threads: int) -> Scorer:
    vocabulary = vocabulary_from_json(files["vocabulary.json"].decode("utf-8", "replace"))
    policy = policy_from_toml(files["policy.toml"].decode("utf-8", "replace"))
    check_policy(policy, config)
    model: LogitModel
    if kind == "fused":
        fusion = fusion_from_json(files["fusion.json"].decode("utf-8", "replace"))
        members = {name.split("/")[1] for name in files if name.startswith(f"{MEMBERS}/")}
        if members != set(fusion.members):
            raise BundleError(f"fusion.json: weighs {list(fusion.members)}, but {MEMBERS}/ holds {sorted(members)}")
        folders = [f"{MEMBERS}/{name}/" for name in fusion.members]
        model = FusedModel(fusion, tuple(_plain_model(files, at, vocabulary, config, threads) for at in folders))
    else:
        model = _plain_model(files, "", vocabulary, config, threads)
    return Scorer(
        config=config,
        model=model,
        calibration=Calibration.from_json(json_object(files["calibration.json"], "calibration.json")),
        policy=policy,
        version=version,
    )


def _plain_model(
    files: Mapping[str, bytes], folder: str, vocabulary: Vocabulary, config: Config, threads: int
) -> LogitModel:
    """Return the network or the trees whose files stand in a folder of the bundle ("" or "members/NAME/")."""
    if f"{folder}boosting.onnx" in files:
        return BoostingModel(TreeModel(files[f"{folder}boosting.onnx"], threads=threads), vocabulary, config)
    network = WindowModel(files[f"{folder}window.onnx"], threads=threads)
    if network.n_fields != len(vocabulary.fields):
        raise BundleError(
            f"vocabulary.json: {len(vocabulary.fields)} fields, but {folder}window.onnx reads {network.n_fields}"
        )
    step = None
    if f"{folder}step.onnx" in files:
        step = StepModel(files[f"{folder}step.onnx"], threads=threads)
        if step.n_fields != network.n_fields:
            raise BundleError(f"{folder}step.onnx: not a step of the network in {folder}window.onnx")
    return NetworkModel(network, vocabulary, config, step)


def _kind(files: Mapping[str, bytes]) -> Kind:
    if "fusion.json" in files:
        return "fused"
    return "boosting" if "boosting.onnx" in files else "network"


def _write_synced(path: Path, content: bytes) -> None:
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
