"""manifest.json and the files it vouches for: format, set of files, sha256, shapes and finiteness of the weights.

Knows nothing of what the files mean; `bundle` makes a scorer of them.
"""

from __future__ import annotations

import hashlib
import json
import stat
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from pydantic import ConfigDict, TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors

from fraud.errors import BundleError

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
MODEL_FILES = {"network": {"weights.safetensors", "window.onnx"}, "boosting": {"boosting.onnx"}}
_OPTIONAL_FILES = {"step.onnx"}
_TEXT_FILES = {
    "config.toml", "vocabulary.json", "calibration.json", "policy.toml", "reference.json", "golden.json",
    "metrics.json", "MODEL_CARD.md",
}  # fmt: skip
_MAX_FILE_BYTES = 2**31


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """manifest.json: what the bundle is, what it was made from and the sha256 of every other file in it."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)
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


_ADAPTER = TypeAdapter(Manifest)


def check_weights(content: bytes, manifest: Manifest) -> None:
    """Raise BundleError for tensors that cannot be read, have other shapes, or numbers that no training leaves."""
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
        if tensor.ndim > 1 and not tensor.any():
            raise BundleError(f"weights.safetensors: tensor {name!r} is zero throughout, so every score is the same")


def manifest_json(manifest: Manifest) -> str:
    """Return the text of manifest.json: the manifest and a sha256 of itself."""
    tree = asdict(manifest)
    return json.dumps(tree | {"sha256": _digest(tree)}, indent=1, sort_keys=True) + "\n"


def read_manifest(directory: Path) -> tuple[Manifest, str]:
    """Return the manifest of a bundle and the first 12 digits of its sha256: the bundle's version."""
    path = directory / MANIFEST
    if not path.exists():
        raise BundleError(f"{directory}: not a bundle: there is no {MANIFEST} in it")
    content = _plain_file(path)
    tree = json_object(content, str(path))
    version = tree.get("format_version")
    if type(version) is not int or version != FORMAT_VERSION:
        raise BundleError(f"{path}: format version {version!r}; this code reads version {FORMAT_VERSION}")
    if tree.pop("sha256", None) != _digest(tree):
        raise BundleError(f"{path}: its own sha256 does not fit: the manifest was changed")
    names = {field.name for field in fields(Manifest)}
    if set(tree) != names:
        raise BundleError(f"{path}: expected the names {sorted(names)}, found {sorted(tree)}")
    try:
        manifest = _ADAPTER.validate_json(json.dumps(tree))
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(step) for step in problem["loc"])
        raise BundleError(f"{path}: {where}: {problem['msg']}") from None
    return manifest, hashlib.sha256(content).hexdigest()[:12]


def read_files(directory: Path, manifest: Manifest) -> dict[str, bytes]:
    """Return the content of every file, each of them checked against its sha256."""
    required = _TEXT_FILES | MODEL_FILES[manifest.kind]
    listed = set(manifest.files)
    if not required <= listed or not listed <= required | _OPTIONAL_FILES:
        raise BundleError(f"{directory}/{MANIFEST}: lists {sorted(listed)}; expected {sorted(required)}")
    there = {entry.name for entry in directory.iterdir()} - {MANIFEST}
    if there != listed:
        raise BundleError(
            f"{directory}: missing {sorted(listed - there)}, not in the manifest {sorted(there - listed)}"
        )
    files: dict[str, bytes] = {}
    for name, expected in manifest.files.items():
        path = directory / name
        files[name] = _plain_file(path)
        found = hashlib.sha256(files[name]).hexdigest()
        if found != expected:
            raise BundleError(f"{path}: sha256 {found[:12]}… instead of {str(expected)[:12]}…: the file was changed")
    return files


def _digest(tree: Mapping[str, Any]) -> str:  # Any: JSON
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()


def _plain_file(path: Path) -> bytes:
    """Return the bytes of a regular file: a link may lead anywhere, a pipe or a device may never end."""
    try:
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode):
            raise BundleError(f"{path}: not a plain file; a bundle holds no link, folder, pipe or device")
        if status.st_size > _MAX_FILE_BYTES:
            raise BundleError(f"{path}: over {_MAX_FILE_BYTES} bytes; no bundle file is")
        return path.read_bytes()
    except OSError as error:
        raise BundleError(f"{path}: cannot be read ({error.strerror})") from None


def json_object(content: bytes, name: str) -> dict[str, Any]:  # Any: JSON
    try:
        tree = json.loads(content)
    except (ValueError, RecursionError):
        raise BundleError(f"{name}: not valid JSON") from None
    if not isinstance(tree, dict):
        raise BundleError(f"{name}: expected a JSON object")
    return cast(dict[str, Any], tree)
