"""A network that reads token windows: event embedding, an encoder, one linear logit per event.

Every encoder is interchangeable: it turns the embedded events of a window into one hidden vector per event. This file
knows none of them; a model's own file has `build_encoder` and, where it has a graph of its own, `onnx_files`.
"""

from __future__ import annotations

import importlib
import io
import math
import warnings
from collections.abc import Mapping
from copy import deepcopy
from typing import Protocol, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from fraud.config import ModelConfig
from fraud.errors import BundleError
from fraud.models import token_model
from fraud.models.dropout import Dropout
from fraud.models.embedding import EventEmbedding
from fraud.tokens import FieldShape

Weights = Mapping[str, npt.NDArray[np.float32]]


class StepEncoder(Protocol):
    """What a recurrent encoder has besides: its state, and one event at a time."""

    def initial_state(self, n_users: int) -> Tensor:
        """Return the state float32 [B, S] of users who have done nothing yet."""
        ...

    def step(self, values_BD: Tensor, state_BS: Tensor) -> tuple[Tensor, Tensor]:
        """Return (state_BS, hidden_BD) after one more event of each user."""
        ...


class EncoderModule(Protocol):
    """What the file of a model offers."""

    def build_encoder(self, fields: tuple[FieldShape, ...], model: ModelConfig, *, dropout: float) -> nn.Module:
        """Return an untrained encoder: forward(values_BTD, tokens_BTF) -> hidden_BTD."""
        ...

    # And, optionally, its own graphs; without them the window is traced:
    # def onnx_files(weights: Weights, fields: tuple[FieldShape, ...], model: ModelConfig) -> Mapping[str, bytes]


class Network(nn.Module):
    """Embedding, encoder and head. Position t of a window sees the events 0..t of it; padding stands on the right."""

    def __init__(
        self, fields: tuple[FieldShape, ...], encoder: nn.Module, *, width: int, dropout: float, base_rate: float
    ) -> None:
        super().__init__()
        self.embedding = EventEmbedding(fields, width)
        self.encoder = encoder
        self.dropout = Dropout(dropout)
        self.head = nn.Linear(width, 1)
        with torch.no_grad():
            self.head.weight.mul_(0.1)
            self.head.bias.fill_(math.log(base_rate / (1.0 - base_rate)))

    def forward(self, tokens_BTF: Tensor) -> Tensor:
        """Return the logit float32 [B, T] of every event of windows int64 [B, T, F], each from a fresh state."""
        return self.head(self.dropout(self.hidden(tokens_BTF))).squeeze(-1)

    def hidden(self, tokens_BTF: Tensor) -> Tensor:
        """Return float32 [B, T, D]: what the encoder makes of each event and the events before it."""
        return self.encoder(self.dropout(self.embedding(tokens_BTF)), tokens_BTF)

    def initial_state(self, n_users: int) -> Tensor:
        """Return the state float32 [B, S] of users who have done nothing yet; recurrent encoders only."""
        return cast(StepEncoder, self.encoder).initial_state(n_users)

    def step(self, tokens_BF: Tensor, state_BS: Tensor) -> tuple[Tensor, Tensor]:
        """Return (state_BS, logit_B) after one more event of each user; recurrent encoders only."""
        state_BS, hidden_BD = cast(StepEncoder, self.encoder).step(self.embedding(tokens_BF), state_BS)
        return state_BS, self.head(hidden_BD).squeeze(-1)


def build_network(
    fields: tuple[FieldShape, ...], model: ModelConfig, *, dropout: float, base_rate: float, seed: int
) -> Network:
    """Return an untrained network of the model named; the same seed gives the same weights, and torch's global random
    state is left alone. base_rate sets its first answer."""
    module = cast(EncoderModule, importlib.import_module(token_model(model.name).module))
    with torch.random.fork_rng(devices=[]):  # pyright: ignore[reportUnknownMemberType]  # untyped in torch
        torch.manual_seed(seed)  # pyright: ignore[reportUnknownMemberType]
        encoder = module.build_encoder(fields, model, dropout=dropout)
        return Network(fields, encoder, width=model.width, dropout=dropout, base_rate=base_rate)


def export_network(weights: Weights, fields: tuple[FieldShape, ...], model: ModelConfig) -> Mapping[str, bytes]:
    """Return the files of a bundle that score as the network with these weights does.

    "window.onnx": "tokens" int64 [B, T, F] -> "logits" float32 [B, T]; of recurrent ones also "step.onnx".
    """
    module = importlib.import_module(token_model(model.name).module)
    if hasattr(module, "onnx_files"):
        return module.onnx_files(weights, fields, model)
    return {"window.onnx": _traced(weights, fields, model)}


def _traced(weights: Weights, fields: tuple[FieldShape, ...], model: ModelConfig) -> bytes:
    network = build_network(fields, model, dropout=0.0, base_rate=0.5, seed=0)
    tokens_BTF = torch.ones((2, 3, len(fields)), dtype=torch.int64)
    content = io.BytesIO()
    with warnings.catch_warnings():
        # The tracer is on its way out and says so; its successor writes a false static length for recurrent layers.
        warnings.simplefilter("ignore")
        torch.onnx.export(  # pyright: ignore[reportUnknownMemberType]  # untyped in torch
            with_weights(network, weights).eval(),
            (tokens_BTF,),
            content,  # pyright: ignore[reportArgumentType]  # the tracer takes a buffer, its annotation does not say so
            input_names=["tokens"],
            output_names=["logits"],
            dynamic_axes={"tokens": {0: "B", 1: "T"}, "logits": {0: "B", 1: "T"}},
            opset_version=17,
            dynamo=False,
        )
    return content.getvalue()


def weights_of(network: Network) -> dict[str, npt.NDArray[np.float32]]:
    """Return a copy of the weights by name, float32: what weights.safetensors holds."""
    return {name: tensor.detach().cpu().numpy().copy() for name, tensor in network.state_dict().items()}


def with_weights(network: Network, weights: Weights) -> Network:
    """Return a copy of the network with other weights; raise BundleError where a name or shape is not the network's."""
    expected = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    found = {name: array.shape for name, array in weights.items()}
    if found != expected:
        raise BundleError(f"weights.safetensors: {found}; expected {expected}")
    filled = deepcopy(network)
    filled.load_state_dict({name: torch.as_tensor(array) for name, array in weights.items()})
    return filled
