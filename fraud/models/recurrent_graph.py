"""A fitted recurrent network as ONNX: the step (one more event of each user) and the window (every event of one).

The window holds the layers in two forms, because no single one is fast for both of its callers (LSTM 2 x 128, one
thread, 64 events): ONNX Runtime's own operator for few windows (one: 0.7 ms against 1.8), a Scan whose body is the step
for many (128 windows: 6.2 us an event against 8.1). The networks differ in their cell alone: see _CELLS.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from onnx import GraphProto

from fraud.config import ModelConfig
from fraud.models.graph import FloatMatrix, Graph, Parts, Weights, embedded, float32, int64, model_of
from fraud.tokens import FieldShape

State = list[str]  # the names of what a layer keeps: hidden [B, D], and of an LSTM cell [B, D]


class _Layer(NamedTuple):
    """The weights of a layer by gate, in torch's order: matrices [D, D], biases [D]."""

    number: int
    input_GDD: list[FloatMatrix]
    hidden_GDD: list[FloatMatrix]
    input_bias_GD: list[FloatMatrix]
    hidden_bias_GD: list[FloatMatrix]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cell:
    """One kind of layer. add_step: adds the nodes of one event of B users, returns what the layer keeps after it.

    operator: ONNX's own for a whole window; gates: torch's, in the order that it reads them. n_kept: the length of a
    State. few_windows: from so many on the Scan is the faster.
    """

    operator: str
    gates: tuple[int, ...]
    attributes: Mapping[str, int]
    n_kept: int
    few_windows: int
    add_step: Callable[[Graph, _Layer, str, State], State]


@dataclass(frozen=True, slots=True)
class _Recurrent:
    """A recurrent network as arrays."""

    parts: Parts
    cell: _Cell
    n_layers: int

    def layer(self, number: int) -> _Layer:
        """Return the weights of a layer."""
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        whole = (self.parts.weights[f"encoder.cells.{name}_l{number}"] for name in names)
        return _Layer(number, *(np.split(array, len(self.cell.gates)) for array in whole))


def step_onnx(weights: Weights, fields: tuple[FieldShape, ...], model: ModelConfig) -> bytes:
    """Return the ONNX model of one step.

    "tokens" int64 [B, F], "state" float32 [B, S] -> "logits" float32 [B], "next_state" float32 [B, S]; the state of a
    user who has done nothing is zeros. S: n_kept blocks, of n_layers * D each.
    """
    network = _Recurrent(Parts(weights, fields), _CELLS[model.name], model.layers)
    n_layers, n_kept = network.n_layers, network.cell.n_kept
    n_numbers = n_kept * n_layers * network.parts.width
    graph = Graph("step")
    table = graph.constant("table", network.parts.table_VD)
    rows_BF = graph.add("Add", ["tokens", graph.constant("offsets", network.parts.offsets_F)], "rows")
    parts = graph.add_many("Split", ["state"], [f"part{n}" for n in range(n_kept * n_layers)], axis=1)
    logit_B1, states = _step(graph, network, table, rows_BF, [parts[layer::n_layers] for layer in range(n_layers)])
    logit_B = graph.add("Squeeze", [logit_B1, graph.constant("last_axis", np.array([-1]))], "logit_B")
    after_BS = graph.add("Concat", [state[kept] for kept in range(n_kept) for state in states], "after", axis=1)
    return model_of(
        graph,
        inputs=[int64("tokens", ["B", len(network.parts.fields)]), float32("state", ["B", n_numbers])],
        outputs=[float32("logits", ["B"]), float32("next_state", ["B", n_numbers])],
        sources=[logit_B, after_BS],
    )


def window_onnx(weights: Weights, fields: tuple[FieldShape, ...], model: ModelConfig) -> bytes:
    """Return the ONNX model of windows: "tokens" int64 [B, T, F] -> "logits" float32 [B, T]."""
    network = _Recurrent(Parts(weights, fields), _CELLS[model.name], model.layers)
    graph = Graph("window")
    table = graph.constant("table", network.parts.table_VD)
    tokens_TBF = graph.add("Transpose", ["tokens"], "tokens_TBF", perm=[1, 0, 2])
    rows_TBF = graph.add("Add", [tokens_TBF, graph.constant("offsets", network.parts.offsets_F)], "rows")
    n_windows = graph.add("Shape", ["tokens"], "n_windows", start=0, end=1)
    is_few = graph.add("Less", [n_windows, graph.constant("few", np.array([network.cell.few_windows]))], "is_few")
    few = _few_windows(network, table, rows_TBF)
    many = _many_windows(network, table, rows_TBF, n_windows)
    logit_TB1 = graph.add("If", [is_few], "logit_TB1", then_branch=few, else_branch=many)
    logit_TB = graph.add("Squeeze", [logit_TB1, graph.constant("last_axis", np.array([-1]))], "logit_TB")
    logit_BT = graph.add("Transpose", [logit_TB], "logit_BT", perm=[1, 0])
    inputs = [int64("tokens", ["B", "T", len(network.parts.fields)])]
    return model_of(graph, inputs=inputs, outputs=[float32("logits", ["B", "T"])], sources=[logit_BT])


