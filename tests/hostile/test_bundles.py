"""No damaged, forged or hostile bundle is loaded, and nothing in one runs: BundleError names the file."""

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
import onnx
import pytest
from onnx import numpy_helper
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from fraud.bundle import load_bundle
from fraud.errors import BundleError
from fraud.export import step_onnx, window_onnx
from tests.tampered import copied, tampered, with_manifest
from tests.trained import MODELS, Trained, trained_bundles

_CORPUS = Path(__file__).resolve().parents[2].parent / "shared" / "tools" / "hostile" / "bad_inputs.jsonl"
_WEIGHTS = "weights.safetensors"


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return trained_bundles(tmp_path_factory)


def _refused(directory: Path, match: str) -> None:
    with pytest.raises(BundleError, match=match) as refused:
        load_bundle(directory)
    assert str(directory) in str(refused.value), "the error must say which bundle"


def _all_files() -> list[tuple[str, str]]:
    texts = ["config.toml", "vocabulary.json", "calibration.json", "policy.toml", "reference.json", "golden.json"]
    texts += ["metrics.json", "MODEL_CARD.md"]
    networks = ["window.onnx", "step.onnx", _WEIGHTS]
    return [("lstm", name) for name in (*texts, *networks)] + [("boosting", name) for name in (*texts, "boosting.onnx")]


ALL_FILES = _all_files()


