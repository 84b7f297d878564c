"""The Transformer encoder: each event looks back at the events before it, over windows (Vaswani et al. 2017).

Pre-norm blocks (Xiong et al. 2020) of attention as plain matmul, softmax, matmul: on a CPU that trains twice as fast as
the fused call. Positions are rotary, by index and by elapsed time (`fraud.models.rotary`). Before the first block a
short causal convolution over neighbouring events (So et al. 2021, section 4.2) tells what came right before what.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from fraud.config import ModelConfig
from fraud.models.graph import Weights
from fraud.models.rotary import rotary
from fraud.tokens import PADDING_ID, FieldShape

N_NEIGHBOURS = 4  # events that the convolution sees: the event itself and those before it
FEED_FORWARD = 2  # times the width
_HIDDEN = -1e30  # added to a score that must not count: finite, so that a row of them alone is no NaN


class Turns(nn.Module):
    """tokens [B, T, F] -> complex [B, T, 1, D / 2]: the unit numbers that pairs of queries and keys are turned by."""

    index_period_HI: Tensor
    time_period_HJ: Tensor
    tenths_of_id: Tensor

    def __init__(self, fields: tuple[FieldShape, ...], *, width: int, heads: int) -> None:
        super().__init__()
        constants = rotary(fields, width=width, heads=heads)
        self.gap_field = constants.gap_field
        for name in ("index_period_HI", "time_period_HJ", "tenths_of_id"):
            self.register_buffer(name, torch.as_tensor(getattr(constants, name)), persistent=False)

    def forward(self, tokens_BTF: Tensor) -> Tensor:
        """Return the turns of all heads; pairs that turn with the index come first in each."""
        index_T = torch.arange(tokens_BTF.shape[1], dtype=torch.float64, device=tokens_BTF.device)
        turns_BTHP = _turns(index_T, self.index_period_HI).expand(len(tokens_BTF), -1, -1, -1)
        if self.gap_field is not None:
            elapsed_BT = self.tenths_of_id[tokens_BTF[:, :, self.gap_field]].cumsum(1)
            turns_BTHP = torch.cat([turns_BTHP, _turns(elapsed_BT, self.time_period_HJ)], dim=-1)
        return turns_BTHP.flatten(2)[:, :, None]


def _turns(position: Tensor, period_HP: Tensor) -> Tensor:
    """Return complex [..., H, P]: in float64 until the whole turns are gone, for positions are large."""
    n_turns = position[..., None, None] / period_HP
    angle = (n_turns - n_turns.floor()).float() * (2 * math.pi)
    return torch.complex(angle.cos(), angle.sin())


class Neighbours(nn.Module):
    """values [B, T, D] -> [B, T, D]: each number's own weighted sum over the last N_NEIGHBOURS events."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight_KD = nn.Parameter(torch.randn(N_NEIGHBOURS, width) * 0.3)
        with torch.no_grad():
            self.weight_KD[0] = 1.0

    def forward(self, values_BTD: Tensor) -> Tensor:
        """Return the sums; before the first event there is nothing."""
        return cast(Tensor, _CausalConvolution.apply(values_BTD, self.weight_KD))  # pyright: ignore[reportUnknownMemberType]


class _CausalConvolution(torch.autograd.Function):
    """Multiplies and adds in place: as single operations that autograd records it takes three times as long."""

    @staticmethod
    def forward(ctx: Any, values_BTD: Tensor, weight_KD: Tensor) -> Tensor:  # Any: untyped in torch
        ctx.save_for_backward(values_BTD, weight_KD)
        summed_BTD = values_BTD * weight_KD[0]
        for k in range(1, min(len(weight_KD), values_BTD.shape[1])):
            summed_BTD[:, k:].addcmul_(values_BTD[:, :-k], weight_KD[k])
        return summed_BTD

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        (gradient_BTD,) = gradients
        values_BTD, weight_KD = ctx.saved_tensors
        of_values_BTD, of_weight_KD = gradient_BTD * weight_KD[0], torch.zeros_like(weight_KD)
        of_weight_KD[0] = (gradient_BTD * values_BTD).sum((0, 1))
        for k in range(1, min(len(weight_KD), values_BTD.shape[1])):
            of_values_BTD[:, :-k].addcmul_(gradient_BTD[:, k:], weight_KD[k])
            of_weight_KD[k] = (gradient_BTD[:, k:] * values_BTD[:, :-k]).sum((0, 1))
        return of_values_BTD, of_weight_KD