def _few_windows(network: _Recurrent, table: str, rows_TBF: str) -> GraphProto:
    """Return the graph rows_TBF -> logit_TB1 with one operator for each layer."""
    graph = Graph("few")
    cell = network.cell
    direction = graph.constant("direction_axis", np.array([1]))
    values_TBD = embedded(graph, table, rows_TBF)
    for number in range(network.n_layers):
        layer = network.layer(number)
        in_order = [[by_gate[gate] for gate in cell.gates] for by_gate in layer[1:]]
        input_GD, hidden_GD, input_bias_G, hidden_bias_G = (np.concatenate(by_gate) for by_gate in in_order)
        values_T1BD = graph.add(
            cell.operator,
            [
                values_TBD,
                graph.constant(f"layer{number}_input_weights", input_GD[None]),
                graph.constant(f"layer{number}_hidden_weights", hidden_GD[None]),
                graph.constant(f"layer{number}_biases", np.concatenate([input_bias_G, hidden_bias_G])[None]),
            ],
            f"values_T1BD{number}",
            hidden_size=network.parts.width,
            **cell.attributes,
        )
        values_TBD = graph.add("Squeeze", [values_T1BD, direction], f"values_TBD{number}")
    head_D1, bias_1 = network.parts.head
    product = graph.add("MatMul", [values_TBD, graph.constant("head", head_D1)], "product")
    logit_TB1 = graph.add("Add", [product, graph.constant("head_bias", bias_1)], "logit_TB1")
    return graph.proto([], [float32(logit_TB1, ["T", "B", 1])])


def _many_windows(network: _Recurrent, table: str, rows_TBF: str, n_windows: str) -> GraphProto:
    """Return the graph rows_TBF -> logit_TB1 that runs the step at each position."""
    width, n_kept = network.parts.width, network.cell.n_kept
    body = Graph("body")
    before = [[f"body.kept{kept}_in{n}" for kept in range(n_kept)] for n in range(network.n_layers)]
    logit_B1, after = _step(body, network, table, "body.rows_BF", before)
    body_graph = body.proto(
        [*(float32(name, ["B", width]) for state in before for name in state), int64("body.rows_BF", ["B", "F"])],
        [*(float32(name, ["B", width]) for state in after for name in state), float32(logit_B1, ["B", 1])],
    )
    graph = Graph("many")
    shape = graph.add("Concat", [n_windows, graph.constant("width", np.array([width]))], "shape", axis=0)
    zeros_BD = graph.add("ConstantOfShape", [shape], "zeros")
    n_arrays = n_kept * network.n_layers
    outputs = [*(f"end{n}" for n in range(n_arrays)), "logit_TB1"]
    inputs = [*[zeros_BD] * n_arrays, rows_TBF]
    logit_TB1 = graph.add_many("Scan", inputs, outputs, body=body_graph, num_scan_inputs=1)[-1]
    return graph.proto([], [float32(logit_TB1, ["T", "B", 1])])


def _step(graph: Graph, network: _Recurrent, table: str, rows_BF: str, states: list[State]) -> tuple[str, list[State]]:
    """Add the nodes of one event of each of B users; return (logit [B, 1], the state of each layer after it)."""
    values_BD = embedded(graph, table, rows_BF)
    after: list[State] = []
    for number, state in enumerate(states):
        after.append(network.cell.add_step(graph, network.layer(number), values_BD, state))
        values_BD = after[-1][0]
    head_D1, bias_1 = network.parts.head
    head = [graph.constant("head", head_D1), graph.constant("head_bias", bias_1)]
    return graph.add("Gemm", [values_BD, *head], "logit_B1"), after


