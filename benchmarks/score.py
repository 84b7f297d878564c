"""How fast an LSTM scores a log: `python benchmarks/score.py [--users 20000] [--runs 5] [--width 128] [--layers 2]`.

The same network, windows and tokens of the simulator's log, fp32, one thread, in turn in one process:

    ours     fraud.scoring.window_logits: length buckets, ONNX Runtime
    torch    an eager loop over the windows in order of arrival, 128 at a time, padded to the longest of them; its event
             embedding is our own module's, one embedding_bag over all fields
    plain    the same loop with the embedding as most would write it: one nn.Embedding, its rows gathered and summed

Prints events per CPU-second (input events, each counted once though two windows read it), the ratio of medians, the
largest difference of a logit, and the share of the floor: the time that the multiplications of the LSTM alone take at
the rate of this machine's largest matrix product. About eight minutes at the defaults.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import numpy as np
import torch

from fraud.batches import Windows, counted, gather, windows
from fraud.config import ModelConfig, load_config
from fraud.events import FloatArray
from fraud.export import window_onnx
from fraud.logs import read_log
from fraud.models.embedding import EventEmbedding
from fraud.models.recurrent import Recurrent, build_recurrent, weights_of
from fraud.preparation import Prepared, prepare
from fraud.runtime import WindowModel
from fraud.scoring import window_logits
from fraud.tokens import TokenArray
from pipelines.simulate import simulate

RIVAL_BATCH = 128


def main() -> None:
    """Print the two ways side by side."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=20_000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--layers", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        prepared = tokens_of(Path(folder), arguments.users)
        tokens_NF = np.array(prepared.tokens_NF)
        starts_S1 = np.array(prepared.sequence_starts_S1)
    chosen = windows(starts_S1, np.zeros(len(starts_S1) - 1, dtype=np.int64), 64)
    say(f"{len(tokens_NF):,} events, {len(chosen):,} windows of {tokens_NF.shape[1]} fields")
    say(f"events a user, quantiles 0 .1 .25 .5 .75 .9 1: {quantiles(np.diff(starts_S1))}")
    size = ModelConfig(layers=arguments.layers, width=arguments.width)
    shapes = prepared.vocabulary.field_shapes
    network = build_recurrent(shapes, size, dropout=0.0, base_rate=0.01, seed=0).eval()
    ours = WindowModel(window_onnx(weights_of(network), prepared.vocabulary.field_sizes), threads=1)
    plain = deepcopy(network)
    plain.embedding = PlainEmbedding(network.embedding)
    ways: dict[str, Callable[[], FloatArray]] = {
        "ours": lambda: window_logits(ours, tokens_NF, chosen),
        "torch": lambda: eager_logits(network, tokens_NF, chosen),
        "plain": lambda: eager_logits(plain, tokens_NF, chosen),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    logits: dict[str, FloatArray] = {}
    for _ in range(arguments.runs):
        for name, run in ways.items():
            started = time.process_time()
            logits[name] = run()
            seconds[name].append(time.process_time() - started)
    floor_s = multiplications(chosen, arguments.layers, arguments.width) / multiplications_per_second()
    medians = {name: statistics.median(runs) for name, runs in seconds.items()}
    for name, median in medians.items():
        say(f"{name:6} {len(tokens_NF) / median:10,.0f} events per CPU-second, {floor_s / median:.0%} of the floor")
    for rival in ("torch", "plain"):
        difference = np.abs(logits["ours"] - logits[rival]).max()
        ratio = medians[rival] / medians["ours"]
        say(f"ours is {ratio:.2f} times as fast as {rival} (goal: at least 1.8); largest difference {difference:.1e}")


class PlainEmbedding(torch.nn.Module):
    """The same sum of embeddings, gathered [B, T, F, D] and then summed."""

    def __init__(self, embedding: EventEmbedding) -> None:
        super().__init__()
        self.table = torch.nn.Embedding.from_pretrained(embedding.table.detach())
        self.offsets_F = embedding.offsets_F

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return float32 [..., D] of tokens [..., F]."""
        return self.table(tokens + self.offsets_F).sum(-2) * tokens.shape[-1] ** -0.5


def tokens_of(folder: Path, n_users: int) -> Prepared:
    """Return the prepared set of a simulated log."""
    simulate(folder / "log", users=n_users)
    config = load_config(folder / "log" / "config.toml")
    return prepare(read_log(config), config, folder / "set", progress=lambda *_: None)


def eager_logits(network: Recurrent, tokens_NF: TokenArray, chosen: Windows) -> FloatArray:
    """Return the logit of each row from a plain loop in torch."""
    logit_N = np.full(len(tokens_NF), np.nan)
    with torch.inference_mode():
        for first in range(0, len(chosen), RIVAL_BATCH):
            batch = chosen.take(np.arange(first, min(first + RIVAL_BATCH, len(chosen))))
            logits_BT = network(torch.from_numpy(gather(tokens_NF, batch))).numpy()
            row_R, window_R, step_R = counted(batch)
            logit_N[row_R] = logits_BT[window_R, step_R]
    return logit_N


def multiplications(chosen: Windows, layers: int, width: int) -> float:
    """Return how many multiply-adds the LSTM's gates need: 4 gates of width x (input + width) a layer and step."""
    return float(chosen.lengths_W.astype(np.int64).sum()) * layers * 4 * width * 2 * width


def multiplications_per_second(size: int = 1024) -> float:
    """Return the multiply-adds a second of a large fp32 matrix product on one thread: the best of several."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    best = float("inf")
    for _ in range(12):
        started = time.process_time()
        torch.mm(a, b)
        best = min(best, time.process_time() - started)
    return size**3 / best


def quantiles(lengths: np.ndarray) -> list[int]:
    """Return some quantiles of the lengths of the sequences."""
    return np.quantile(lengths, [0, 0.1, 0.25, 0.5, 0.75, 0.9, 1]).astype(int).tolist()


def say(line: str) -> None:
    """Print a line at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
