"""How near the scorers come to the best possible: `python benchmarks/ceiling.py [--users 8000] [--seeds 0,1,2]`.

For each seed a bank is simulated and its log prepared; then boosting and lstm, a bag of events (boosting without order
features) and boosting on shuffled labels are trained, and judged on the test period against the truth, beside the
oracle. About three minutes a seed on one core.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from fraud.config import Config, load_config
from fraud.learning import fit_model
from fraud.logs import read_log
from fraud.metrics import average_precision
from fraud.preparation import Prepared, prepare
from pipelines.demo import Truth
from pipelines.simulate import simulate

Figures = dict[str, float]


def main() -> None:
    """Print one line a seed and the medians, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--users", type=int, default=8000)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    rows: list[Figures] = []
    for seed in (int(text) for text in arguments.seeds.split(",")):
        rows.append(figures_of(arguments.users, seed))
        sys.stderr.write(f"seed {seed}: {_line(rows[-1])}\n")
    medians = {name: statistics.median(row[name] for row in rows) for name in rows[0]}
    sys.stdout.write(json.dumps({"seeds": rows, "medians": medians}, indent=1) if arguments.json else _line(medians))
    sys.stdout.write("\n")


def figures_of(users: int, seed: int) -> Figures:
    """Return the test AP against the truth of each scorer and of the oracle, and the base rate."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        simulate(log, users=users, seed=seed)
        config = load_config(log / "config.toml", [f"training.seed={seed}"])
        prepared = prepare(read_log(config), config, Path(folder) / "set", progress=lambda *_: None)
        truth = Truth(config, prepared, log / "oracle.parquet")
        bag = _with(config, name="boosting", order_features=False)
        bag_set = prepare(read_log(bag), bag, Path(folder) / "bag", progress=lambda *_: None)
        runs = {
            "boosting": (prepared, _with(config, name="boosting")),
            "lstm": (prepared, _with(config, name="lstm")),
            "bag of events": (bag_set, bag),
            "shuffled labels": (_shuffled(prepared, seed), _with(config, name="boosting")),
        }
        figures = {"oracle": average_precision(truth.p_fraud_T, truth.is_fraud_T) or 0.0}
        for name, (chosen, settings) in runs.items():
            fitted = fit_model(chosen, settings, resume=None, report=lambda _: None)
            figures[name] = average_precision(fitted.test_logit_T, truth.is_fraud_T) or 0.0
        figures["base rate"] = float(truth.is_fraud_T.mean())
    return figures


def _with(config: Config, *, name: str, order_features: bool = True) -> Config:
    return replace(config, model=replace(config.model, name=name, order_features=order_features))


def _shuffled(prepared: Prepared, seed: int) -> Prepared:
    """Return the set with the labels of its training and validation events dealt out anew."""
    rng = np.random.default_rng(seed)
    label_N = np.array(prepared.label_N)
    for rows_N in (prepared.trains_N, prepared.validates_N):
        rows = np.flatnonzero(rows_N)
        label_N[rows] = label_N[rng.permutation(rows)]
    return replace(prepared, label_N=label_N)


def _line(figures: Figures) -> str:
    shares = (f"{name} {ap:.3f} ({ap / figures['oracle']:.0%})" for name, ap in figures.items())
    return ", ".join(shares)


if __name__ == "__main__":
    main()