def _rnn_step(graph: Graph, layer: _Layer, values_BD: str, state: State) -> State:
    """Add h' = tanh(W x + U h + b)."""
    joined = graph.add("Concat", [values_BD, *state], f"joined{layer.number}", axis=1)
    return [_gate(graph, layer, joined, gate=0, output="hidden", activation="Tanh")]


def _gru_step(graph: Graph, layer: _Layer, values_BD: str, state: State) -> State:
    """Add n = tanh(W x + b + r (U h + c)), h' = (1 - z) n + z h, which is n + z (h - n)."""
    number, (hidden,) = layer.number, state
    joined = graph.add("Concat", [values_BD, hidden], f"joined{number}", axis=1)
    reset = _gate(graph, layer, joined, gate=0, output="reset", activation="Sigmoid")
    update = _gate(graph, layer, joined, gate=1, output="update", activation="Sigmoid")
    products: list[str] = []
    for name, source, matrix_DD, bias_D in (
        ("read", values_BD, layer.input_GDD[2], layer.input_bias_GD[2]),
        ("recalled", hidden, layer.hidden_GDD[2], layer.hidden_bias_GD[2]),
    ):
        constants = [
            graph.constant(f"layer{number}_{name}", matrix_DD.T),
            graph.constant(f"layer{number}_{name}_bias", bias_D),
        ]
        products.append(graph.add("Gemm", [source, *constants], f"{name}{number}"))
    admitted = graph.add("Mul", [reset, products[1]], f"admitted{number}")
    new = graph.add("Tanh", [graph.add("Add", [products[0], admitted], f"sum{number}")], f"new{number}")
    kept = graph.add("Mul", [update, graph.add("Sub", [hidden, new], f"difference{number}")], f"kept{number}")
    return [graph.add("Add", [new, kept], f"hidden{number}")]


def _lstm_step(graph: Graph, layer: _Layer, values_BD: str, state: State) -> State:
    """Add c' = f c + i g, h' = o tanh(c')."""
    number, (hidden, cell) = layer.number, state
    joined = graph.add("Concat", [values_BD, hidden], f"joined{number}", axis=1)
    input_, forget, output = (
        _gate(graph, layer, joined, gate=gate, output=name, activation="Sigmoid")
        for gate, name in ((0, "input"), (1, "forget"), (3, "output"))
    )
    new = _gate(graph, layer, joined, gate=2, output="new", activation="Tanh")
    kept = graph.add("Mul", [forget, cell], f"kept{number}")
    added = graph.add("Mul", [input_, new], f"added{number}")
    cell = graph.add("Add", [kept, added], f"cell{number}")
    squashed = graph.add("Tanh", [cell], f"squashed{number}")
    return [graph.add("Mul", [output, squashed], f"hidden{number}"), cell]


def _gate(graph: Graph, layer: _Layer, joined: str, *, gate: int, output: str, activation: str) -> str:
    """Add activation(W x + U h + b) of [x, h] in one product.

    One product for each gate: a single one, split afterwards, would copy every number once more (6 % of the time).
    """
    matrix_DE = np.concatenate([layer.input_GDD[gate], layer.hidden_GDD[gate]], axis=1)
    name = f"layer{layer.number}_{output}_gate"
    constants = [
        graph.constant(name, matrix_DE.T),
        graph.constant(f"{name}_bias", layer.input_bias_GD[gate] + layer.hidden_bias_GD[gate]),
    ]
    product = graph.add("Gemm", [joined, *constants], f"{output}{layer.number}_product")
    return graph.add(activation, [product], f"{output}{layer.number}")


# Torch has r, z, n in a GRU and i, f, g, o in an LSTM; ONNX reads z, r, h and i, o, f, c.
# few_windows lies between the measured crossings at width 128 and 64 (LSTM 18 and 32, GRU 14 and 24; 64 events, one
# thread). An RNN's is near 3, where either is fast; above 4 so that a bundle's golden events go both ways.
_CELLS: Mapping[str, _Cell] = {
    "rnn": _Cell(operator="RNN", gates=(0,), attributes={}, n_kept=1, few_windows=5, add_step=_rnn_step),
    "gru": _Cell(
        operator="GRU",
        gates=(1, 0, 2),
        attributes={"linear_before_reset": 1},
        n_kept=1,
        few_windows=18,
        add_step=_gru_step,
    ),
    "lstm": _Cell(operator="LSTM", gates=(0, 3, 1, 2), attributes={}, n_kept=2, few_windows=24, add_step=_lstm_step),
}
