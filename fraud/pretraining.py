"""Pretraining without labels: the embedding and the encoder learn from the events alone, then `fit` takes them over.

"next" (GPT style, Radford et al. 2018): from what the encoder makes of the events 0..t, every field of event t + 1.
"masked" (BERT style, Devlin et al. 2019): some fields of some events, or all of an event, read as unknown; each is
predicted at its own position. A causal encoder knows the past and what is left of the event itself.

Each field has one softmax over its ids. Its mean log loss is divided by the entropy of its ids in the training rows: 1
is what counting them gives, 0 is certainty, and a field of 4 ids weighs what one of 4,000 does. Padding and unknown ids
are never to be predicted (unknown is no value), "none" is: that an event has no amount follows from what it is.

No label is read: the sets that come here say which rows are of the training period, and which users are held out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from fraud.batches import buckets
from fraud.config import TrainingConfig
from fraud.errors import DataError
from fraud.events import BoolArray, FloatArray, IntArray
from fraud.models.network import Network
from fraud.objectives import Losses, Stage, training_device
from fraud.sampling import LossBatch, TrainingSet, held_out_sample, training_sample
from fraud.tokens import NONE_ID, PADDING_ID, UNKNOWN_ID
from fraud.training import EpochReport, TrainingState, epochs

_MASKED_EVENTS = 0.15  # of all events: every field at once (Devlin et al. 2019, section 3.1)
_MASKED_FIELDS = 0.15  # of the fields of the others
_LEAST_ENTROPY = 0.5  # nats: a field that hardly varies would otherwise be the loudest
_FULL_FIELD = 512  # ids; a larger field is predicted at this share of the positions only, to bound the cost
_SEED_SHIFT = 2**31  # past the largest training.seed: pretraining draws other numbers than the fit that follows
_NETWORK, _PREDICTOR = "network.", "predictor."  # what the weights of an EventModel are called


class EventModel(nn.Module):
    """A network without its head; in its place one linear softmax a field. sizes: how many ids each field has."""

    def __init__(self, network: Network, counts: tuple[FloatArray, ...]) -> None:
        super().__init__()
        self.network = deepcopy(network)
        del self.network.head
        self.sizes = [len(count_K) for count_K in counts]
        self.predictor = nn.Linear(network.embedding.table.shape[1], sum(self.sizes))
        frequency = [(count_K + 0.5) / (count_K + 0.5).sum() for count_K in counts]
        with torch.no_grad():
            self.predictor.weight.mul_(0.1)
            # So that the first answer is how frequent each id is.
            self.predictor.bias.copy_(torch.as_tensor(np.log(np.concatenate(frequency))))

    def hidden(self, tokens_BTF: Tensor) -> Tensor:
        """Return float32 [B, T, D], as the network's own head would get it."""
        return self.network.dropout(self.network.hidden(tokens_BTF))

    def field_loss(self, hidden_RD: Tensor, target_R: Tensor, field: int) -> Tensor:
        """Return the sum over R events of the log loss of one field."""
        start = sum(self.sizes[:field])
        ids = slice(start, start + self.sizes[field])
        logit_RK = functional.linear(hidden_RD, self.predictor.weight[ids], self.predictor.bias[ids])
        return functional.cross_entropy(logit_RK, target_R, reduction="sum")


class Asked(NamedTuple):
    """What the encoder reads, the ids that stand there and which of them it is asked for: [B, T, F] each."""

    read_BTF: IntArray
    target_BTF: IntArray
    asked_BTF: BoolArray


def next_event(tokens_BTF: IntArray, in_loss_BT: BoolArray, rng: np.random.Generator) -> Asked:
    """Return at each event the question what the one after it is, where that one is in the loss; draws nothing."""
    asked_BTF = np.broadcast_to(in_loss_BT[:, 1:, None], tokens_BTF[:, 1:].shape)
    return Asked(tokens_BTF[:, :-1], tokens_BTF[:, 1:], asked_BTF)


