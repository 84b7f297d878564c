"""What the epochs of a fit lower: the log loss of the labels here, that of the events alone in `fraud.pretraining`.

Imbalance: every positive is in the loss; a negative is in it with probability negative_rate, drawn once per window and
epoch (its neighbours come with it, so the rest of the window need not be computed). That multiplies the odds by
1 / negative_rate, so the loss is taken at logit - log(negative_rate): the network's own logit stays unbiased
(King & Zeng 2001, section 4.1), and there is nothing to correct afterwards.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from fraud.batches import buckets
from fraud.config import TrainingConfig
from fraud.errors import ConfigError
from fraud.events import FloatArray, IntArray
from fraud.metrics import average_precision
from fraud.models.network import Network
from fraud.sampling import Sample, TrainingSet, held_out_sample, training_sample
from fraud.tokens import PADDING_ID, UNKNOWN_ID

Stage = Literal["pretrain", "train"]


class Losses(NamedTuple):
    """The loss of one epoch. n_events: how many events are in it. each: its sum over each of n_batches batches.

    It is computed only when it is asked for, so from the weights that the batch before has left.
    """

    n_events: int
    n_batches: int
    each: Iterator[Tensor]


class Objective(Protocol):
    """What the epochs lower; it holds the network that they change."""

    @property
    def stage(self) -> Stage:
        """Return what its reports call it."""
        ...

    def losses(self, rng: np.random.Generator) -> Losses:
        """Return the losses of one epoch, drawn from rng and torch's global random state."""
        ...

    def held_out(self) -> tuple[float, float | None] | None:
        """Return (mean loss, average precision) of the held-out events; None without any."""
        ...


@dataclass(frozen=True, slots=True)
class LabelLoss:
    """The log loss of the labels, over the sampled events."""

    network: Network
    training_set: TrainingSet
    config: TrainingConfig

    @property
    def stage(self) -> Stage:
        return "train"

    def losses(self, rng: np.random.Generator) -> Losses:
        sampled = training_sample(self.training_set, self.config.negative_rate, rng)
        batches = buckets(sampled.windows.lengths_W, self.config.batch_events, rng)
        return Losses(sampled.n_events, len(batches), (self._loss(sampled, chosen, rng) for chosen in batches))

    def _loss(self, sampled: Sample, chosen: IntArray, rng: np.random.Generator) -> Tensor:
        device = training_device(self.config)
        tokens_BTF, label_BT, in_loss_BT = sampled.batch(chosen)
        dropped = rng.random(tokens_BTF.shape, dtype=np.float32) < self.config.token_dropout
        tokens_BTF[dropped & (tokens_BTF != PADDING_ID)] = UNKNOWN_ID
        logit_BT = self.network(torch.as_tensor(tokens_BTF).to(device))
        mask_BT = torch.as_tensor(in_loss_BT).to(device)
        return functional.binary_cross_entropy_with_logits(
            logit_BT[mask_BT].float() - math.log(self.config.negative_rate),
            torch.as_tensor(label_BT[in_loss_BT].astype(np.float32)).to(device),
            reduction="sum",
        )

    def held_out(self) -> tuple[float, float | None] | None:
        held_out = held_out_sample(self.training_set)
        if len(held_out.windows) == 0:
            return None
        logits: list[FloatArray] = []
        labels: list[npt.NDArray[np.int8]] = []
        device = training_device(self.config)
        self.network.eval()
        with torch.inference_mode():
            for chosen in buckets(held_out.windows.lengths_W, self.config.batch_events, None):
                tokens_BTF, label_BT, in_loss_BT = held_out.batch(chosen)
                logit_BT = self.network(torch.as_tensor(tokens_BTF).to(device)).cpu().numpy()
                logits.append(logit_BT[in_loss_BT].astype(np.float64))
                labels.append(label_BT[in_loss_BT])
        logit_R, label_R = np.concatenate(logits), np.concatenate(labels)
        loss = float(np.mean(np.logaddexp(0.0, logit_R) - label_R * logit_R))
        return loss, average_precision(logit_R, label_R)


def training_device(config: TrainingConfig) -> torch.device:
    """Return where the configuration trains; raise ConfigError for "cuda" where torch sees none."""
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError('training.device = "cuda": torch sees no such device here; expected "auto" or "cpu"')
    return torch.device("cuda" if config.device != "cpu" and torch.cuda.is_available() else "cpu")
