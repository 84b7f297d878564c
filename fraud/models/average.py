"""A small DNN on averages of the context: where most start, and what a sequence model has to beat.

The mean of the embeddings of the events so far stands beside the event's own. Their order is lost by construction:
exchanging earlier events changes no logit.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from fraud.config import ModelConfig
from fraud.models.graph import Weights
from fraud.tokens import FieldShape


class AverageEncoder(nn.Module):
    """[mean of the embeddings up to the event, its own] -> hidden layers of rectified linear units."""

    def __init__(self, *, layers: int, width: int, dropout: float) -> None:
        super().__init__()
        layers_of_units = [nn.Linear(2 * width if layer == 0 else width, width) for layer in range(layers)]
        for units in layers_of_units:
            # Rectified units halve the variance (He et al. 2015, equation 10).
            nn.init.kaiming_normal_(units.weight, nonlinearity="relu")
            nn.init.zeros_(units.bias)
        self.layers = nn.ModuleList(layers_of_units)
        self.dropout = nn.Dropout(dropout)

    def forward(self, values_BTD: Tensor, tokens_BTF: Tensor) -> Tensor:
        """Return hidden_BTD; padding stands on the right, so no sum up to an event holds any."""
        n_events_T1 = torch.arange(1, values_BTD.shape[1] + 1, device=values_BTD.device)[:, None]
        hidden_BTD = torch.cat([values_BTD.cumsum(dim=1) / n_events_T1, values_BTD], dim=-1)
        for number, layer in enumerate(self.layers):
            hidden_BTD = torch.relu(layer(hidden_BTD if number == 0 else self.dropout(hidden_BTD)))
        return hidden_BTD


def build_encoder(fields: tuple[FieldShape, ...], model: ModelConfig, *, dropout: float) -> AverageEncoder:
    """Return an untrained encoder."""
    return AverageEncoder(layers=model.layers, width=model.width, dropout=dropout)


def onnx_files(weights: Weights, fields: tuple[FieldShape, ...], model: ModelConfig) -> Mapping[str, bytes]:
    """Return window.onnx."""
    from fraud.models.graph import Graph, Parts, embedded, float32, int64, model_of

    parts = Parts(weights, fields)
    graph = Graph("average")
    table = graph.constant("table", parts.table_VD)
    rows_BTF = graph.add("Add", ["tokens", graph.constant("offsets", parts.offsets_F)], "rows")
    values_BTD = embedded(graph, table, rows_BTF)
    time_axis, one = graph.constant("time_axis", np.array(1)), graph.constant("one", np.array(1))
    summed_BTD = graph.add("CumSum", [values_BTD, time_axis], "summed")
    n_times = graph.add("Squeeze", [graph.add("Shape", ["tokens"], "length", start=1, end=2)], "n_times")
    place_T = graph.add("Range", [one, graph.add("Add", [n_times, one], "end"), one], "place")
    n_events_T = graph.add("Cast", [place_T], "n_events", to=1)
    n_events_T1 = graph.add("Unsqueeze", [n_events_T, graph.constant("last_axis", np.array([-1]))], "n_events_column")
    hidden_BTD = graph.add("Concat", [graph.add("Div", [summed_BTD, n_events_T1], "mean"), values_BTD], "both", axis=-1)
    for layer in range(model.layers):
        matrix, bias = weights[f"encoder.layers.{layer}.weight"].T, weights[f"encoder.layers.{layer}.bias"]
        product = graph.add("MatMul", [hidden_BTD, graph.constant(f"matrix{layer}", matrix)], f"product{layer}")
        shifted = graph.add("Add", [product, graph.constant(f"bias{layer}", bias)], f"shifted{layer}")
        hidden_BTD = graph.add("Relu", [shifted], f"hidden{layer}")
    head_D1, bias_1 = parts.head
    product = graph.add("MatMul", [hidden_BTD, graph.constant("head", head_D1)], "product")
    logit_BT1 = graph.add("Add", [product, graph.constant("head_bias", bias_1)], "logit_BT1")
    logit_BT = graph.add("Squeeze", [logit_BT1, graph.constant("squeezed_axis", np.array([-1]))], "logit_BT")
    inputs = [int64("tokens", ["B", "T", len(fields)])]
    return {"window.onnx": model_of(graph, inputs=inputs, outputs=[float32("logits", ["B", "T"])], sources=[logit_BT])}
