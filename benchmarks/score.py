"""How fast a network scores a log: `python benchmarks/score.py [--users 8000] [--runs 5] [--width 128] [--layers 2]`.

The same weights, windows and tokens of the simulator's log, fp32, one thread, in turn in one process:

    ours     fraud.scoring.window_logits: length buckets, ONNX Runtime
    rival    an eager loop over the windows in random order, 128 at a time, padded to the longest of them; its event
             embedding as most would write it: one nn.Embedding, its rows gathered and summed
    bag      the same loop with our own module's embedding, one embedding_bag over all fields

Prints events per CPU-second (input events, each counted once though two windows read it), the ratio of medians, the
largest difference of a logit, and the share of the floor: the time that the multiplications of the network alone take
at the rate of this machine's largest matrix product. With --batches also ours for other sizes of a batch.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import numpy as np
import torch
from training import multiplications, multiplications_per_second, prepared_set, say

from fraud import scoring
from fraud.batches import Windows, buckets, counted, gather, windows
from fraud.config import ModelConfig
from fraud.events import FloatArray
from fraud.models.embedding import EventEmbedding
from fraud.models.network import Network, build_network, export_network, weights_of
from fraud.runtime import WindowModel
from fraud.tokens import FieldShape, TokenArray

RIVAL_BATCH = 128
GOALS = {"lstm": 1.8, "transformer": 1.7}
OTHER_BATCHES = (1024, 2048, 8192, 16384)


def main() -> None:
    """Print the ways side by side, for each network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=8000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--models", default="lstm,transformer")
    parser.add_argument("--batches", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        _, prepared = prepared_set(Path(folder), arguments.users)
        tokens_NF = np.array(prepared.tokens_NF)
        starts_S1 = np.array(prepared.sequence_starts_S1)
    chosen = windows(starts_S1, np.zeros(len(starts_S1) - 1, dtype=np.int64), 64)
    say(f"{len(tokens_NF):,} events, {len(chosen):,} windows of {tokens_NF.shape[1]} fields")
    say(f"events a user, quantiles 0 .1 .25 .5 .75 .9 1: {quantiles(np.diff(starts_S1))}")
    for name in arguments.models.split(","):
        model = ModelConfig(name=name, layers=arguments.layers, width=arguments.width)
        compare(model, prepared.vocabulary.field_shapes, tokens_NF, chosen, arguments.runs, batches=arguments.batches)


def compare(
    model: ModelConfig,
    fields: tuple[FieldShape, ...],
    tokens_NF: TokenArray,
    chosen: Windows,
    runs: int,
    *,
    batches: bool,
) -> None:
    """Print the events per CPU-second of each way to score with one network."""
    network = build_network(fields, model, dropout=0.0, base_rate=0.01, seed=0).eval()
    exported = WindowModel(export_network(weights_of(network), fields, model)["window.onnx"], threads=1)
    plain = deepcopy(network)
    plain.embedding = PlainEmbedding(network.embedding)
    ways: dict[str, Callable[[], FloatArray]] = {
        "ours": lambda: scoring.window_logits(exported, tokens_NF, chosen),
        "rival": lambda: eager_logits(plain, tokens_NF, chosen),
        "bag": lambda: eager_logits(network, tokens_NF, chosen),
    }
    for size in OTHER_BATCHES if batches else ():
        ways[f"ours {size}"] = lambda size=size: bucketed_logits(exported, tokens_NF, chosen, size)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    logits: dict[str, FloatArray] = {}
    for _ in range(runs):
        for name, run in ways.items():
            started = time.process_time()
            logits[name] = run()
            seconds[name].append(time.process_time() - started)
    floor_s = multiplications(chosen.lengths_W, model) / 3 / multiplications_per_second(torch.float32)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    say(f"\n{model.name}: {model.layers} layers of width {model.width}")
    for name, median in medians.items():
        say(f"{name:10} {len(tokens_NF) / median:10,.0f} events per CPU-second, {floor_s / median:.0%} of the floor")
    for other in ("rival", "bag"):
        difference = np.abs(logits["ours"] - logits[other]).max()
        goal = f" (goal: at least {GOALS[model.name]})" if other == "rival" and model.name in GOALS else ""
        say(f"ours is {medians[other] / medians['ours']:.2f} times {other}{goal}; largest difference {difference:.1e}")


class PlainEmbedding(torch.nn.Module):
    """The same sum of embeddings, gathered [B, T, F, D] and then summed."""

    def __init__(self, embedding: EventEmbedding) -> None:
        super().__init__()
        self.table = torch.nn.Embedding.from_pretrained(embedding.table.detach())
        self.offsets_F = embedding.offsets_F

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return float32 [..., D] of tokens [..., F]."""
        return self.table(tokens + self.offsets_F).sum(-2) * tokens.shape[-1] ** -0.5


def eager_logits(network: Network, tokens_NF: TokenArray, chosen: Windows) -> FloatArray:
    """Return the logit of each row from a plain loop in torch."""
    logit_N = np.full(len(tokens_NF), np.nan)
    order = np.random.default_rng(0).permutation(len(chosen))
    with torch.inference_mode():
        for first in range(0, len(chosen), RIVAL_BATCH):
            batch = chosen.take(order[first : first + RIVAL_BATCH])
            logits_BT = network(torch.from_numpy(gather(tokens_NF, batch))).numpy()
            row_R, window_R, step_R = counted(batch)
            logit_N[row_R] = logits_BT[window_R, step_R]
    return logit_N


def bucketed_logits(network: WindowModel, tokens_NF: TokenArray, chosen: Windows, batch_events: int) -> FloatArray:
    """Return what `fraud.scoring.window_logits` does, from batches of another size."""
    logit_N = np.full(len(tokens_NF), np.nan)
    for group in buckets(chosen.lengths_W, batch_events, None):
        batch = chosen.take(group)
        row_R, window_R, step_R = counted(batch)
        logit_N[row_R] = network.logits(gather(tokens_NF, batch))[window_R, step_R]
    return logit_N


def quantiles(lengths: np.ndarray) -> list[int]:
    """Return some quantiles of the lengths of the sequences."""
    return np.quantile(lengths, [0, 0.1, 0.25, 0.5, 0.75, 0.9, 1]).astype(int).tolist()


if __name__ == "__main__":
    main()
