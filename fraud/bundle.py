"""A scorer as a directory of plain files, and back; nothing in it executes on load.

A bundle is written whole or not at all: aside, synced, loaded once as a check, then renamed. It is verified on load: the
format, the set of files, their sha256, the shapes and finiteness of the weights, and the golden scores.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors

from fraud.calibration import Calibration
from fraud.config import Config, config_to_toml, parse_config, state_hash
from fraud.decisions import Policy, policy_from_toml, policy_to_toml
from fraud.enrich import empty_carry
from fraud.errors import BundleError, ConfigError
from fraud.events import Events, FloatArray
from fraud.golden import TOLERANCE, golden_events, golden_from_json, golden_tables, golden_to_json
from fraud.runtime import TreeModel, WindowModel
from fraud.scoring import BoostingModel, LogitModel, NetworkModel, Scorer, enrich_spec, score_events
from fraud.tokens import Vocabulary, vocabulary_from_json

if TYPE_CHECKING:
    import pyarrow as pa

FORMAT_VERSION = 1
_MANIFEST = "manifest.json"
_MODEL_FILES = {"network": {"weights.safetensors", "window.onnx"}, "boosting": {"boosting.onnx"}}
_OPTIONAL_FILES = {"step.onnx"}
_TEXT_FILES = {
    "config.toml", "vocabulary.json", "calibration.json", "policy.toml", "reference.json", "golden.json",
    "metrics.json", "MODEL_CARD.md",
}  # fmt: skip
_MAX_FILE_BYTES = 2**31


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """manifest.json: what the bundle is, what it was made from and the sha256 of every other file in it."""

    format_version: int
    name: str
    kind: Literal["network", "boosting"]
    fingerprint: str
    newest_event: str
    newest_label: str | None
    state_hash: str
    max_events: int
    packages: dict[str, str]
    shapes: dict[str, list[int]]
    files: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleParts:
    """What `write_bundle` writes. model_files: window.onnx, weights.safetensors and step.onnx, or boosting.onnx."""

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
    """A verified bundle: its scorer, its manifest and where it stands. version = sha256 of the manifest, 12 digits."""

    scorer: Scorer
    manifest: Manifest
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
            _write_synced(aside / name, content)
        manifest = _manifest_of(parts, files)
        _write_synced(aside / _MANIFEST, (json.dumps(asdict(manifest), indent=1, sort_keys=True) + "\n").encode())
        load_bundle(aside)
        sync_directory(aside)
        aside.rename(directory)
        sync_directory(directory.parent)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return load_bundle(directory)


def load_bundle(directory: Path | str, *, threads: int = 1) -> Bundle:
    """Return the verified bundle of a directory; raise BundleError that names the file and what is wrong with it."""
    directory = Path(directory)
    manifest, version = _read_manifest(directory)
    files = _read_files(directory, manifest)
    try:
        config = parse_config(files["config.toml"].decode("utf-8"), source="config.toml", root=directory)
    except (ConfigError, UnicodeDecodeError) as error:
        raise BundleError(f"{directory}: {error}") from None
    if state_hash(config) != manifest.state_hash or config.sessions.max_events != manifest.max_events:
        raise BundleError(f"{directory}/config.toml: not the configuration that manifest.json was made for")
    try:
        scorer = _scorer_of(files, config, manifest.kind, version, threads)
        if manifest.kind == "network":
            _check_weights(files["weights.safetensors"], manifest)
        _check_golden(scorer, files["golden.json"].decode("utf-8", "replace"))
    except BundleError as error:
        raise BundleError(f"{directory}: {error}") from None
    reference, metrics = _json(files["reference.json"], "reference.json"), _json(files["metrics.json"], "metrics.json")
    return Bundle(scorer=scorer, manifest=manifest, reference=reference, metrics=metrics, path=directory)


def sync_directory(directory: Path) -> None:
    """Flush a directory's entries to disk, so that a rename in it survives a crash."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _content(parts: BundleParts) -> dict[str, bytes]:
    kind: Literal["network", "boosting"] = "boosting" if "boosting.onnx" in parts.model_files else "network"
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
    scorer = _scorer_of(files, parts.config, kind, "golden", 1)
    events = golden_events(parts.config, parts.vocabulary)
    files["golden.json"] = golden_to_json(events, _golden_logits(scorer, events)).encode("utf-8")
    return files


def _manifest_of(parts: BundleParts, files: Mapping[str, bytes]) -> Manifest:
    tensors = load_tensors(files["weights.safetensors"]) if "weights.safetensors" in files else {}
    return Manifest(
        format_version=FORMAT_VERSION,
        name=parts.name,
        kind="boosting" if "boosting.onnx" in files else "network",
        fingerprint=parts.fingerprint,
        newest_event=parts.newest_event,
        newest_label=parts.newest_label,
        state_hash=state_hash(parts.config),
        max_events=parts.config.sessions.max_events,
        packages=dict(parts.packages),
        shapes={name: list(tensor.shape) for name, tensor in sorted(tensors.items())},
        files={name: hashlib.sha256(content).hexdigest() for name, content in sorted(files.items())},
    )


