"""Models from bytes: what is not the expected model is refused, what is runs on any number of windows and events."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from onnx import TensorProto, helper

from fraud.config import ModelConfig
from fraud.errors import BundleError
from fraud.models.boosting import Trees, boosting_onnx
from fraud.models.network import build_network, export_network, weights_of
from fraud.runtime import StepModel, TreeModel, WindowModel
from fraud.tokens import FieldShape

_SIZES = (6, 4)
_SIZE = ModelConfig(layers=2, width=4)
_FIELDS = tuple(FieldShape(f"field{f}", size, is_ordered=False) for f, size in enumerate(_SIZES))
_READERS: dict[str, Callable[[bytes], object]] = {
    "window.onnx": WindowModel,
    "step.onnx": StepModel,
    "boosting.onnx": TreeModel,
}


@pytest.fixture(scope="module")
def contents() -> dict[str, bytes]:
    network = build_network(_FIELDS, _SIZE, dropout=0.0, base_rate=0.1, seed=0)
    stump = Trees(
        n_features=2,
        baseline=-1.0,
        starts_K=np.array([0]),
        is_leaf_M=np.array([False, True, True]),
        feature_M=np.array([1, 0, 0]),
        threshold_M=np.array([0.1, 0.0, 0.0]),
        missing_left_M=np.array([True, False, False]),
        left_M=np.array([1, 0, 0]),
        right_M=np.array([2, 0, 0]),
        value_M=np.array([0.0, 0.5, 2.0]),
    )
    return {
        **export_network(weights_of(network), _FIELDS, _SIZE),
        "boosting.onnx": boosting_onnx(stump),
    }


@pytest.mark.parametrize("name", _READERS)
@pytest.mark.parametrize("damage", ["empty", "text", "cut", "start lost"])
def test_bytes_that_are_no_model_are_refused_by_name(contents: dict[str, bytes], name: str, damage: str) -> None:
    content = contents[name]
    damaged = {"empty": b"", "text": b"not a model", "cut": content[:-7], "start lost": content[9:]}[damage]
    with pytest.raises(BundleError, match=name):
        _READERS[name](damaged)


@pytest.mark.parametrize(("name", "other"), [(name, other) for name in _READERS for other in _READERS if name != other])
def test_a_model_of_another_kind_is_refused_with_what_was_expected(
    contents: dict[str, bytes], name: str, other: str
) -> None:
    with pytest.raises(BundleError, match=rf"{name}: inputs .*; expected "):
        _READERS[name](contents[other])


def test_a_window_model_whose_number_of_fields_is_open_is_refused() -> None:
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["tokens"], ["floats"], to=TensorProto.FLOAT),
            helper.make_node("ReduceSum", ["floats", "axis"], ["logits"], keepdims=0),
        ],
        "sum",
        [helper.make_tensor_value_info("tokens", TensorProto.INT64, ["B", "T", "F"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["B", "T"])],
        [helper.make_tensor("axis", TensorProto.INT64, [1], [2])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    with pytest.raises(BundleError, match="last dimension of tokens is 'F'; expected a fixed size"):
        WindowModel(model.SerializeToString())


def test_a_model_tells_how_much_it_reads(contents: dict[str, bytes]) -> None:
    assert WindowModel(contents["window.onnx"]).n_fields == 2
    step = StepModel(contents["step.onnx"])
    assert (step.n_fields, step.n_numbers) == (2, 2 * 2 * 4)
    assert TreeModel(contents["boosting.onnx"]).n_features == 2


def test_one_model_takes_batches_of_any_shape_one_after_another(contents: dict[str, bytes]) -> None:
    model = WindowModel(contents["window.onnx"])
    for n_windows, n_events in ((1, 1), (40, 7), (3, 90), (17, 2), (1, 1)):
        logits_BT = model.logits(np.ones((n_windows, n_events, 2), dtype=np.int64))
        assert logits_BT.shape == (n_windows, n_events)
        assert logits_BT.dtype == np.float32


def test_a_stump_sends_equal_and_missing_numbers_to_its_left_leaf(contents: dict[str, bytes]) -> None:
    above = np.nextafter(np.float32(0.1), np.float32(1))  # float32(0.1) itself is already above the double 0.1
    below = np.nextafter(np.float32(0.1), np.float32(0))
    column = np.array([below, above, np.float32(0.1), np.nan, np.inf, -np.inf], dtype=np.float32)
    logits_R = TreeModel(contents["boosting.onnx"]).logits(np.stack([np.zeros_like(column), column], axis=1))
    assert logits_R.tolist() == [-0.5, 1.0, 1.0, -0.5, 1.0, -0.5]
