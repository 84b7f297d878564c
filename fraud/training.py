"""Fitting a network: epochs over windows, early stop, resume, one report per epoch; knows no logger, no file, no clock.

What is lowered is an `Objective` (`fraud.objectives`); `fit` lowers the many-to-many loss of the labels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from fraud.config import TrainingConfig
from fraud.errors import ConfigError, DataError
from fraud.models.network import Network
from fraud.objectives import LabelLoss, Objective, Stage, training_device
from fraud.sampling import TrainingSet

_WARM_UP = 0.1  # share of the planned epochs in which the learning rate rises
_LOWEST_RATE = 0.02  # of the peak, at the end of the cosine
_LARGEST_GRADIENT = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingState:
    """All that the rest of a fit depends on after `epoch` epochs; optimiser holds AdamW's two moments per weight."""

    epoch: int
    n_steps: int
    best_epoch: int
    best_loss: float | None
    weights: dict[str, Tensor]
    best_weights: dict[str, Tensor]
    optimiser: dict[str, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochReport:
    """What one epoch did. n_events: how many events were in the loss. Held-out figures are None without such events."""

    stage: Stage
    epoch: int
    train_loss: float
    held_out_loss: float | None
    held_out_ap: float | None
    learning_rate: float
    n_events: int
    is_best: bool
    state: TrainingState


def fit(
    network: Network, training_set: TrainingSet, config: TrainingConfig, *, resume: TrainingState | None
) -> Iterator[EpochReport]:
    """Yield a report per epoch until config.epochs, or until config.patience epochs without a lower held-out loss.

    Early stopping looks at the held-out log loss, not its AP: with a few dozen positives AP jumps by several points
    between equal epochs. The same seed gives the same bits on a CPU, resumed or not. `network` is not changed.
    Raises DataError where no positive can be learnt from, ConfigError where the loss is not finite.
    """
    if not (training_set.label_N[training_set.trained_N] == 1).any():
        raise DataError("no fraud among the training events: expected at least one label 1 that is known in time")
    network = deepcopy(network).to(training_device(config))
    yield from epochs(network, LabelLoss(network, training_set, config), config, resume=resume)


def epochs(
    network: nn.Module, objective: Objective, config: TrainingConfig, *, resume: TrainingState | None
) -> Iterator[EpochReport]:
    """Yield a report per epoch until config.epochs, or until config.patience epochs without a lower held-out loss.

    Changes `network`, which stands on the device that the objective's losses are computed on.
    """
    _check_precision(config)
    # Fused: one pass over the weights and their moments, a third of the time of a loop over them.
    optimiser = torch.optim.AdamW(
        network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
    )
    if resume is not None:
        network.load_state_dict(resume.weights)
        _load_moments(network, optimiser, resume)
    state = resume
    while state is None or (state.epoch < config.epochs and state.epoch - state.best_epoch < config.patience):
        report = _epoch(network, optimiser, objective, config, previous=state)
        state = report.state
        yield report


def best_network(network: Network, state: TrainingState) -> Network:
    """Return a copy of `network` on the CPU, ready to score, with the weights of the best epoch."""
    best = deepcopy(network).cpu()
    best.load_state_dict(state.best_weights)
    return best.eval()


Arrays = dict[str, npt.NDArray[np.float32]]
Numbers = dict[str, int | float | None]


def state_to_arrays(state: TrainingState) -> tuple[Arrays, Numbers]:
    """Return (arrays, numbers): what `state_from_arrays` makes an equal state from; the numbers fit in JSON."""
    groups = {"weights": state.weights, "best_weights": state.best_weights, "optimiser": state.optimiser}
    arrays = {f"{group}/{name}": tensor.numpy() for group in groups for name, tensor in groups[group].items()}
    return arrays, {
        "epoch": state.epoch,
        "n_steps": state.n_steps,
        "best_epoch": state.best_epoch,
        "best_loss": state.best_loss,
    }


def state_from_arrays(arrays: Arrays, numbers: Numbers) -> TrainingState:
    """Return the state that `state_to_arrays` took apart."""
    groups: dict[str, dict[str, Tensor]] = {"weights": {}, "best_weights": {}, "optimiser": {}}
    for path, array in arrays.items():
        group, _, name = path.partition("/")
        groups[group][name] = torch.as_tensor(array.copy())
    best_loss = numbers["best_loss"]
    return TrainingState(
        epoch=int(numbers["epoch"] or 0),
        n_steps=int(numbers["n_steps"] or 0),
        best_epoch=int(numbers["best_epoch"] or 0),
        best_loss=None if best_loss is None else float(best_loss),
        **groups,
    )


def _epoch(
    network: nn.Module,
    optimiser: torch.optim.AdamW,
    objective: Objective,
    config: TrainingConfig,
    *,
    previous: TrainingState | None,
) -> EpochReport:
    """Return the report of one more epoch; torch's global random state and thread count are put back."""
    epoch = 0 if previous is None else previous.epoch
    rng = np.random.default_rng([config.seed, epoch])
    n_threads = torch.get_num_threads()
    cuda = [training_device(config)] if training_device(config).type == "cuda" else []
    torch.set_num_threads(config.threads)
    try:
        with torch.random.fork_rng(devices=cuda):  # pyright: ignore[reportUnknownMemberType]  # untyped in torch
            torch.manual_seed(int(rng.integers(2**62)))  # pyright: ignore[reportUnknownMemberType]
            train_loss, n_events, n_steps = _train(network, optimiser, objective, config, epoch=epoch, rng=rng)
        held_out = objective.held_out()
    finally:
        torch.set_num_threads(n_threads)
    held_out_loss, held_out_ap = (None, None) if held_out is None else held_out
    weights = _copied(network.state_dict())
    n_steps_before = 0 if previous is None else previous.n_steps
    if previous is None or previous.best_loss is None or held_out_loss is None or held_out_loss < previous.best_loss:
        best = (epoch + 1, held_out_loss, weights)
    else:
        best = (previous.best_epoch, previous.best_loss, previous.best_weights)
    state = TrainingState(
        epoch=epoch + 1,
        n_steps=n_steps_before + n_steps,
        best_epoch=best[0],
        best_loss=best[1],
        weights=weights,
        best_weights=best[2],
        optimiser=_moments(network, optimiser),
    )
    return EpochReport(
        stage=objective.stage,
        epoch=epoch + 1,
        train_loss=train_loss,
        held_out_loss=held_out_loss,
        held_out_ap=held_out_ap,
        learning_rate=float(optimiser.param_groups[0]["lr"]),
        n_events=n_events,
        is_best=state.best_epoch == epoch + 1,
        state=state,
    )


def _train(
    network: nn.Module,
    optimiser: torch.optim.AdamW,
    objective: Objective,
    config: TrainingConfig,
    *,
    epoch: int,
    rng: np.random.Generator,
) -> tuple[float, int, int]:
    """Return (mean loss, events in the loss, optimiser steps) of one pass over the sampled windows."""
    losses = objective.losses(rng)
    # One divisor for all batches: each event weighs the same, however many share its batch.
    events_per_batch = losses.n_events / losses.n_batches
    device = training_device(config).type
    network.train()
    total = 0.0
    for nth in range(losses.n_batches):
        _set_learning_rate(optimiser, config, progress=(epoch + nth / losses.n_batches) / config.epochs)
        with torch.autocast(device, torch.bfloat16, enabled=config.precision == "bf16"):
            loss = next(losses.each)
        optimiser.zero_grad(set_to_none=True)
        (loss / events_per_batch).backward()  # pyright: ignore[reportUnknownMemberType]
        torch.nn.utils.clip_grad_norm_(network.parameters(), _LARGEST_GRADIENT)
        optimiser.step()  # pyright: ignore[reportUnknownMemberType]
        total += float(loss.detach())
    if not math.isfinite(total):
        raise ConfigError(
            f"training.learning_rate = {config.learning_rate}: the loss of epoch {epoch + 1} is {total}; lower the rate"
        )
    return total / losses.n_events, losses.n_events, losses.n_batches


def _copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}