def masked_events(tokens_BTF: IntArray, in_loss_BT: BoolArray, rng: np.random.Generator) -> Asked:
    """Return the events with some of the fields in the loss read as unknown, and the question what these are."""
    is_event_BT1 = rng.random((*in_loss_BT.shape, 1), dtype=np.float32) < _MASKED_EVENTS
    is_field_BTF = rng.random(tokens_BTF.shape, dtype=np.float32) < _MASKED_FIELDS
    asked_BTF = (is_event_BT1 | is_field_BTF) & in_loss_BT[:, :, None]
    return Asked(np.where(asked_BTF, UNKNOWN_ID, tokens_BTF), tokens_BTF, asked_BTF)


@dataclass(frozen=True, slots=True, kw_only=True)
class EventLoss:
    """The mean over the fields of log loss / entropy. entropy_F: nats, 0 where a field never varies: it is left out."""

    model: EventModel
    unlabelled: TrainingSet
    config: TrainingConfig
    entropy_F: FloatArray

    @property
    def stage(self) -> Stage:
        """Return "pretrain"."""
        return "pretrain"

    def losses(self, rng: np.random.Generator) -> Losses:
        """Return the losses of one pass over every window of the training period."""
        sampled = training_sample(self.unlabelled, 1.0, rng)
        batches = buckets(sampled.windows.lengths_W, self.config.batch_events, rng)
        return Losses(sampled.n_events, len(batches), (self._loss(sampled.batch(chosen), rng) for chosen in batches))

    def held_out(self) -> tuple[float, float | None] | None:
        """Return (mean loss, None) over the rows of held-out users; every epoch asks for the same fields of them."""
        sampled = held_out_sample(self.unlabelled)
        rng = np.random.default_rng(self.config.seed)
        total_F, n_F = np.zeros(len(self.entropy_F)), np.zeros(len(self.entropy_F))
        self.model.eval()
        with torch.inference_mode():
            for chosen in buckets(sampled.windows.lengths_W, self.config.batch_events, None):
                asked = self._asked(sampled.batch(chosen), rng)
                for f, (loss, n_rows) in self._by_field(asked).items():
                    total_F[f] += float(loss)
                    n_F[f] += n_rows
        known_F = n_F > 0
        if not known_F.any():
            return None
        return float((total_F[known_F] / n_F[known_F] / self._scale_F[known_F]).mean()), None

    @property
    def _scale_F(self) -> FloatArray:
        return np.maximum(self.entropy_F, _LEAST_ENTROPY)

    def _loss(self, batch: LossBatch, rng: np.random.Generator) -> Tensor:
        """Return the mean over the fields asked for, times the events of the batch: so that each event counts alike."""
        asked = self._asked(batch, rng)
        dropped_BTF = rng.random(asked.read_BTF.shape, dtype=np.float32) < self.config.token_dropout
        is_hidden_BTF = dropped_BTF & (asked.read_BTF != PADDING_ID)
        asked = asked._replace(read_BTF=np.where(is_hidden_BTF, UNKNOWN_ID, asked.read_BTF))
        scaled = [loss / (n_rows * self._scale_F[f]) for f, (loss, n_rows) in self._by_field(asked).items()]
        if not scaled:  # windows of one event have no next one
            return 0.0 * sum((parameter.sum() for parameter in self.model.parameters()), torch.zeros(()))
        return torch.stack(scaled).mean() * int(batch.in_loss_BT.sum())

    def _asked(self, batch: LossBatch, rng: np.random.Generator) -> Asked:
        hide = next_event if self.config.pretrain == "next" else masked_events
        asked = hide(batch.tokens_BTF, batch.in_loss_BT, rng)
        share_F = np.minimum(1.0, _FULL_FIELD / np.array(self.model.sizes)) * (self.entropy_F > 0)
        is_drawn_BTF = rng.random(asked.asked_BTF.shape, dtype=np.float32) < share_F
        return asked._replace(asked_BTF=asked.asked_BTF & is_drawn_BTF & (asked.target_BTF >= NONE_ID))

    def _by_field(self, asked: Asked) -> dict[int, tuple[Tensor, int]]:
        """Return (summed loss, how many rows) of each field that something is asked of."""
        if not asked.asked_BTF.any():
            return {}
        device = training_device(self.config)
        hidden_ND = self.model.hidden(torch.as_tensor(asked.read_BTF).to(device)).flatten(0, 1)
        by_field: dict[int, tuple[Tensor, int]] = {}
        for f in range(len(self.entropy_F)):
            row_R = np.flatnonzero(asked.asked_BTF[:, :, f])
            if len(row_R):
                target_R = torch.as_tensor(asked.target_BTF[:, :, f].ravel()[row_R]).to(device)
                hidden_RD = hidden_ND[torch.as_tensor(row_R).to(device)]
                by_field[f] = (self.model.field_loss(hidden_RD, target_R, f), len(row_R))
        return by_field


