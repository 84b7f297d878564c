"""Bundles damaged on purpose, with as many of their own checksums mended as a test asks for."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SOURCES = ("vocabulary.json", "fusion.json", "weights.safetensors", "window.onnx", "step.onnx", "boosting.onnx")


def copied(bundle: Path, folder: Path) -> Path:
    """Return a copy of a bundle that a test may damage."""
    return Path(shutil.copytree(bundle, folder / bundle.name))


def tampered(bundle: Path, folder: Path, changes: Mapping[str, bytes], *, mends_golden: bool = False) -> Path:
    """Return a copy with other contents of some files, and a manifest (with mends_golden a golden.json too) to fit."""
    copy = copied(bundle, folder)
    for name, content in changes.items():
        (copy / name).write_bytes(content)
    if mends_golden:
        golden = json.loads((copy / "golden.json").read_text(encoding="utf-8"))
        golden["sources"] = {name: sha for name, sha in _files(copy).items() if name.rpartition("/")[2] in SOURCES}
        (copy / "golden.json").write_text(json.dumps(golden), encoding="utf-8")
    with_manifest(copy, files=_files(copy))
    return copy


def with_manifest(bundle: Path, **changes: Any) -> Path:  # Any: JSON
    """Return the bundle, its manifest changed in place and signed anew."""
    path = bundle / "manifest.json"
    tree = json.loads(path.read_text(encoding="utf-8")) | changes
    tree.pop("sha256")
    tree["sha256"] = hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps(tree), encoding="utf-8")
    return bundle


def _files(bundle: Path) -> dict[str, str]:
    """Return the sha256 of every file but the manifest, by its path in the bundle."""
    paths = [path for path in sorted(bundle.rglob("*")) if path.is_file() and path.name != "manifest.json"]
    return {path.relative_to(bundle).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}
