"""Damages of a bundle by the name of the operation in the corpus, and others; with what the error must say.

Each gets the folder of the trained bundles and an empty one, and returns a damaged bundle. Nearly all mend the
manifest, so that only what is wrong itself can be found.
"""

from __future__ import annotations

import json
import math
import os
import pickle
import re
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from tests.tampered import copied, tampered, with_manifest

_WEIGHTS = "weights.safetensors"
Damage = Callable[[Path, Path], Path]


def weights(trained: Path) -> dict[str, np.ndarray]:
    return load_tensors((trained / "lstm" / _WEIGHTS).read_bytes())


def _with_weights(change: Callable[[dict[str, np.ndarray]], None]) -> Damage:
    def damaged(trained: Path, folder: Path) -> Path:
        tensors = {name: tensor.copy() for name, tensor in weights(trained).items()}
        change(tensors)
        return tampered(trained / "lstm", folder, {_WEIGHTS: save_tensors(tensors)})

    return damaged


def _with_weight_bytes(make: Callable[[bytes], bytes]) -> Damage:
    def damaged(trained: Path, folder: Path) -> Path:
        content = make((trained / "lstm" / _WEIGHTS).read_bytes())
        return tampered(trained / "lstm", folder, {_WEIGHTS: content})

    return damaged


def _with_text(name: str, pattern: str, replacement: str) -> Damage:
    def damaged(trained: Path, folder: Path) -> Path:
        text, n_changed = re.subn(pattern, replacement, (trained / "lstm" / name).read_text(encoding="utf-8"))
        assert n_changed
        return tampered(trained / "lstm", folder, {name: text.encode()})

    return damaged


def _with_header(change: Callable[[dict[str, dict[str, list[int]]], int], None]) -> Callable[[bytes], bytes]:
    """Return a change of the header of a safetensors file; it gets the header and the size of the data."""

    def changed(content: bytes) -> bytes:
        (n_header,) = struct.unpack("<Q", content[:8])
        header = json.loads(content[8 : 8 + n_header])
        change(header, len(content) - 8 - n_header)
        text = json.dumps(header).encode()
        return struct.pack("<Q", len(text)) + text + content[8 + n_header :]

    return changed


def _largest(tensors: dict[str, np.ndarray]) -> np.ndarray:
    return max(tensors.values(), key=np.size)


def _set_one(value: float) -> Callable[[dict[str, np.ndarray]], None]:
    def change(tensors: dict[str, np.ndarray]) -> None:
        _largest(tensors).flat[-1] = value

    return change


def _set_all_to_zero(tensors: dict[str, np.ndarray]) -> None:
    for tensor in tensors.values():
        tensor[...] = 0.0


def _add_one(tensors: dict[str, np.ndarray]) -> None:
    tensors["extra"] = np.ones(3, dtype=np.float32)


def _overlap(header: dict[str, dict[str, list[int]]], _n_bytes: int) -> None:
    first, second = [name for name in header if name != "__metadata__"][:2]
    size = header[second]["data_offsets"][1] - header[second]["data_offsets"][0]
    start = header[first]["data_offsets"][0]
    header[second]["data_offsets"] = [start, start + size]


def _beyond(header: dict[str, dict[str, list[int]]], n_bytes: int) -> None:
    last = max((name for name in header if name != "__metadata__"), key=lambda name: header[name]["data_offsets"][1])
    header[last]["data_offsets"][1] = n_bytes + 10**12


