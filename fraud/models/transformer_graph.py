"""A fitted Transformer as ONNX: the arithmetic of `fraud.models.transformer`, operator by operator."""

from __future__ import annotations

import numpy as np

from fraud.config import ModelConfig
from fraud.models.graph import FloatMatrix, Graph, Parts, Weights, embedded, float32, int64, model_of
from fraud.models.rotary import DoubleArray, Rotary, rotary
from fraud.tokens import PADDING_ID, FieldShape


class _Window:
    """The graph in the making: what is the same in every block is added once."""

    def __init__(self, weights: Weights, fields: tuple[FieldShape, ...], model: ModelConfig) -> None:
        self.graph = Graph("window")
        self.parts = Parts(weights, fields)
        self.model = model
        self.head_width = model.width // model.heads
        self.n_times = self.graph.add("Shape", ["tokens"], "n_times", start=1, end=2)

    def weight(self, name: str) -> FloatMatrix:
        """Return a weight of the encoder."""
        return self.parts.weights[f"encoder.{name}"]

    def product(self, values: str, matrix_ED: FloatMatrix, output: str) -> str:
        """Add values [..., D] times a matrix of torch's layout [E, D]."""
        return self.graph.add("MatMul", [values, self.graph.constant(f"{output}_matrix", matrix_ED.T)], output)

    def biased(self, values: str, name: str, output: str) -> str:
        """Add the linear layer of that name."""
        product = self.product(values, self.weight(f"{name}.weight"), f"{output}_product")
        return self.graph.add(
            "Add", [product, self.graph.constant(f"{output}_bias", self.weight(f"{name}.bias"))], output
        )

    def normalised(self, values: str, name: str, output: str) -> str:
        """Add the layer norm of that name."""
        constants = [
            self.graph.constant(f"{output}_{part}", self.weight(f"{name}.{part}")) for part in ("weight", "bias")
        ]
        return self.graph.add("LayerNormalization", [values, *constants], output, axis=-1, epsilon=1e-5)

    def number(self, name: str, number: float) -> str:
        """Return a constant float32."""
        return self.graph.constant(name, np.array(number, dtype=np.float32))

    def whole(self, name: str, *numbers: int) -> str:
        """Return a constant int64 [n]."""
        return self.graph.constant(name, np.array(numbers))


def window_onnx(weights: Weights, fields: tuple[FieldShape, ...], model: ModelConfig) -> bytes:
    """Return the ONNX model of windows: "tokens" int64 [B, T, F] -> "logits" float32 [B, T]."""
    window = _Window(weights, fields, model)
    graph = window.graph
    rows_BTF = graph.add("Add", ["tokens", graph.constant("offsets", window.parts.offsets_F)], "rows")
    values_BTD = embedded(graph, graph.constant("table", window.parts.table_VD), rows_BTF)
    values_BTD = _neighbours(window, values_BTD)
    turns = _turns(window, rotary(fields, width=model.width, heads=model.heads))
    is_padding_BT = "" if model.causal else _is_padding(window)
    mask = _causal_mask(window) if model.causal else _padding_mask(window, is_padding_BT)
    for block in range(model.layers):
        values_BTD = _block(window, block, values_BTD, turns, mask)
    hidden_BTD = window.normalised(values_BTD, "norm", "hidden")
    if not model.causal:
        hidden_BTD = _pooled(window, hidden_BTD, is_padding_BT)
    head_D1, bias_1 = window.parts.head
    product = window.product(hidden_BTD, head_D1.T, "logit_product")
    logit_BT1 = graph.add("Add", [product, graph.constant("head_bias", bias_1)], "logit_BT1")
    logit_BT = graph.add("Squeeze", [logit_BT1, window.whole("last_axis", -1)], "logit_BT")
    inputs = [int64("tokens", ["B", "T", len(fields)])]
    return model_of(graph, inputs=inputs, outputs=[float32("logits", ["B", "T"])], sources=[logit_BT])


def _neighbours(window: _Window, values_BTD: str) -> str:
    graph, weight_KD = window.graph, window.weight("neighbours.weight_KD")
    n_before = len(weight_KD) - 1
    padded = graph.add("Pad", [values_BTD, window.whole("events_before", 0, n_before, 0, 0, 0, 0)], "padded")
    summed = graph.add("Mul", [values_BTD, graph.constant("neighbour0", weight_KD[0])], "summed0")
    time_axis = window.whole("time_axis", 1)
    for k in range(1, n_before + 1):
        first = window.whole(f"first{k}", n_before - k)
        last = graph.add("Add", [window.n_times, first], f"last{k}")
        shifted = graph.add("Slice", [padded, first, last, time_axis], f"shifted{k}")
        product = graph.add("Mul", [shifted, graph.constant(f"neighbour{k}", weight_KD[k])], f"neighbour_product{k}")
        summed = graph.add("Add", [summed, product], f"summed{k}")
    return summed


