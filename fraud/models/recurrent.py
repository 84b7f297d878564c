"""The recurrent encoders: what each event means after the events before it, over windows or one event at a time.

Three cells share this file: "rnn" (Elman 1990), "gru" (Cho et al. 2014, in the variant that torch and ONNX compute:
the reset gate acts on the product with the hidden values) and "lstm" (Hochreiter & Schmidhuber 1997).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from fraud.config import ModelConfig
from fraud.models.graph import Weights
from fraud.tokens import FieldShape

_CELLS: Mapping[str, Callable[..., nn.RNNBase]] = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}


class RecurrentEncoder(nn.Module):
    """Stacked layers of one cell.

    The state of B users is one array float32 [B, S]: the hidden values of each layer, of an LSTM then the cells of each
    layer; S = layers * width, of an LSTM twice that.
    """

    def __init__(self, cell: str, *, layers: int, width: int, dropout: float) -> None:
        super().__init__()
        self.layers, self.width, self.n_kept = layers, width, 2 if cell == "lstm" else 1
        self.cells = _CELLS[cell](width, width, layers, batch_first=True, dropout=dropout if layers > 1 else 0.0)
        with torch.no_grad():
            for layer in range(layers):
                self._start(layer, cell)

    def _start(self, layer: int, cell: str) -> None:
        """Give a layer its first weights: it begins as a memory, and learns what to forget."""
        # An orthogonal matrix neither shrinks nor grows what is carried from event to event (Saxe, McClelland &
        # Ganguli 2014, section 3).
        hidden_GD = self.cells.get_parameter(f"weight_hh_l{layer}")
        for gate_DD in hidden_GD.chunk(len(hidden_GD) // self.width):
            nn.init.orthogonal_(gate_DD)
        for name in ("bias_ih", "bias_hh"):
            self.cells.get_parameter(f"{name}_l{layer}").zero_()
        if cell != "rnn":
            # The second gate in torch's order keeps what was: the forget gate of an LSTM (i, f, g, o), the update gate
            # of a GRU (r, z, n). A bias of 1 lets early gradients reach far back (Jozefowicz, Zaremba & Sutskever
            # 2015, section 4).
            self.cells.get_parameter(f"bias_ih_l{layer}")[self.width : 2 * self.width] = 1.0

    def forward(self, values_BTD: Tensor, tokens_BTF: Tensor) -> Tensor:
        """Return hidden_BTD, each window from a fresh state."""
        return self.cells(values_BTD)[0]

    def initial_state(self, n_users: int) -> Tensor:
        """Return the state float32 [B, S] of users who have done nothing yet."""
        return torch.zeros(n_users, self.n_kept * self.layers * self.width)

    def step(self, values_BD: Tensor, state_BS: Tensor) -> tuple[Tensor, Tensor]:
        """Return (state_BS, hidden_BD) after one more event of each user."""
        n_users = len(state_BS)
        kept_KLBD = state_BS.view(n_users, self.n_kept, self.layers, self.width).permute(1, 2, 0, 3).contiguous()
        before = (kept_KLBD[0], kept_KLBD[1]) if self.n_kept == 2 else kept_KLBD[0]
        hidden_B1D, after = self.cells(values_BD[:, None], before)
        kept_KLBD = torch.stack(after) if self.n_kept == 2 else after[None]
        return kept_KLBD.permute(2, 0, 1, 3).reshape(n_users, -1), hidden_B1D[:, 0]


def build_encoder(fields: tuple[FieldShape, ...], model: ModelConfig, *, dropout: float) -> RecurrentEncoder:
    """Return an untrained encoder of the cell that model.name says."""
    return RecurrentEncoder(model.name, layers=model.layers, width=model.width, dropout=dropout)


def onnx_files(weights: Weights, fields: tuple[FieldShape, ...], model: ModelConfig) -> Mapping[str, bytes]:
    """Return window.onnx and step.onnx."""
    from fraud.models.recurrent_graph import step_onnx, window_onnx

    return {"window.onnx": window_onnx(weights, fields, model), "step.onnx": step_onnx(weights, fields, model)}