def _scorer_of(
    files: Mapping[str, bytes], config: Config, kind: Literal["network", "boosting"], version: str, threads: int
) -> Scorer:
    vocabulary = vocabulary_from_json(files["vocabulary.json"].decode("utf-8", "replace"))
    if kind == "network":
        network = WindowModel(files["window.onnx"], threads=threads)
        model: LogitModel = NetworkModel(network, vocabulary, config)
    else:
        model = BoostingModel(TreeModel(files["boosting.onnx"], threads=threads), vocabulary, config)
    return Scorer(
        config=config,
        model=model,
        calibration=Calibration.from_json(_json(files["calibration.json"], "calibration.json")),
        policy=policy_from_toml(files["policy.toml"].decode("utf-8", "replace")),
        version=version,
    )


def _golden_logits(scorer: Scorer, events: Events) -> FloatArray:
    carry = empty_carry(events.n_users, enrich_spec(scorer.config))
    return score_events(scorer, events, carry, golden_tables(events))[0].logit_N


def _check_golden(scorer: Scorer, text: str) -> None:
    events, expected_N = golden_from_json(text, scorer.config)
    logit_N = _golden_logits(scorer, events)
    wrong_N = ~(np.abs(logit_N - expected_N) <= TOLERANCE)
    if wrong_N.any():
        row = int(np.argmax(wrong_N))
        raise BundleError(
            f"golden.json: golden event {row} has the logit {logit_N[row]:.6g} instead of {expected_N[row]:.6g} "
            f"({int(wrong_N.sum())} of {len(wrong_N)} differ): weights, vocabulary and golden scores do not fit together"
        )


def _check_weights(content: bytes, manifest: Manifest) -> None:
    try:
        tensors = load_tensors(content)
    except (SafetensorError, ValueError, TypeError, KeyError) as error:
        raise BundleError(f"weights.safetensors: cannot be read ({error})") from None
    shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
    if shapes != manifest.shapes:
        raise BundleError(f"weights.safetensors: shapes {shapes} are not those of manifest.json, {manifest.shapes}")
    for name, tensor in tensors.items():
        if not np.isfinite(tensor).all():
            raise BundleError(f"weights.safetensors: tensor {name!r} holds a number that is not finite")


def _read_manifest(directory: Path) -> tuple[Manifest, str]:
    path = directory / _MANIFEST
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BundleError(f"{directory}: not a bundle: {_MANIFEST} cannot be read ({error.strerror})") from None
    tree = _json(content, str(path))
    version = tree.get("format_version")
    if version != FORMAT_VERSION:
        raise BundleError(f"{path}: format version {version!r}; this code reads version {FORMAT_VERSION}")
    names = {field.name for field in fields(Manifest)}
    if set(tree) != names:
        raise BundleError(f"{path}: expected the names {sorted(names)}, found {sorted(tree)}")
    if tree["kind"] not in _MODEL_FILES or not isinstance(tree["files"], dict) or not isinstance(tree["shapes"], dict):
        raise BundleError(f"{path}: 'kind', 'files' or 'shapes' is not what a manifest holds")
    return Manifest(**tree), hashlib.sha256(content).hexdigest()[:12]


def _read_files(directory: Path, manifest: Manifest) -> dict[str, bytes]:
    """Return the content of every file, each of them checked against its sha256."""
    required = _TEXT_FILES | _MODEL_FILES[manifest.kind]
    listed = set(manifest.files)
    if not required <= listed or not listed <= required | _OPTIONAL_FILES:
        raise BundleError(f"{directory}/{_MANIFEST}: lists {sorted(listed)}; expected {sorted(required)}")
    there = {entry.name for entry in directory.iterdir()} - {_MANIFEST}
    if there != listed:
        raise BundleError(f"{directory}: missing {sorted(listed - there)}, not in the manifest {sorted(there - listed)}")
    files: dict[str, bytes] = {}
    for name, expected in manifest.files.items():
        path = directory / name
        try:
            if path.stat().st_size > _MAX_FILE_BYTES:
                raise BundleError(f"{path}: over {_MAX_FILE_BYTES} bytes; no bundle file is")
            files[name] = path.read_bytes()
        except OSError as error:
            raise BundleError(f"{path}: cannot be read ({error.strerror})") from None
        found = hashlib.sha256(files[name]).hexdigest()
        if found != expected:
            raise BundleError(f"{path}: sha256 {found[:12]}… instead of {str(expected)[:12]}…: the file was changed")
    return files


def _json(content: bytes, name: str) -> dict[str, Any]:  # Any: JSON
    try:
        tree = json.loads(content)
    except (ValueError, RecursionError):
        raise BundleError(f"{name}: not valid JSON") from None
    if not isinstance(tree, dict):
        raise BundleError(f"{name}: expected a JSON object")
    return tree


def _write_synced(path: Path, content: bytes) -> None:
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())

