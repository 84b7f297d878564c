"""A small model in one file, and the ways to break it: what the contract must pass, and what it must refuse."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from fraud.config import ModelConfig
from fraud.tokens import FieldShape

_PAST = 16
_BUILDS = itertools.count()


def _looks_ahead(hidden_BTD: Tensor, _tokens_BTF: Tensor) -> Tensor:
    return hidden_BTD + hidden_BTD.roll(-1, dims=1)


def _reads_padding(hidden_BTD: Tensor, _tokens_BTF: Tensor) -> Tensor:
    return hidden_BTD + hidden_BTD.cumsum(1)[:, -1:] / 64


def _counts_the_window(hidden_BTD: Tensor, _tokens_BTF: Tensor) -> Tensor:
    return hidden_BTD * (16.0 / hidden_BTD.shape[1])


def _compares_users(hidden_BTD: Tensor, _tokens_BTF: Tensor) -> Tensor:
    return hidden_BTD - 0.5 * hidden_BTD.mean(dim=0)


def _fails_on_unknown(hidden_BTD: Tensor, tokens_BTF: Tensor) -> Tensor:
    return hidden_BTD + torch.log((tokens_BTF != 1).any(dim=-1, keepdim=True).float())


def _hears_nothing(hidden_BTD: Tensor, _tokens_BTF: Tensor) -> Tensor:
    return hidden_BTD * 0.0


def _hears_a_bag(hidden_BTD: Tensor, tokens_BTF: Tensor) -> Tensor:
    n_twos_BT = (tokens_BTF[..., 0] == 2).cumsum(1)
    return hidden_BTD * 0.0 + n_twos_BT[..., None]


def _exports_another(hidden_BTD: Tensor, _tokens_BTF: Tensor) -> Tensor:
    return hidden_BTD * 1.01 if torch.jit.is_tracing() else hidden_BTD


_SPOILS: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "toy_looks_ahead": _looks_ahead,
    "toy_reads_padding": _reads_padding,
    "toy_counts_the_window": _counts_the_window,
    "toy_compares_users": _compares_users,
    "toy_fails_on_unknown": _fails_on_unknown,
    "toy_hears_nothing": _hears_nothing,
    "toy_hears_a_bag": _hears_a_bag,
    "toy_exports_another": _exports_another,
}


class ToyEncoder(nn.Module):
    """A weighted sum over the last 16 events."""

    def __init__(self, name: str, width: int) -> None:
        super().__init__()
        self.name = name
        self.weighted = nn.Conv1d(width, width, _PAST, groups=width)
        self.mixed = nn.Linear(width, width)
        self.hidden_weight = torch.zeros(width)  # in no state_dict
        if name == "toy_hides_a_weight":
            self.hidden_weight = torch.rand(width) + next(_BUILDS)
        if name == "toy_differs_each_time":
            nn.init.constant_(self.mixed.bias, 0.01 * next(_BUILDS))

    def forward(self, values_BTD: Tensor, tokens_BTF: Tensor) -> Tensor:
        """Return hidden_BTD."""
        past_BDT = functional.pad(values_BTD.transpose(1, 2), (_PAST - 1, 0))
        hidden_BTD = torch.tanh(self.mixed(self.weighted(past_BDT).transpose(1, 2)) + self.hidden_weight)
        return _SPOILS[self.name](hidden_BTD, tokens_BTF) if self.name in _SPOILS else hidden_BTD


class ForgetfulEncoder(nn.Module):
    """A recurrent layer whose step begins anew at each event."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.cells = nn.GRU(width, width, batch_first=True)

    def forward(self, values_BTD: Tensor, tokens_BTF: Tensor) -> Tensor:
        """Return hidden_BTD."""
        return self.cells(values_BTD)[0]

    def initial_state(self, n_users: int) -> Tensor:
        """Return the state float32 [B, 1]."""
        return torch.zeros(n_users, 1)

    def step(self, values_BD: Tensor, state_BS: Tensor) -> tuple[Tensor, Tensor]:
        """Return (state_BS, hidden_BD)."""
        return state_BS, self.cells(values_BD[:, None])[0][:, 0]


def build_encoder(fields: tuple[FieldShape, ...], model: ModelConfig, *, dropout: float) -> nn.Module:
    """Return the toy, or one of its broken sisters."""
    return ForgetfulEncoder(model.width) if model.name == "toy_forgets" else ToyEncoder(model.name, model.width)