def _turns(window: _Window, constants: Rotary) -> tuple[str, str]:
    """Add the nodes tokens -> (cosines, sines), [B or 1, 1 or H, T, P] each, laid out as queries are."""
    graph = window.graph
    zero, one = graph.constant("zero", np.array(0)), graph.constant("one", np.array(1))
    limit = graph.add("Squeeze", [window.n_times], "n_times_scalar")
    index_T = graph.add("Range", [zero, limit, one], "index")
    index_f64_T = graph.add("Cast", [index_T], "index_f64", to=11)
    index_11T1 = graph.add("Unsqueeze", [index_f64_T, window.whole("around", 0, 1, 3)], "index_11T1")
    angle = _angles(window, index_11T1, constants.index_period_HI, "index")
    if constants.gap_field is not None:
        gap = graph.constant("gap_field", np.array(constants.gap_field))
        id_BT = graph.add("Gather", ["tokens", gap], "gap_id", axis=2)
        tenths_BT = graph.add("Gather", [graph.constant("tenths_of_id", constants.tenths_of_id), id_BT], "tenths")
        elapsed_BT = graph.add("CumSum", [tenths_BT, one], "elapsed")
        elapsed_B1T1 = graph.add("Unsqueeze", [elapsed_BT, window.whole("heads_and_pairs", 1, 3)], "elapsed_B1T1")
        elapsed = _angles(window, elapsed_B1T1, constants.time_period_HJ, "elapsed")
        like = graph.add("Shape", [elapsed], "elapsed_shape", start=0, end=3)
        n_pairs = window.whole("n_index_pairs", constants.index_period_HI.shape[1])
        shape = graph.add("Concat", [like, n_pairs], "index_shape", axis=0)
        angle = graph.add("Concat", [graph.add("Expand", [angle, shape], "index_all"), elapsed], "angle", axis=3)
    return graph.add("Cos", [angle], "cosine"), graph.add("Sin", [angle], "sine")


def _angles(window: _Window, position: str, period_HP: DoubleArray, name: str) -> str:
    """Add the nodes float64 [B, 1, T, 1] -> float32 [B, H, T, P] in [0, 2 pi)."""
    graph = window.graph
    period_1H1P = graph.constant(f"{name}_period", period_HP[None, :, None, :])
    n_turns = graph.add("Div", [position, period_1H1P], f"{name}_turns")
    full = graph.add("Floor", [n_turns], f"{name}_whole_turns")
    part = graph.add("Cast", [graph.add("Sub", [n_turns, full], f"{name}_part64")], f"{name}_part", to=1)
    return graph.add("Mul", [part, window.number(f"{name}_circle", 2 * np.pi)], f"{name}_angle")


def _causal_mask(window: _Window) -> str:
    graph = window.graph
    shape = graph.add("Concat", [window.n_times, window.n_times], "mask_shape", axis=0)
    full = graph.add("Expand", [window.number("hidden_score", -1e30), shape], "full")
    return graph.add("Trilu", [full, graph.constant("above_diagonal", np.array(1))], "mask", upper=1)


def _padding_mask(window: _Window, is_padding_BT: str) -> str:
    graph = window.graph
    scores = [window.number("hidden_score", -1e30), window.number("seen_score", 0.0)]
    mask_BT = graph.add("Where", [is_padding_BT, *scores], "mask_BT")
    return graph.add("Unsqueeze", [mask_BT, window.whole("heads_and_queries", 1, 2)], "mask")


def _is_padding(window: _Window) -> str:
    graph = window.graph
    type_BT = graph.add("Gather", ["tokens", graph.constant("type_field", np.array(0))], "type_BT", axis=2)
    return graph.add("Equal", [type_BT, graph.constant("padding", np.array(PADDING_ID))], "is_padding")


def _pooled(window: _Window, hidden_BTD: str, is_padding_BT: str) -> str:
    graph = window.graph
    is_real_BT = graph.add("Cast", [graph.add("Not", [is_padding_BT], "is_real")], "is_real_BT", to=1)
    is_real_BT1 = graph.add("Unsqueeze", [is_real_BT, window.whole("width_axis", 2)], "is_real_BT1")
    axis = window.whole("pooled_axis", 1)
    real_BTD = graph.add("Mul", [hidden_BTD, is_real_BT1], "real_hidden")
    sum_B1D = graph.add("ReduceSum", [real_BTD, axis], "hidden_sum", keepdims=1)
    count_B11 = graph.add("ReduceSum", [is_real_BT1, axis], "n_real", keepdims=1)
    at_least_one = graph.add("Max", [count_B11, window.number("one_event", 1.0)], "n_real_or_one")
    mean_B1D = graph.add("Div", [sum_B1D, at_least_one], "hidden_mean")
    shape = graph.add("Shape", [hidden_BTD], "hidden_shape")
    return graph.add("Expand", [mean_B1D, shape], "pooled")