def _truncated(trained: Path, folder: Path) -> Path:
    copy = copied(trained / "lstm", folder)
    content = (copy / _WEIGHTS).read_bytes()
    (copy / _WEIGHTS).write_bytes(content[: len(content) // 2])
    return copy


def _without_manifest(trained: Path, folder: Path) -> Path:
    copy = copied(trained / "lstm", folder)
    (copy / "manifest.json").unlink()
    return copy


def _with_manifest_bytes(content: bytes) -> Damage:
    def damaged(trained: Path, folder: Path) -> Path:
        copy = copied(trained / "lstm", folder)
        (copy / "manifest.json").write_bytes(content)
        return copy

    return damaged


def _with_wrong_sha(trained: Path, folder: Path) -> Path:
    copy = copied(trained / "lstm", folder)
    files = json.loads((copy / "manifest.json").read_text(encoding="utf-8"))["files"]
    return with_manifest(copy, files=files | {_WEIGHTS: "0" * 64})


def _with_manifest_of_another(trained: Path, folder: Path) -> Path:
    copy = copied(trained / "lstm", folder)
    shutil.copy(trained / "boosting" / "manifest.json", copy / "manifest.json")
    return copy


def _with_swapped_ids(trained: Path, folder: Path) -> Path:
    tree = json.loads((trained / "lstm" / "vocabulary.json").read_text(encoding="utf-8"))
    values = tree["fields"][0]["values"]
    values[0], values[1] = values[1], values[0]
    return tampered(trained / "lstm", folder, {"vocabulary.json": json.dumps(tree).encode()})


def _with_path_outside(trained: Path, folder: Path) -> Path:
    copy = copied(trained / "lstm", folder)
    files = json.loads((copy / "manifest.json").read_text(encoding="utf-8"))["files"]
    content = files.pop("policy.toml")
    shutil.move(copy / "policy.toml", folder / "policy.toml")
    return with_manifest(copy, files=files | {"../policy.toml": content})


def _without_calibration(trained: Path, folder: Path) -> Path:
    copy = copied(trained / "lstm", folder)
    (copy / "calibration.json").unlink()
    files = json.loads((copy / "manifest.json").read_text(encoding="utf-8"))["files"]
    del files["calibration.json"]
    return with_manifest(copy, files=files)


def _of_the_future(trained: Path, folder: Path) -> Path:
    return with_manifest(copied(trained / "lstm", folder), format_version=2)


class _Canary:
    """Creates a folder when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self._marker = marker

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self._marker),)


def _with_pickle(trained: Path, folder: Path) -> Path:
    content = pickle.dumps(_Canary(folder / "canary"))
    return tampered(trained / "lstm", folder, {_WEIGHTS: content, "window.onnx": content}, mends_golden=True)


_DEEP = b'{"a":' * 100_000
DAMAGES: dict[str, tuple[Damage, str]] = {
    "truncate": (_truncated, r"weights\.safetensors: sha256"),
    "bad_sha": (_with_wrong_sha, r"weights\.safetensors: sha256"),
    "no_manifest": (_without_manifest, "not a bundle: there is no manifest.json"),
    "manifest_garbage": (_with_manifest_bytes(b"\x00\xff not JSON"), "manifest.json: not valid JSON"),
    "swap_manifest": (_with_manifest_of_another, r"missing \['boosting.onnx'\]"),
    "nan_one": (_with_weights(_set_one(math.nan)), r"weights\.safetensors: tensor .* not finite"),
    "inf_one": (_with_weights(_set_one(math.inf)), r"weights\.safetensors: tensor .* not finite"),
    "zeros": (_with_weights(_set_all_to_zero), r"weights\.safetensors: tensor .* zero throughout"),
    "vocab_swap": (_with_swapped_ids, r"vocabulary\.json: not the file that the golden scores came from"),
    "extra_key": (_with_weights(_add_one), r"weights\.safetensors: shapes .*'extra'"),
    "pickle_canary": (_with_pickle, r"window\.onnx: not a model"),
    "st_hdr_len": (
        _with_weight_bytes(lambda content: struct.pack("<Q", 2**63) + content[8:]),
        r"weights\.safetensors: cannot be read",
    ),
    "st_hdr_deep": (
        _with_weight_bytes(lambda _: struct.pack("<Q", len(_DEEP)) + _DEEP),
        r"weights\.safetensors: cannot be read",
    ),
    "st_overlap": (_with_weight_bytes(_with_header(_overlap)), r"weights\.safetensors: cannot be read"),
    "st_oob": (_with_weight_bytes(_with_header(_beyond)), r"weights\.safetensors: cannot be read"),
    "traversal": (_with_path_outside, r"manifest\.json: lists .*'\.\./policy\.toml'"),
    "bad_threshold": (
        _with_text("policy.toml", r"review_at = .*", "review_at = 1.5"),
        r"policy\.toml: review_at = 1\.5: expected a number from 0",
    ),
    "no_calib": (_without_calibration, r"manifest\.json: lists .*; expected .*calibration\.json"),
    "huge_config": (
        _with_text("config.toml", r"width = \d+", "width = 1000000000"),
        r"config\.toml: model\.width = 1000000000",
    ),
    "future_format": (_of_the_future, "format version 2; this code reads version 1"),
}
OTHERS: dict[str, tuple[Damage, str]] = {
    "threshold NaN": (_with_text("policy.toml", r"review_at = .*", "review_at = nan"), "policy.toml: review_at = nan"),
    "threshold below 0": (_with_text("policy.toml", r"review_at = .*", "review_at = -0.1"), "policy.toml: review_at"),
    "policy not TOML": (_with_text("policy.toml", r"(?s).+", "[["), "policy.toml: not valid TOML"),
    "policy nested": (_with_text("policy.toml", r"(?s).+", "a = " + "[" * 9999), r"policy\.toml"),
    "config nested": (_with_text("config.toml", r"(?s).+", "a = " + "[" * 9999), r"config\.toml"),
    "config of another state": (_with_text("config.toml", 'gap = "30m"', 'gap = "31m"'), r"config\.toml: not the conf"),
    "config misspelt": (_with_text("config.toml", "width", "widht"), r"config\.toml: unknown name 'model\.widht'"),
    "slope NaN": (_with_text("calibration.json", r'"slope": [^,]+', '"slope": NaN'), r"calibration\.json: slope"),
    "slope 0": (_with_text("calibration.json", r'"slope": [^,]+', '"slope": 0'), r"calibration\.json: slope = 0"),
    "slope of 400 digits": (
        _with_text("calibration.json", r'"slope": [^,]+', f'"slope": {10**400}'),
        r"calibration\.json: slope",
    ),
    "another calibration": (_with_text("calibration.json", '"shift"', '"shfit"'), r"calibration\.json: expected the k"),
    "vocabulary not JSON": (_with_text("vocabulary.json", r"\A\{", "["), r"vocabulary\.json: cannot be read"),
    "vocabulary without a field": (
        _with_text("vocabulary.json", r'(?s)\{\s+"name": "gap".*?\},', ""),
        r"vocabulary\.json: \d+ fields, but window\.onnx reads \d+",
    ),
    "size infinite": (_with_text("vocabulary.json", r'"size": \d+', '"size": Infinity'), r"vocabulary\.json: cannot"),
    "size too large": (_with_text("vocabulary.json", r'"size": \d+', '"size": 99999'), r"vocabulary\.json: field"),
    "golden without logits": (_with_text("golden.json", '"logits"', '"logit"'), r"golden\.json: cannot be read"),
    "golden short": (_with_text("golden.json", r'"logits": \[[^,]+, ', '"logits": ['), r"golden\.json: \d+ logits"),
    "golden users": (_with_text("golden.json", r'"user_starts": \[0, 1', '"user_starts": [1, 1'), "golden.json: user"),
    "golden order": (_with_text("golden.json", r'"user_starts": \[0, 1', '"user_starts": [0, 9'), "golden.json: user"),
    "golden NaN": (_with_text("golden.json", r'"logits": \[[^,]+', '"logits": [NaN'), "instead of nan"),
    "golden number huge": (_with_text("golden.json", r'"time_us": \[\d+', f'"time_us": [{10**30}'), r"golden\.json: c"),
    "reference not JSON": (_with_text("reference.json", r"\A\{", "["), r"reference\.json: not valid JSON"),
    "metrics no object": (_with_text("metrics.json", r"(?s).+", "[]"), r"metrics\.json: expected a JSON object"),
    "manifest nested": (_with_manifest_bytes(b"[" * 10**6), r"manifest\.json: not valid JSON"),
    "manifest no object": (_with_manifest_bytes(b"[]"), r"manifest\.json: expected a JSON object"),
    "manifest without names": (_with_manifest_bytes(b'{"format_version": 1}'), r"manifest\.json: "),
}  # fmt: skip