@pytest.mark.parametrize(("model", "name"), ALL_FILES)
def test_a_flipped_bit_is_found_in_every_file(trained: Trained, model: str, name: str, tmp_path: Path) -> None:
    copy = copied(trained.folder / model, tmp_path)
    content = bytearray((copy / name).read_bytes())
    for place in (0, len(content) // 2, len(content) - 1):
        flipped = content.copy()
        flipped[place] ^= 4
        (copy / name).write_bytes(flipped)
        _refused(copy, re.escape(f"{name}: sha256"))


def test_a_flipped_bit_is_found_anywhere_in_the_manifest(trained: Trained, tmp_path: Path) -> None:
    copy = copied(trained.folder / "boosting", tmp_path)
    path = copy / "manifest.json"
    content = path.read_bytes()
    for place in range(0, len(content), 3):
        flipped = bytearray(content)
        flipped[place] ^= 1 << place % 7
        path.write_bytes(flipped)
        _refused(copy, r"manifest\.json")


@pytest.mark.parametrize(("model", "name"), ALL_FILES)
def test_a_truncated_a_missing_and_an_empty_file_are_found(
    trained: Trained, model: str, name: str, tmp_path: Path
) -> None:
    copy = copied(trained.folder / model, tmp_path)
    content = (copy / name).read_bytes()
    for kept in (len(content) - 1, len(content) // 2, 0):
        (copy / name).write_bytes(content[:kept])
        _refused(copy, re.escape(name))
    (copy / name).unlink()
    _refused(copy, rf"missing \['{re.escape(name)}'\]")


def test_a_file_that_the_manifest_does_not_name_is_found(trained: Trained, tmp_path: Path) -> None:
    copy = copied(trained.folder / "lstm", tmp_path)
    for name in ("boosting.onnx", "extra.py", ".hidden", "config.toml~"):
        (copy / name).write_bytes(b"")
        _refused(copy, re.escape(name))
        (copy / name).unlink()
    (copy / "members").mkdir()
    _refused(copy, "members")


def test_only_plain_files_are_read(trained: Trained, tmp_path: Path) -> None:
    """A link may lead anywhere, a pipe has no end: even one whose bytes would be the right ones is refused."""
    copy = copied(trained.folder / "lstm", tmp_path)
    for name in ("policy.toml", "manifest.json"):
        target = tmp_path / f"outside-{name}"
        shutil.move(copy / name, target)
        (copy / name).symlink_to(target)
        _refused(copy, rf"{re.escape(name)}: not a plain file")
        (copy / name).unlink()
        os.mkfifo(copy / name)
        _refused(copy, rf"{re.escape(name)}: not a plain file")
        (copy / name).unlink()
        (copy / name).mkdir()
        _refused(copy, rf"{re.escape(name)}: not a plain file")
        (copy / name).rmdir()
        shutil.move(target, copy / name)
    assert load_bundle(copy).manifest.name == "lstm"


@pytest.mark.parametrize("name", ["", "no-such-folder", "manifest.json"])
def test_a_folder_that_is_no_bundle_is_refused(trained: Trained, name: str, tmp_path: Path) -> None:
    copied(trained.folder / "boosting", tmp_path)
    with pytest.raises(BundleError, match="not a bundle"):
        load_bundle(tmp_path / name if name != "manifest.json" else tmp_path / "boosting" / name)


# The damages of the corpus, by the name of its operation: each gets the bundles' folder and an empty one, and returns a
# damaged bundle. All but the first two mend the manifest, so that only what is wrong itself can be found.


def _weights(trained: Path) -> dict[str, np.ndarray]:
    return load_tensors((trained / "lstm" / _WEIGHTS).read_bytes())


def _with_weights(change: Callable[[dict[str, np.ndarray]], None]) -> Callable[[Path, Path], Path]:
    def damaged(trained: Path, folder: Path) -> Path:
        tensors = {name: tensor.copy() for name, tensor in _weights(trained).items()}
        change(tensors)
        return tampered(trained / "lstm", folder, {_WEIGHTS: save_tensors(tensors)})

    return damaged


def _with_weight_bytes(make: Callable[[bytes], bytes]) -> Callable[[Path, Path], Path]:
    def damaged(trained: Path, folder: Path) -> Path:
        content = make((trained / "lstm" / _WEIGHTS).read_bytes())
        return tampered(trained / "lstm", folder, {_WEIGHTS: content})

    return damaged


def _with_text(name: str, pattern: str, replacement: str) -> Callable[[Path, Path], Path]:
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


def _with_manifest_bytes(content: bytes) -> Callable[[Path, Path], Path]:
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
_DAMAGES: dict[str, tuple[Callable[[Path, Path], Path], str]] = {
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
_OTHERS: dict[str, tuple[Callable[[Path, Path], Path], str]] = {
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


@pytest.mark.parametrize("operation", [*_DAMAGES, *_OTHERS])
def test_a_damaged_bundle_is_refused_by_the_name_of_the_file(trained: Trained, operation: str, tmp_path: Path) -> None:
    damage, match = (_DAMAGES | _OTHERS)[operation]
    _refused(damage(trained.folder, tmp_path), match)
    assert not (tmp_path / "canary").exists(), "something in the bundle ran"


def test_every_damage_of_the_corpus_is_tried() -> None:
    if not _CORPUS.exists():
        pytest.skip("needs ../shared/tools/hostile, which is not part of the repository")
    cases = [json.loads(line) for line in _CORPUS.read_text(encoding="utf-8").splitlines()]
    assert {case["gen"]["op"] for case in cases if case["via"] == "artefact"} == _DAMAGES.keys()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("kind", []),
        ("kind", "forest"),
        ("files", []),
        ("files", {"config.toml": 7}),
        ("shapes", {"head.weight": "1"}),
        ("packages", None),
        ("format_version", True),
        ("format_version", "1"),
        ("max_events", 10**30),
        ("max_events", 64),
        ("state_hash", "0" * 64),
        ("name", 3),
        ("unknown", 1),
    ],
)
def test_a_manifest_with_a_wrong_entry_is_refused(trained: Trained, name: str, value: object, tmp_path: Path) -> None:
    copy = with_manifest(copied(trained.folder / "lstm", tmp_path), **{name: value})
    _refused(copy, "manifest.json|config.toml")


# With every checksum mended, what still fits together must be told from what does not by the scores themselves.


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("place", [0, 5, 16])
def test_swapped_types_move_the_golden_scores(trained: Trained, model: str, place: int, tmp_path: Path) -> None:
    tree = json.loads((trained.folder / model / "vocabulary.json").read_text(encoding="utf-8"))
    values = tree["fields"][0]["values"]
    values[place], values[place + 1] = values[place + 1], values[place]
    changes = {"vocabulary.json": json.dumps(tree).encode()}
    _refused(
        tampered(trained.folder / model, tmp_path, changes, mends_golden=True), "golden.json: of the golden events"
    )


_CONSTANTS = (
    "window.table", "few.head", "body.head", "few.layer0_input_weights", "few.layer0_hidden_weights",
    "body.layer0_new_gate", "body.layer0_output_gate",
)  # fmt: skip


def _initializers(graph: onnx.GraphProto) -> list[onnx.TensorProto]:
    """Return the constants of a graph and of the graphs within it."""
    inner = [attribute.g for node in graph.node for attribute in node.attribute if attribute.HasField("g")]
    return [*graph.initializer, *(tensor for part in inner for tensor in _initializers(part))]


@pytest.mark.parametrize("value", [0.0, math.nan])
@pytest.mark.parametrize("constant", _CONSTANTS)
def test_a_changed_network_does_not_give_the_golden_scores(
    trained: Trained, constant: str, value: float, tmp_path: Path
) -> None:
    """The exported network holds its layers twice, for few windows and for many: either may be what is wrong."""
    model = onnx.load_from_string((trained.folder / "lstm" / "window.onnx").read_bytes())
    (initializer,) = [tensor for tensor in _initializers(model.graph) if tensor.name == constant]
    array = np.full_like(numpy_helper.to_array(initializer), value)
    initializer.CopyFrom(numpy_helper.from_array(array, constant))
    changes = {"window.onnx": model.SerializeToString()}
    _refused(tampered(trained.folder / "lstm", tmp_path, changes, mends_golden=True), r"golden\.json: .*golden (ev|us)")


def test_a_step_of_other_weights_does_not_give_the_golden_scores(trained: Trained, tmp_path: Path) -> None:
    weights = _weights(trained.folder)
    sizes = trained.bundle("lstm").scorer.model.vocabulary.field_sizes
    weights["recurrent.weight_hh_l0"] = weights["recurrent.weight_hh_l0"] * np.float32(1.05)
    step = tampered(
        trained.folder / "lstm", tmp_path / "a", {"step.onnx": step_onnx(weights, sizes)}, mends_golden=True
    )
    _refused(step, r"one at a time \(step\.onnx\)")
    window = {"window.onnx": window_onnx(weights, sizes)}
    _refused(tampered(trained.folder / "lstm", tmp_path / "b", window, mends_golden=True), "of the golden events")


def test_trees_of_another_vocabulary_are_refused(trained: Trained, tmp_path: Path) -> None:
    """Fewer types make fewer features than the trees read."""
    tree = json.loads((trained.folder / "boosting" / "vocabulary.json").read_text(encoding="utf-8"))
    tree["fields"][0]["values"] = tree["fields"][0]["values"][:-3]
    tree["fields"][0]["size"] -= 3
    changes = {"vocabulary.json": json.dumps(tree).encode()}
    copy = tampered(trained.folder / "boosting", tmp_path, changes, mends_golden=True)
    _refused(copy, r"boosting\.onnx: cannot read what the bundle's vocabulary makes")


def test_more_types_than_the_network_has_rows_for_are_refused(trained: Trained, tmp_path: Path) -> None:
    tree = json.loads((trained.folder / "lstm" / "vocabulary.json").read_text(encoding="utf-8"))
    last = tree["fields"][-1]
    assert last["kind"] == "octave"
    tree["fields"][-1] = {"name": last["name"], "kind": "text", "values": [], "size": 3}
    changes = {"vocabulary.json": json.dumps(tree).encode()}
    _refused(tampered(trained.folder / "lstm", tmp_path, changes, mends_golden=True), "vocabulary|golden|window")
