"""No damaged, forged or hostile bundle is loaded, and nothing in one runs: BundleError names the file."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from fraud.bundle import load_bundle
from fraud.errors import BundleError
from fraud.models.recurrent import onnx_files
from tests.hostile.damages import DAMAGES, OTHERS, weights
from tests.tampered import copied, tampered, with_manifest
from tests.trained import MODELS, Trained, trained_bundles

_CORPUS = Path(__file__).resolve().parents[2].parent / "shared" / "tools" / "hostile" / "bad_inputs.jsonl"


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
    networks = ["window.onnx", "step.onnx", "weights.safetensors"]
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


def test_a_fused_bundle_whose_members_are_not_its_own_is_refused(trained: Trained, tmp_path: Path) -> None:
    fused = trained.folder / "fused"
    fusion = json.loads((fused / "fusion.json").read_text(encoding="utf-8"))

    def changed(place: str, **changes: object) -> Path:
        text = json.dumps(fusion | changes).encode()
        return tampered(fused, tmp_path / place, {"fusion.json": text}, mends_golden=True)

    _refused(changed("a", members=["gru", "lstm"]), r"fusion\.json: weighs .*'lstm'.* holds \['boosting', 'gru'\]")
    _refused(changed("b", weights=[1.0]), "1 weights")
    _refused(changed("c", weights=fusion["weights"][::-1]), "of the golden events")
    copy = copied(fused, tmp_path / "d")
    for name in ("members/rnn/window.onnx", "members/gru/extra.py", "members/gru/deep/er", "members/loose"):
        (copy / name).parent.mkdir(exist_ok=True)
        (copy / name).write_bytes(b"")
        _refused(copy, re.escape(name.removesuffix("/er")))
        (copy / name).unlink()
        if not any((copy / name).parent.iterdir()):
            (copy / name).parent.rmdir()
    (copy / "members" / "empty").mkdir()
    _refused(copy, "members/empty")
    (copy / "members" / "empty").rmdir()
    (copy / "members" / "gru").rename(tmp_path / "outside")
    (copy / "members" / "gru").symlink_to(tmp_path / "outside")
    _refused(copy, "members/gru")


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


@pytest.mark.parametrize("operation", [*DAMAGES, *OTHERS])
def test_a_damaged_bundle_is_refused_by_the_name_of_the_file(trained: Trained, operation: str, tmp_path: Path) -> None:
    damage, match = (DAMAGES | OTHERS)[operation]
    _refused(damage(trained.folder, tmp_path), match)
    assert not (tmp_path / "canary").exists(), "something in the bundle ran"


def test_every_damage_of_the_corpus_is_tried() -> None:
    if not _CORPUS.exists():
        pytest.skip("needs ../shared/tools/hostile, which is not part of the repository")
    cases = [json.loads(line) for line in _CORPUS.read_text(encoding="utf-8").splitlines()]
    assert {case["gen"]["op"] for case in cases if case["via"] == "artefact"} == DAMAGES.keys()


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
    tensors = weights(trained.folder)
    fields = trained.bundle("lstm").scorer.model.vocabulary.field_shapes
    tensors["encoder.cells.weight_hh_l0"] = tensors["encoder.cells.weight_hh_l0"] * np.float32(1.05)
    files = onnx_files(tensors, fields, trained.bundle("lstm").scorer.config.model)
    for name, refusal in (
        ("step.onnx", r"one at a time \(step\.onnx\)"),
        ("window.onnx", "of the golden events"),
    ):
        changes = {name: files[name]}
        _refused(tampered(trained.folder / "lstm", tmp_path / name, changes, mends_golden=True), refusal)


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
