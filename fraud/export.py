"""A fitted network as ONNX: the step (one more event of each user) and the window (every event of a window).

The graphs are built from the weights operator by operator, so nothing depends on the shapes that a tracer happened to
see: batch and time are dynamic, and torch is not imported. The window holds the layers in two forms, because no single
one is fast for both of its callers (LSTM 2 x 128, one thread, 64 events): ONNX Runtime's LSTM for few windows (one:
0.7 ms against 1.8), a Scan whose body is the step for many (128 windows: 6.2 us an event against 8.1).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from onnx import GraphProto, NodeProto, TensorProto, ValueInfoProto, checker, helper, numpy_helper

FloatMatrix = npt.NDArray[np.float32]
Weights = Mapping[str, FloatMatrix]
Shape = list[str | int]

_FEW_WINDOWS = 24  # from here on the Scan is the faster (width 64: from 32, width 128: from 18)
_GATES = ("input", "forget", "new", "output")  # in torch's order
_ONNX_ORDER = (0, 3, 1, 2)  # input, output, forget, new


@dataclass(frozen=True, slots=True)
class _Network:
    """A `fraud.models.recurrent.Recurrent` as arrays. weights: its state by name, what weights.safetensors holds."""

    weights: Weights
    field_sizes: tuple[int, ...]

    @property
    def n_layers(self) -> int:
        """Return the number of LSTM layers."""
        return sum(name.startswith("recurrent.weight_ih_l") for name in self.weights)

    @property
    def width(self) -> int:
        """Return D."""
        return self.weights["head.weight"].shape[1]

    @property
    def offsets_F(self) -> npt.NDArray[np.int64]:
        """Return the row of the table where each field's rows start."""
        return np.cumsum([0, *self.field_sizes[:-1]], dtype=np.int64)

    @property
    def table_VD(self) -> FloatMatrix:
        """Return the embeddings of all fields, divided by sqrt(F) so that an event is their plain sum."""
        return self.weights["embedding.table"] * np.float32(len(self.field_sizes) ** -0.5)

    @property
    def head(self) -> tuple[FloatMatrix, FloatMatrix]:
        """Return (matrix [D, 1], bias [1]) of the logit."""
        return self.weights["head.weight"].T, self.weights["head.bias"]

    def layer(self, layer: int) -> tuple[FloatMatrix, FloatMatrix, FloatMatrix]:
        """Return (input [4D, D], hidden [4D, D], bias [4D]) of a layer in torch's order of gates, its biases added."""
        return (
            self.weights[f"recurrent.weight_ih_l{layer}"],
            self.weights[f"recurrent.weight_hh_l{layer}"],
            self.weights[f"recurrent.bias_ih_l{layer}"] + self.weights[f"recurrent.bias_hh_l{layer}"],
        )


class _LayerState(NamedTuple):
    hidden: str
    cell: str


@dataclass(frozen=True, slots=True)
class _Graph:
    """Nodes in the making; `name` starts the name of each value, so that a subgraph hides none of its outer graph.

    A subgraph holds the matrices it multiplies by: ONNX Runtime packs those of an outer graph anew in each call (7.0 us
    an event instead of 6.0). Any: an attribute of a node is a number, a list of them or a graph.
    """

    name: str
    nodes: list[NodeProto] = field(default_factory=list[NodeProto])
    constants: list[TensorProto] = field(default_factory=list[TensorProto])

    def constant(self, name: str, array: npt.NDArray[np.generic]) -> str:
        """Return the full name of a new constant."""
        full = f"{self.name}.{name}"
        self.constants.append(numpy_helper.from_array(np.array(array, order="C"), full))
        return full

    def add(self, operator: str, inputs: list[str], output: str, **attributes: Any) -> str:
        """Return the full name of the output of a new node."""
        return self.add_many(operator, inputs, [output], **attributes)[0]

    def add_many(self, operator: str, inputs: list[str], outputs: list[str], **attributes: Any) -> list[str]:
        """Return the full names of the outputs of a new node."""
        names = [f"{self.name}.{output}" for output in outputs]
        self.nodes.append(helper.make_node(operator, inputs, names, **attributes))
        return names

    def proto(self, inputs: list[ValueInfoProto], outputs: list[ValueInfoProto]) -> GraphProto:
        """Return the finished graph."""
        return helper.make_graph(self.nodes, self.name, inputs, outputs, self.constants)