def _block(window: _Window, block: int, values_BTD: str, turns: tuple[str, str], mask: str) -> str:
    graph, name = window.graph, f"blocks.{block}"
    normalised = window.normalised(values_BTD, f"{name}.attention_norm", f"attention_norm{block}")
    attended = _attention(window, block, normalised, turns, mask)
    values_BTD = graph.add("Add", [values_BTD, attended], f"attended_sum{block}")
    normalised = window.normalised(values_BTD, f"{name}.feed_norm", f"feed_norm{block}")
    wide = window.biased(normalised, f"{name}.feed_in", f"feed_in{block}")
    positive = graph.add("Relu", [wide], f"feed_relu{block}")
    squared = graph.add("Mul", [positive, positive], f"feed_square{block}")
    fed = window.biased(squared, f"{name}.feed_out", f"feed_out{block}")
    return graph.add("Add", [values_BTD, fed], f"fed_sum{block}")


def _attention(window: _Window, block: int, values_BTD: str, turns: tuple[str, str], mask: str) -> str:
    graph, width = window.graph, window.model.width
    name = f"blocks.{block}.attention"
    queries_DD, keys_DD, values_DD = np.split(window.weight(f"{name}.projection.weight"), 3)
    scale = np.float32(window.head_width**-0.5)
    queries = _turned(window, values_BTD, queries_DD * scale, turns, f"query{block}")
    keys = _turned(window, values_BTD, keys_DD, turns, f"key{block}")
    transposed = graph.add("Transpose", [keys], f"keys_transposed{block}", perm=[0, 1, 3, 2])
    scores = graph.add("Add", [graph.add("MatMul", [queries, transposed], f"scores{block}"), mask], f"masked{block}")
    weights = graph.add("Softmax", [scores], f"weights{block}", axis=-1)
    values = _heads(window, window.product(values_BTD, values_DD, f"values{block}_flat"), f"values{block}")
    mixed_BHTC = graph.add("MatMul", [weights, values], f"mixed{block}_heads")
    mixed_BTHC = graph.add("Transpose", [mixed_BHTC], f"mixed{block}_BTHC", perm=[0, 2, 1, 3])
    mixed_BTD = graph.add("Reshape", [mixed_BTHC, window.whole(f"flat{block}", 0, 0, width)], f"mixed{block}")
    return window.product(mixed_BTD, window.weight(f"{name}.output.weight"), f"attention{block}")


def _heads(window: _Window, values_BTD: str, name: str) -> str:
    graph = window.graph
    shape = window.whole(f"{name}_heads", 0, 0, window.model.heads, -1)
    values_BTHC = graph.add("Reshape", [values_BTD, shape], f"{name}_BTHC")
    return graph.add("Transpose", [values_BTHC], name, perm=[0, 2, 1, 3])


def _turned(window: _Window, values_BTD: str, matrix_DD: FloatMatrix, turns: tuple[str, str], name: str) -> str:
    """Add the turned queries or keys [B, H, T, C].

    Of each head the first numbers of all pairs come first, then the second ones: queries and keys are laid out alike,
    so their products stay what they were.
    """
    graph = window.graph
    by_head_HPXD = matrix_DD.reshape(window.model.heads, window.head_width // 2, 2, -1)
    halves_DD = np.ascontiguousarray(by_head_HPXD.transpose(0, 2, 1, 3)).reshape(matrix_DD.shape)
    both = _heads(window, window.product(values_BTD, halves_DD, f"{name}_flat"), f"{name}_unturned")
    first, second = graph.add_many("Split", [both], [f"{name}_first", f"{name}_second"], axis=3)
    cosine, sine = turns
    products = [
        graph.add("Mul", [part, by], f"{name}_{n}")
        for n, (part, by) in enumerate([(first, cosine), (second, sine), (first, sine), (second, cosine)])
    ]
    turned = [
        graph.add("Sub", products[:2], f"{name}_turned_first"),
        graph.add("Add", products[2:], f"{name}_turned_second"),
    ]
    return graph.add("Concat", turned, f"{name}_turned", axis=3)