class Attention(nn.Module):
    """Scaled dot-product attention of several heads (Vaswani et al. 2017, section 3.2)."""

    def __init__(self, *, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.head_width = heads, width // heads
        self.projection = nn.Linear(width, 3 * width, bias=False)  # queries, keys, values
        self.output = nn.Linear(width, width, bias=False)

    def queries_keys_values(self, values_BTD: Tensor, turns: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries and keys, turned by their positions, and values: [B, H, T, D / H] each."""
        n_windows, n_times, width = values_BTD.shape
        both_BTE, values_BTE = self.projection(values_BTD).split([2 * width, width], dim=-1)
        pairs = torch.view_as_complex(both_BTE.float().view(n_windows, n_times, 2, width // 2, 2))
        turned = torch.view_as_real(pairs * turns).to(both_BTE.dtype)
        queries_BTHC, keys_BTHC = turned.view(n_windows, n_times, 2, self.heads, -1).unbind(2)
        values_BTHC = values_BTE.view(n_windows, n_times, self.heads, -1)
        return queries_BTHC.transpose(1, 2), keys_BTHC.transpose(1, 2), values_BTHC.transpose(1, 2)

    def weights(self, queries_BHTC: Tensor, keys_BHTC: Tensor, mask: Tensor) -> Tensor:
        """Return [B, H, T, T]: how much each event looks at each; a row sums to 1."""
        scores_BHTT = queries_BHTC @ keys_BHTC.transpose(-1, -2) * self.head_width**-0.5 + mask
        return scores_BHTT.softmax(-1)

    def forward(self, values_BTD: Tensor, turns: Tensor, mask: Tensor) -> Tensor:
        """Return [B, T, D]: for each event the values of those it looks at, weighted."""
        queries_BHTC, keys_BHTC, values_BHTC = self.queries_keys_values(values_BTD, turns)
        mixed_BHTC = self.weights(queries_BHTC, keys_BHTC, mask) @ values_BHTC
        return self.output(mixed_BHTC.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention, then a feed-forward network at each event; each adds to its input, normalised before it."""

    def __init__(self, *, width: int, heads: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = Attention(width=width, heads=heads)
        self.feed_norm = nn.LayerNorm(width)
        self.feed_in = nn.Linear(width, FEED_FORWARD * width)
        self.feed_out = nn.Linear(FEED_FORWARD * width, width)

    def forward(self, values_BTD: Tensor, turns: Tensor, mask: Tensor) -> Tensor:
        """Return [B, T, D]."""
        values_BTD = values_BTD + self.attention(self.attention_norm(values_BTD), turns, mask)
        # Squared ReLU (So et al. 2021, section 4.2): .728 against GELU's .693 AP on the simulator's validation period,
        # one seed; it also costs less.
        return values_BTD + self.feed_out(functional.relu(self.feed_in(self.feed_norm(values_BTD))).square())


class TransformerEncoder(nn.Module):
    """Blocks over windows.

    Causal: position t sees 0..t. Else every event sees all of its window, and every position holds their mean.
    Padding stands on the right, so a causal event never sees it; without causality it is masked out.
    """

    def __init__(self, fields: tuple[FieldShape, ...], model: ModelConfig) -> None:
        super().__init__()
        self.is_causal = model.causal
        self.turns = Turns(fields, width=model.width, heads=model.heads)
        self.neighbours = Neighbours(model.width)
        self.blocks = nn.ModuleList(Block(width=model.width, heads=model.heads) for _ in range(model.layers))
        self.norm = nn.LayerNorm(model.width)

    def mask(self, tokens_BTF: Tensor) -> Tensor:
        """Return what is added to the scores, broadcast to [B, H, T, T]: 0 where an event may be looked at."""
        if self.is_causal:
            n_times = tokens_BTF.shape[1]
            return torch.full((n_times, n_times), _HIDDEN, device=tokens_BTF.device).triu(1)
        return torch.where(tokens_BTF[:, None, None, :, 0] == PADDING_ID, _HIDDEN, 0.0)

    def forward(self, values_BTD: Tensor, tokens_BTF: Tensor) -> Tensor:
        """Return hidden_BTD."""
        turns, mask = self.turns(tokens_BTF), self.mask(tokens_BTF)
        values_BTD = self.neighbours(values_BTD)
        for block in self.blocks:
            values_BTD = block(values_BTD, turns, mask)
        hidden_BTD = self.norm(values_BTD)
        return hidden_BTD if self.is_causal else pooled(hidden_BTD, tokens_BTF)


def pooled(hidden_BTD: Tensor, tokens_BTF: Tensor) -> Tensor:
    """Return [B, T, D]: at every position the mean over the real events of its window."""
    is_real_BT1 = (tokens_BTF[:, :, :1] != PADDING_ID).to(hidden_BTD.dtype)
    mean_B1D = (hidden_BTD * is_real_BT1).sum(1, keepdim=True) / is_real_BT1.sum(1, keepdim=True).clamp(min=1.0)
    return mean_B1D.expand_as(hidden_BTD)


def build_encoder(fields: tuple[FieldShape, ...], model: ModelConfig, *, dropout: float) -> TransformerEncoder:
    """Return an untrained encoder."""
    return TransformerEncoder(fields, model)


def onnx_files(weights: Weights, fields: tuple[FieldShape, ...], model: ModelConfig) -> Mapping[str, bytes]:
    """Return window.onnx."""
    from fraud.models.transformer_graph import window_onnx

    return {"window.onnx": window_onnx(weights, fields, model)}