def step_onnx(weights: Weights, field_sizes: tuple[int, ...]) -> bytes:
    """Return the ONNX model of one step.

    "tokens" int64 [B, F], "state" float32 [B, S] -> "logits" float32 [B], "next_state" float32 [B, S]; the state of a
    user who has done nothing is zeros.
    """
    network = _Network(weights, field_sizes)
    n_layers = network.n_layers
    n_numbers = 2 * n_layers * network.width
    graph = _Graph("step")
    table = graph.constant("table", network.table_VD)
    rows_BF = graph.add("Add", ["tokens", graph.constant("offsets", network.offsets_F)], "rows")
    parts = graph.add_many("Split", ["state"], [f"part{n}" for n in range(2 * n_layers)], axis=1)
    states = [_LayerState(parts[layer], parts[n_layers + layer]) for layer in range(n_layers)]
    logit_B1, states = _step(graph, network, table, rows_BF, states)
    logit_B = graph.add("Squeeze", [logit_B1, graph.constant("last_axis", np.array([-1]))], "logit_B")
    after_BS = graph.add("Concat", [s.hidden for s in states] + [s.cell for s in states], "after", axis=1)
    return _model(
        graph,
        inputs=[_int64("tokens", ["B", len(network.field_sizes)]), _float32("state", ["B", n_numbers])],
        outputs=[_float32("logits", ["B"]), _float32("next_state", ["B", n_numbers])],
        sources=[logit_B, after_BS],
    )


def window_onnx(weights: Weights, field_sizes: tuple[int, ...]) -> bytes:
    """Return the ONNX model of windows: "tokens" int64 [B, T, F] -> "logits" float32 [B, T]."""
    network = _Network(weights, field_sizes)
    graph = _Graph("window")
    table = graph.constant("table", network.table_VD)
    tokens_TBF = graph.add("Transpose", ["tokens"], "tokens_TBF", perm=[1, 0, 2])
    rows_TBF = graph.add("Add", [tokens_TBF, graph.constant("offsets", network.offsets_F)], "rows")
    n_windows = graph.add("Shape", ["tokens"], "n_windows", start=0, end=1)
    is_few = graph.add("Less", [n_windows, graph.constant("few", np.array([_FEW_WINDOWS]))], "is_few")
    few = _few_windows(network, table, rows_TBF)
    many = _many_windows(network, table, rows_TBF, n_windows)
    logit_TB1 = graph.add("If", [is_few], "logit_TB1", then_branch=few, else_branch=many)
    logit_TB = graph.add("Squeeze", [logit_TB1, graph.constant("last_axis", np.array([-1]))], "logit_TB")
    logit_BT = graph.add("Transpose", [logit_TB], "logit_BT", perm=[1, 0])
    inputs = [_int64("tokens", ["B", "T", len(network.field_sizes)])]
    return _model(graph, inputs=inputs, outputs=[_float32("logits", ["B", "T"])], sources=[logit_BT])


def _few_windows(network: _Network, table: str, rows_TBF: str) -> GraphProto:
    """Return the graph rows_TBF -> logit_TB1 with one LSTM operator for each layer."""
    graph = _Graph("few")
    direction = graph.constant("direction_axis", np.array([1]))
    values_TBD = _embedded(graph, table, rows_TBF)
    for layer in range(network.n_layers):
        input_4DD, hidden_4DD, bias_4D = (
            np.concatenate([np.split(whole, 4)[gate] for gate in _ONNX_ORDER]) for whole in network.layer(layer)
        )
        values_T1BD = graph.add(
            "LSTM",
            [
                values_TBD,
                graph.constant(f"layer{layer}_input_weights", input_4DD[None]),
                graph.constant(f"layer{layer}_hidden_weights", hidden_4DD[None]),
                graph.constant(f"layer{layer}_biases", np.concatenate([bias_4D, np.zeros_like(bias_4D)])[None]),
            ],
            f"values_T1BD{layer}",
            hidden_size=hidden_4DD.shape[1],
        )
        values_TBD = graph.add("Squeeze", [values_T1BD, direction], f"values_TBD{layer}")
    head_D1, bias_1 = network.head
    product = graph.add("MatMul", [values_TBD, graph.constant("head", head_D1)], "product")
    logit_TB1 = graph.add("Add", [product, graph.constant("head_bias", bias_1)], "logit_TB1")
    return graph.proto([], [_float32(logit_TB1, ["T", "B", 1])])


