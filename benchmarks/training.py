"""How fast a network trains: `python benchmarks/training.py [--users 4000] [--runs 5] [--width 128] [--layers 2]`.

One epoch over the same windows of the simulator's log, the same sizes, one thread, in turn in one process:

    ours     fraud.training.fit: length buckets, one embedding_bag, plain matmul-softmax-matmul; in fp32, and in bf16
             where the processor multiplies in it
    rival    a plain loop as most would write it, fp32: 128 windows in random order, padded to the longest of them, the
             sum of one nn.Embedding for each field, nn.LSTM or nn.TransformerEncoder (which calls PyTorch's fused
             scaled_dot_product_attention), the loss on the same events, clipped gradients, AdamW

Prints events read per CPU-second, the ratio of medians, and the share of the floor: the time that the multiplications
of forward and backward alone take at the rate of this machine's largest matrix product in that precision. With
--epochs N each way also trains N epochs from the same seed on all users but a tenth, and the average precision of the
best epoch on that tenth is printed beside it.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from fraud.batches import windows
from fraud.config import Config, ModelConfig, TrainingConfig, load_config
from fraud.logs import read_log
from fraud.metrics import average_precision
from fraud.models.network import build_network
from fraud.models.transformer import FEED_FORWARD
from fraud.preparation import Prepared, prepare
from fraud.sampling import Sample, TrainingSet, held_out_sample, training_sample
from fraud.tokens import FieldShape
from fraud.training import can_train_in_bf16, fit
from pipelines.simulate import simulate

RIVAL_BATCH = 128
HELD_OUT = 0.1
DROPOUT = 0.1
GOALS = {("lstm", "fp32"): 3.0, ("lstm", "bf16"): 3.0, ("transformer", "fp32"): 1.7, ("transformer", "bf16"): 3.0}


class Rival(nn.Module):
    """A network of PyTorch's own layers over the same tokens."""

    def __init__(self, name: str, fields: tuple[FieldShape, ...], model: ModelConfig, max_events: int) -> None:
        super().__init__()
        self.embeddings = nn.ModuleList(nn.Embedding(field.size, model.width) for field in fields)
        self.dropout = nn.Dropout(DROPOUT)
        self.head = nn.Linear(model.width, 1)
        self.lstm = self.transformer = None
        if name == "lstm":
            self.lstm = nn.LSTM(model.width, model.width, model.layers, batch_first=True, dropout=DROPOUT)
        else:
            self.places = nn.Embedding(max_events, model.width)
            layer = nn.TransformerEncoderLayer(
                model.width,
                model.heads,
                FEED_FORWARD * model.width,
                DROPOUT,
                "gelu",
                batch_first=True,
                norm_first=True,
            )
            self.transformer = nn.TransformerEncoder(layer, model.layers, enable_nested_tensor=False)

    def forward(self, tokens_BTF: Tensor) -> Tensor:
        """Return logit_BT."""
        values_BTD = self.dropout(sum(embed(tokens_BTF[:, :, f]) for f, embed in enumerate(self.embeddings)))
        n_times = tokens_BTF.shape[1]
        if self.lstm is not None:
            values_BTD, _ = self.lstm(values_BTD)
        elif self.transformer is not None:
            mask_TT = nn.Transformer.generate_square_subsequent_mask(n_times)
            values_BTD = values_BTD + self.places(torch.arange(n_times))
            values_BTD = self.transformer(values_BTD, mask=mask_TT, is_causal=True)
        return self.head(self.dropout(values_BTD)).squeeze(-1)


def main() -> None:
    """Print a table for each network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=4000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=0)
    parser.add_argument("--batch-events", type=int, default=TrainingConfig().batch_events)
    parser.add_argument("--models", default="lstm,transformer")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        config, prepared = prepared_set(Path(folder), arguments.users)
        config = replace(config, training=TrainingConfig(batch_events=arguments.batch_events, device="cpu"))
        for name in arguments.models.split(","):
            model = ModelConfig(name=name, layers=arguments.layers, width=arguments.width)
            compare(replace(config, model=model), prepared, runs=arguments.runs, epochs=arguments.epochs)


def compare(config: Config, prepared: Prepared, *, runs: int, epochs: int) -> None:
    """Print the events per CPU-second of each way to train one network, and its AP after some epochs."""
    everything = training_set(prepared, config, held_out=0.0)
    sample = training_sample(everything, 1.0, np.random.default_rng(0))
    lengths_W = sample.windows.lengths_W
    n_events = int(lengths_W.sum())
    shuffled = np.random.default_rng(0).permutation(lengths_W)
    n_padded = sum(int(part.max()) * len(part) for part in np.array_split(shuffled, -(-len(shuffled) // RIVAL_BATCH)))
    say(f"\n{config.model.name}: {config.model.layers} layers of width {config.model.width}")
    say(f"{n_events:,} events in {len(lengths_W):,} windows; in random order {n_padded / n_events:.2f} padded to each")
    precisions = ("fp32", "bf16") if can_train_in_bf16(torch.device("cpu")) else ("fp32",)
    ways: dict[str, Callable[[], object]] = {
        name: lambda name=name: list(ours(config, prepared, everything, precision=name, epochs=1))
        for name in precisions
    }
    ways["rival"] = lambda: list(rival(config, prepared, everything, epochs=1))
    seconds = timed(ways, runs)
    for name, median in seconds.items():
        kind = torch.bfloat16 if name == "bf16" else torch.float32
        share = multiplications(lengths_W, config.model) / multiplications_per_second(kind) / median
        ratio = seconds["rival"] / median
        goal = GOALS.get((config.model.name, name))
        wanted = "" if goal is None else f" times the rival (goal: at least {goal})"
        say(f"{name:6} {n_events / median:9,.0f} events per CPU-second, {share:4.0%} of the floor, {ratio:.2f}{wanted}")
    if epochs:
        learnt = training_set(prepared, config, held_out=HELD_OUT)
        for name in precisions:
            aps = list(ours(config, prepared, learnt, precision=name, epochs=epochs))
            say(f"{name:6} AP {max(aps):.3f} on held-out users after {epochs} epochs")
        say(f"rival  AP {max(rival(config, prepared, learnt, epochs=epochs)):.3f}")


def timed(ways: dict[str, Callable[[], object]], runs: int) -> dict[str, float]:
    """Return the median CPU seconds of each way, after one run of each to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for nth in range(runs + 1):
        for name, run in ways.items():
            started = time.process_time()
            run()
            if nth:
                seconds[name].append(time.process_time() - started)
    return {name: statistics.median(times) for name, times in seconds.items()}