def _moments(network: nn.Module, optimiser: torch.optim.AdamW) -> dict[str, Tensor]:
    """Return AdamW's moments of every weight as `first/NAME` and `second/NAME`."""
    moments: dict[str, Tensor] = {}
    for name, parameter in network.named_parameters():
        moments[f"first/{name}"] = optimiser.state[parameter]["exp_avg"]
        moments[f"second/{name}"] = optimiser.state[parameter]["exp_avg_sq"]
    return _copied(moments)


def _load_moments(network: nn.Module, optimiser: torch.optim.AdamW, state: TrainingState) -> None:
    for name, parameter in network.named_parameters():
        optimiser.state[parameter] = {
            "step": torch.tensor(float(state.n_steps)),
            "exp_avg": state.optimiser[f"first/{name}"].to(parameter.device, copy=True),
            "exp_avg_sq": state.optimiser[f"second/{name}"].to(parameter.device, copy=True),
        }


def can_train_in_bf16(device: torch.device) -> bool:
    """Return True where the device multiplies matrices in bfloat16; a CPU needs AVX-512 for it."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType]  # untyped in torch


def _check_precision(config: TrainingConfig) -> None:
    device = training_device(config)
    if config.precision == "bf16" and not can_train_in_bf16(device):
        raise ConfigError(f'training.precision = "bf16": this {device.type} cannot; expected "fp32" here')


def _set_learning_rate(optimiser: torch.optim.AdamW, config: TrainingConfig, *, progress: float) -> None:
    """Rise linearly, then fall along a half cosine (Loshchilov & Hutter 2017); progress runs from 0 to 1."""
    rising = min(1.0, (progress + 1e-3) / _WARM_UP)
    cosine = 0.5 * (1.0 + math.cos(math.pi * max(0.0, progress - _WARM_UP) / (1.0 - _WARM_UP)))
    optimiser.param_groups[0]["lr"] = config.learning_rate * rising * (_LOWEST_RATE + (1.0 - _LOWEST_RATE) * cosine)
