"""manifest.json and the files it vouches for: format, set of files, sha256, shapes and finiteness of the weights.

Knows nothing of what the files mean; `bundle` makes a scorer of them.
"""

from __future__ import annotations

import hashlib
import json
import re
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
VERSION_DIGITS = 12
Kind = Literal["network", "boosting", "fused"]
_NETWORK_FILES, _TREE_FILES = {"weights.safetensors", "window.onnx"}, {"boosting.onnx"}
_OPTIONAL_FILES = {"step.onnx"}
MEMBERS = "members"
_MEMBER_FILE = re.compile(MEMBERS + r"/([a-z][a-z0-9_]{0,31})/([a-z]+\.[a-z]+)")
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
    kind: Kind
    fingerprint: str
    newest_event: str
    newest_label: str | None
    state_hash: str
    max_events: int
    packages: dict[str, str]
    shapes: dict[str, list[int]]
    files: dict[str, str]


_ADAPTER = TypeAdapter(Manifest)


def weight_shapes(files: Mapping[str, bytes]) -> dict[str, list[int]]:
    """Return the shape of each tensor of each weights.safetensors, as FOLDER/TENSOR for those of members."""
    return {name: list(tensor.shape) for name, tensor in sorted(_tensors(files).items())}


def check_weights(files: Mapping[str, bytes], manifest: Manifest) -> None:
    """Raise BundleError for tensors that cannot be read, have other shapes, or numbers that no training leaves."""
    tensors = _tensors(files)
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
    """Return the manifest of a bundle and its sha256 hex, whose first VERSION_DIGITS are the bundle's version."""
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
    return manifest, hashlib.sha256(content).hexdigest()


def read_files(directory: Path, manifest: Manifest) -> dict[str, bytes]:
    """Return the content of every file, each of them checked against its sha256."""
    listed = set(manifest.files)
    _check_listed(listed, manifest.kind, f"{directory}/{MANIFEST}")
    there = _entries(directory) - {MANIFEST}
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


def _check_listed(listed: set[str], kind: Kind, where: str) -> None:
    """Raise BundleError where the files are not those of a scorer of this kind."""
    required = set(_TEXT_FILES)
    optional: set[str] = set()
    if kind != "fused":
        required |= _TREE_FILES if kind == "boosting" else _NETWORK_FILES
        optional = _OPTIONAL_FILES if kind == "network" else optional
    else:
        required.add("fusion.json")
        by_member: dict[str, set[str]] = {}
        for name in listed:
            found = _MEMBER_FILE.fullmatch(name)
            if found is not None:
                by_member.setdefault(found[1], set()).add(found[2])
        for member, names in by_member.items():
            needed = _TREE_FILES if "boosting.onnx" in names else _NETWORK_FILES
            required |= {f"{MEMBERS}/{member}/{name}" for name in needed}
            optional |= {f"{MEMBERS}/{member}/{name}" for name in _OPTIONAL_FILES if needed is _NETWORK_FILES}
    if not required <= listed or not listed <= required | optional:
        raise BundleError(f"{where}: lists {sorted(listed)}; expected {sorted(required)}")


def _entries(directory: Path) -> set[str]:
    """Return the files below a bundle's directory; a folder that no bundle has is named as an entry of its own."""
    names: set[str] = set()
    for entry in directory.iterdir():
        if entry.name != MEMBERS or entry.is_symlink() or not entry.is_dir():
            names.add(entry.name)
            continue
        folders = list(entry.iterdir())
        names |= set() if folders else {MEMBERS}
        for folder in folders:
            is_plain = folder.is_dir() and not folder.is_symlink()
            files = {f"{MEMBERS}/{folder.name}/{file.name}" for file in folder.iterdir()} if is_plain else set[str]()
            names |= files or {f"{MEMBERS}/{folder.name}"}
    return names


def _tensors(files: Mapping[str, bytes]) -> dict[str, np.ndarray]:
    tensors: dict[str, np.ndarray] = {}
    for path, content in files.items():
        folder, _, name = path.rpartition("/")
        if name != "weights.safetensors":
            continue
        try:
            found = load_tensors(content)
        except (SafetensorError, ValueError, TypeError, KeyError) as error:
            raise BundleError(f"{path}: cannot be read ({error})") from None
        tensors |= {f"{folder}/{tensor}" if folder else tensor: array for tensor, array in found.items()}
    return tensors


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