def ours(config: Config, prepared: Prepared, chosen: TrainingSet, *, precision: str, epochs: int) -> Iterator[float]:
    """Yield the held-out AP of each epoch (0 without held-out events)."""
    training = replace(config.training, precision="bf16" if precision == "bf16" else "fp32", epochs=epochs)
    network = build_network(
        prepared.vocabulary.field_shapes, config.model, dropout=DROPOUT, base_rate=0.01, seed=training.seed
    )
    for report in fit(network, chosen, replace(training, patience=epochs), resume=None):
        yield report.held_out_ap or 0.0


def rival(config: Config, prepared: Prepared, chosen: TrainingSet, *, epochs: int) -> Iterator[float]:
    """Yield the held-out AP of each epoch of the plain loop."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    network = Rival(config.model.name, prepared.vocabulary.field_shapes, config.model, config.sessions.max_events)
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-3)
    for _ in range(epochs):
        network.train()
        for tokens_BTF, label_R, in_loss_BT in plain_batches(training_sample(chosen, 1.0, rng), rng):
            optimiser.zero_grad()
            logit_R = network(tokens_BTF)[in_loss_BT]
            functional.binary_cross_entropy_with_logits(logit_R, label_R).backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimiser.step()
        network.eval()
        logits, labels = [], []
        held_out = held_out_sample(chosen)
        with torch.inference_mode():
            for tokens_BTF, label_R, in_loss_BT in plain_batches(held_out, rng):
                logits.append(network(tokens_BTF)[in_loss_BT].numpy().astype(np.float64))
                labels.append(label_R.numpy().astype(np.int8))
        yield (average_precision(np.concatenate(logits), np.concatenate(labels)) or 0.0) if logits else 0.0


def plain_batches(sample: Sample, rng: np.random.Generator) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield (tokens_BTF, label_R, in_loss_BT) of 128 windows at a time in random order."""
    order = rng.permutation(len(sample.windows))
    for first in range(0, len(order), RIVAL_BATCH):
        batch = sample.batch(order[first : first + RIVAL_BATCH])
        label_R = batch.label_BT[batch.in_loss_BT].astype(np.float32)
        yield torch.from_numpy(batch.tokens_BTF), torch.from_numpy(label_R), torch.from_numpy(batch.in_loss_BT)


def prepared_set(folder: Path, n_users: int) -> tuple[Config, Prepared]:
    """Return a simulated log, prepared."""
    simulate(folder / "log", users=n_users)
    config = load_config(folder / "log" / "config.toml")
    return config, prepare(read_log(config), config, folder / "set", progress=lambda *_: None)


def training_set(prepared: Prepared, config: Config, *, held_out: float) -> TrainingSet:
    """Return the training events, a share of the users held out."""
    starts_S1 = np.asarray(prepared.sequence_starts_S1)
    is_held_out_N = (prepared.held_out_U < held_out)[prepared.user_N]
    return TrainingSet(
        tokens_NF=prepared.tokens_NF,
        windows=windows(starts_S1, np.zeros(len(starts_S1) - 1, dtype=np.int64), config.sessions.max_events),
        label_N=prepared.label_N,
        trained_N=prepared.trains_N & ~is_held_out_N,
        held_out_N=prepared.trains_N & is_held_out_N,
    )


def multiplications(lengths_W: np.ndarray, model: ModelConfig) -> float:
    """Return the multiply-adds of one epoch: backward needs twice those of forward."""
    lengths = lengths_W.astype(np.float64)
    width = model.width
    if model.name == "lstm":
        of_event = 4 * width * 2 * width  # 4 gates of width x (input + width)
        of_pair = 0
    else:
        of_event = (4 + 2 * FEED_FORWARD) * width**2  # queries, keys, values, output; feed-forward
        of_pair = width  # scores and weighted sum, of the pairs that causality leaves
    return 3.0 * model.layers * float(lengths.sum() * of_event + (lengths * (lengths + 1)).sum() * of_pair)


def multiplications_per_second(kind: torch.dtype, size: int = 1024) -> float:
    """Return the multiply-adds a second of a large matrix product on one thread: the best of several."""
    a, b = torch.randn(size, size, dtype=kind), torch.randn(size, size, dtype=kind)
    best = float("inf")
    for _ in range(12):
        started = time.process_time()
        torch.mm(a, b)
        best = min(best, time.process_time() - started)
    return size**3 / best


def say(line: str) -> None:
    """Print a line at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
