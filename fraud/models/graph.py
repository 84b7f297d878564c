"""ONNX graphs in the making: nodes, constants and the parts that every network shares (embedding, head).

Graphs are built from the weights operator by operator, so nothing depends on the shapes that a tracer happened to see:
batch and time are dynamic, and torch is not imported.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import GraphProto, NodeProto, TensorProto, ValueInfoProto, checker, helper, numpy_helper

from fraud.tokens import FieldShape

FloatMatrix = npt.NDArray[np.float32]
Weights = Mapping[str, FloatMatrix]
Shape = list[str | int]


@dataclass(frozen=True, slots=True)
class Parts:
    """What every network's weights have in common."""

    weights: Weights
    fields: tuple[FieldShape, ...]

    @property
    def width(self) -> int:
        """Return D."""
        return self.weights["head.weight"].shape[1]

    @property
    def offsets_F(self) -> npt.NDArray[np.int64]:
        """Return the row of the table where each field's rows start."""
        return np.cumsum([0, *(field.size for field in self.fields[:-1])], dtype=np.int64)

    @property
    def table_VD(self) -> FloatMatrix:
        """Return the embeddings of all fields, divided by sqrt(F) so that an event is their plain sum."""
        return self.weights["embedding.table"] * np.float32(len(self.fields) ** -0.5)

    @property
    def head(self) -> tuple[FloatMatrix, FloatMatrix]:
        """Return (matrix [D, 1], bias [1]) of the logit."""
        return self.weights["head.weight"].T, self.weights["head.bias"]


@dataclass(frozen=True, slots=True)
class Graph:
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


def embedded(graph: Graph, table: str, rows: str) -> str:
    """Add the nodes rows [..., F] of the table -> [..., D]: the arithmetic of fraud.models.embedding."""
    gathered = graph.add("Gather", [table, rows], "gathered")
    return graph.add("ReduceSum", [gathered, graph.constant("fields_axis", np.array([-2]))], "values", keepdims=0)


def int64(name: str, shape: Shape) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.INT64, shape)


def float32(name: str, shape: Shape) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def model_of(graph: Graph, *, inputs: list[ValueInfoProto], outputs: list[ValueInfoProto], sources: list[str]) -> bytes:
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