def pretrained(
    network: Network,
    unlabelled: TrainingSet,
    config: TrainingConfig,
    *,
    resume: TrainingState | None,
    report: Callable[[EpochReport], None],
) -> tuple[Network, TrainingState | None]:
    """Return (the network that `fit` starts from, the state that it goes on from).

    The embedding and the encoder are pretrained, the head is the one that came in. `unlabelled` says by trained_N and
    held_out_N which rows are asked for; its labels are not read. resume may be of pretraining, which goes on, or of the
    fit after it, which holds every weight already. report is called after each epoch. Raises ConfigError where the loss
    is not finite, DataError where there is nothing to predict.
    """
    if resume is not None and not any(name.startswith(_PREDICTOR) for name in resume.weights):
        return network, resume
    state = resume
    for epoch in pretrain(network, unlabelled, config, resume=resume):
        state = epoch.state
        report(epoch)
    assert state is not None  # there is at least one epoch
    return with_pretrained(network, state), None


def pretrain(
    network: Network, unlabelled: TrainingSet, config: TrainingConfig, *, resume: TrainingState | None
) -> Iterator[EpochReport]:
    """Yield a report per epoch of pretraining, as `fraud.training.fit` does; `network` is not changed.

    Epochs count to config.pretrain_epochs; the state of a report holds the weights of an `EventModel`.
    """
    counts = field_counts(unlabelled, network)
    entropy_F = np.array([entropy(count_K) for count_K in counts])
    if not (entropy_F > 0).any():
        raise DataError("training.pretrain: no field of the training period has two values; there is nothing to learn")
    if config.pretrain == "next" and not (unlabelled.windows.lengths_W > 1).any():
        raise DataError('training.pretrain = "next": no event of the log has one after it; expected "masked" or "none"')
    settings = replace(config, epochs=config.pretrain_epochs, seed=config.seed + _SEED_SHIFT)
    with torch.random.fork_rng(devices=[]):  # pyright: ignore[reportUnknownMemberType]  # untyped in torch
        torch.manual_seed(settings.seed)  # pyright: ignore[reportUnknownMemberType]
        model = EventModel(network, counts).to(training_device(config))
    loss = EventLoss(model=model, unlabelled=unlabelled, config=settings, entropy_F=entropy_F)
    yield from epochs(model, loss, settings, resume=resume)


def with_pretrained(network: Network, state: TrainingState) -> Network:
    """Return a copy of the network with the embedding and the encoder of the best epoch of a pretraining."""
    weights = {
        name.removeprefix(_NETWORK): tensor for name, tensor in state.best_weights.items() if name.startswith(_NETWORK)
    }
    head = {name: tensor for name, tensor in network.state_dict().items() if name.startswith("head.")}
    started = deepcopy(network)
    started.load_state_dict(weights | head)
    return started


def field_counts(unlabelled: TrainingSet, network: Network) -> tuple[FloatArray, ...]:
    """Return how often each id stands in the training rows: float64 [K] a field, 0 for ids that are not asked for."""
    edges = [*(int(start) for start in network.embedding.offsets_F), len(network.embedding.table)]
    row_R = np.flatnonzero(unlabelled.trained_N)
    counts: list[FloatArray] = []
    for f, (start, stop) in enumerate(pairwise(edges)):
        n_K = np.bincount(unlabelled.tokens_NF[row_R, f], minlength=stop - start).astype(np.float64)
        n_K[:NONE_ID] = 0.0  # never asked for
        counts.append(n_K)
    return tuple(counts)


def entropy(count_K: FloatArray) -> float:
    """Return the entropy of ids that stand this often, in nats; 0 where there are none."""
    share_K = count_K[count_K > 0] / max(count_K.sum(), 1.0)
    return float(-(share_K * np.log(share_K)).sum()) + 0.0
