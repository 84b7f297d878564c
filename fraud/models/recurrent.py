"""The recurrent scorer: a logit at every event from the events up to it, over windows or one event at a time."""

from __future__ import annotations

import math
from copy import deepcopy

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from fraud.config import ModelConfig
from fraud.errors import BundleError
from fraud.models.embedding import EventEmbedding
from fraud.tokens import FieldShape

Weights = dict[str, npt.NDArray[np.float32]]


class Recurrent(nn.Module):
    """Event embedding, stacked LSTM (Hochreiter & Schmidhuber 1997), one linear logit per event.

    The state of B users is one array float32 [B, 2 * layers * width]: the hidden values of each layer, then the cells.
    """

    def __init__(
        self, fields: tuple[FieldShape, ...], *, layers: int, width: int, dropout: float, base_rate: float
    ) -> None:
        super().__init__()
        self.layers, self.width = layers, width
        self.embedding = EventEmbedding(fields, width)
        self.recurrent = nn.LSTM(width, width, layers, batch_first=True, dropout=dropout if layers > 1 else 0.0)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(width, 1)
        self._initialise(base_rate)

    def _initialise(self, base_rate: float) -> None:
        with torch.no_grad():
            for name, parameter in self.recurrent.named_parameters():
                if name.startswith("bias"):
                    parameter.zero_()
                elif name.startswith("weight_hh"):
                    for gate_DD in parameter.chunk(4):
                        nn.init.orthogonal_(gate_DD)
            # Gates are in order i, f, g, o. A forget bias of 1 lets early gradients reach far back
            # (Jozefowicz, Zaremba & Sutskever 2015, section 4).
            for layer in range(self.layers):
                self.recurrent.get_parameter(f"bias_ih_l{layer}")[self.width : 2 * self.width] = 1.0
            self.head.weight.mul_(0.1)
            self.head.bias.fill_(math.log(base_rate / (1.0 - base_rate)))

    def forward(self, tokens_BTF: Tensor) -> Tensor:
        """Return the logit float32 [B, T] of every event of windows int64 [B, T, F], each from a fresh state."""
        hidden_BTD, _ = self.recurrent(self.dropout(self.embedding(tokens_BTF)))
        return self.head(self.dropout(hidden_BTD)).squeeze(-1)

    def initial_state(self, n_users: int) -> Tensor:
        """Return the state float32 [B, S] of users who have done nothing yet."""
        return self.head.weight.new_zeros(n_users, 2 * self.layers * self.width)

    def step(self, tokens_BF: Tensor, state_BS: Tensor) -> tuple[Tensor, Tensor]:
        """Return (state_BS, logit_B) after one more event of each user."""
        parts_2LBD = state_BS.view(len(state_BS), 2, self.layers, self.width).permute(1, 2, 0, 3).contiguous()
        hidden_B1D, parts = self.recurrent(self.embedding(tokens_BF[:, None]), (parts_2LBD[0], parts_2LBD[1]))
        new_BS = torch.stack(parts).permute(2, 0, 1, 3).reshape(len(state_BS), -1)
        return new_BS, self.head(hidden_B1D)[:, 0, 0]


def build_recurrent(
    fields: tuple[FieldShape, ...], model: ModelConfig, *, dropout: float, base_rate: float, seed: int
) -> Recurrent:
    """Return an untrained network; the same seed gives the same weights, and the global random state is left alone."""
    with torch.random.fork_rng(devices=[]):  # pyright: ignore[reportUnknownMemberType]  # untyped in torch
        torch.manual_seed(seed)  # pyright: ignore[reportUnknownMemberType]
        return Recurrent(fields, layers=model.layers, width=model.width, dropout=dropout, base_rate=base_rate)


def weights_of(network: Recurrent) -> Weights:
    """Return a copy of the weights by name, float32: what weights.safetensors holds."""
    return {name: tensor.detach().cpu().numpy().copy() for name, tensor in network.state_dict().items()}


def with_weights(network: Recurrent, weights: Weights) -> Recurrent:
    """Return a copy of the network with other weights; raise BundleError where a name or shape is not the network's."""
    expected = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    found = {name: array.shape for name, array in weights.items()}
    if found != expected:
        raise BundleError(f"weights.safetensors: {found}; expected {expected}")
    filled = deepcopy(network)
    filled.load_state_dict({name: torch.as_tensor(array) for name, array in weights.items()})
    return filled