def _many_windows(network: _Network, table: str, rows_TBF: str, n_windows: str) -> GraphProto:
    """Return the graph rows_TBF -> logit_TB1 that runs the step at each position."""
    n_layers, width = network.n_layers, network.width
    body = _Graph("body")
    before = [_LayerState(f"body.hidden_in{layer}", f"body.cell_in{layer}") for layer in range(n_layers)]
    logit_B1, after = _step(body, network, table, "body.rows_BF", before)
    body_graph = body.proto(
        [*(_float32(name, ["B", width]) for state in before for name in state), _int64("body.rows_BF", ["B", "F"])],
        [*(_float32(name, ["B", width]) for state in after for name in state), _float32(logit_B1, ["B", 1])],
    )
    graph = _Graph("many")
    shape = graph.add("Concat", [n_windows, graph.constant("width", np.array([width]))], "shape", axis=0)
    zeros_BD = graph.add("ConstantOfShape", [shape], "zeros")
    outputs = [*(f"end{n}" for n in range(2 * n_layers)), "logit_TB1"]
    inputs = [*[zeros_BD] * (2 * n_layers), rows_TBF]
    logit_TB1 = graph.add_many("Scan", inputs, outputs, body=body_graph, num_scan_inputs=1)[-1]
    return graph.proto([], [_float32(logit_TB1, ["T", "B", 1])])


def _step(
    graph: _Graph, network: _Network, table: str, rows_BF: str, states: list[_LayerState]
) -> tuple[str, list[_LayerState]]:
    """Add the nodes of one event of each of B users; return (logit [B, 1], the state of each layer after it)."""
    values_BD = _embedded(graph, table, rows_BF)
    after: list[_LayerState] = []
    for layer, state in enumerate(states):
        after.append(_lstm_cell(graph, network, layer, values_BD, state))
        values_BD = after[-1].hidden
    head_D1, bias_1 = network.head
    head = [graph.constant("head", head_D1), graph.constant("head_bias", bias_1)]
    return graph.add("Gemm", [values_BD, *head], "logit_B1"), after


def _embedded(graph: _Graph, table: str, rows: str) -> str:
    """Add the nodes rows [..., F] of the table -> [..., D]: the arithmetic of fraud.models.embedding."""
    gathered = graph.add("Gather", [table, rows], "gathered")
    return graph.add("ReduceSum", [gathered, graph.constant("fields_axis", np.array([-2]))], "values", keepdims=0)


def _lstm_cell(graph: _Graph, network: _Network, layer: int, values_BD: str, state: _LayerState) -> _LayerState:
    """Add the nodes of an LSTM cell: c' = f c + i g, h' = o tanh(c').

    One product for each gate: a single one, split afterwards, would copy every number once more (6 % of the time).
    """
    input_4DD, hidden_4DD, bias_4D = network.layer(layer)
    both_4DE = np.concatenate([input_4DD, hidden_4DD], axis=1)
    joined = graph.add("Concat", [values_BD, state.hidden], f"joined{layer}", axis=1)
    gates: list[str] = []
    for gate, weight_DE, bias_D in zip(_GATES, np.split(both_4DE, 4), np.split(bias_4D, 4), strict=True):
        constants = [
            graph.constant(f"layer{layer}_{gate}_gate", weight_DE.T),
            graph.constant(f"layer{layer}_{gate}_gate_bias", bias_D),
        ]
        product = graph.add("Gemm", [joined, *constants], f"{gate}{layer}_product")
        gates.append(graph.add("Tanh" if gate == "new" else "Sigmoid", [product], f"{gate}{layer}"))
    kept = graph.add("Mul", [gates[1], state.cell], f"kept{layer}")
    added = graph.add("Mul", [gates[0], gates[2]], f"added{layer}")
    cell = graph.add("Add", [kept, added], f"cell{layer}")
    squashed = graph.add("Tanh", [cell], f"squashed{layer}")
    return _LayerState(graph.add("Mul", [gates[3], squashed], f"hidden{layer}"), cell)


def _int64(name: str, shape: Shape) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.INT64, shape)


def _float32(name: str, shape: Shape) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def _model(graph: _Graph, *, inputs: list[ValueInfoProto], outputs: list[ValueInfoProto], sources: list[str]) -> bytes:
    """Return the checked model whose outputs are the values named in `sources`."""
    for source, output in zip(sources, outputs, strict=True):
        graph.nodes.append(helper.make_node("Identity", [source], [output.name]))
    model = helper.make_model(
        graph.proto(inputs, outputs),
        opset_imports=[helper.make_opsetid("", 17)],  # what every ONNX Runtime since 1.13 reads
        ir_version=8,
        producer_name="fraud",
    )
    checker.check_model(model, full_check=True)  # pyright: ignore[reportUnknownMemberType]  # untyped in onnx
    return model.SerializeToString()
