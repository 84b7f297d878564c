"""Trained on one bank's 8,000 users, judged on fresh ones: `python benchmarks/fresh_users.py [--users 8000]`.

A bank is simulated and scorers are trained on it side by side; then their bundles score the last 15 % of the decisions
of another simulation (another seed, --fresh users: over a thousand frauds), against the truth of the generator.
Printed: average precision with its 95 % interval and as a share of the oracle's, the fused scorer's paired difference
to each member (users resampled), what share of each kind of decoy is alerted at the budget, and the mean score over the
fraud rate. Nothing is fitted or chosen on the fresh users. Eight minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fraud.bundle import load_bundle
from fraud.config import load_config
from fraud.logs import event_ids, read_log
from fraud.metrics import Examples, evaluate, paired_ap_difference
from fraud.ranking import n_within_budget
from fraud.scoring import score_log
from fraud.tables import tables_of
from pipelines.compare import compare_log
from pipelines.console import Screen, interval
from pipelines.simulate import simulate

_DECOYS = ("order_decoy", "timing_decoy", "honest_same")
_TEST_SHARE = 0.15
Json = dict[str, Any]  # Any: JSON


def main() -> None:
    """Print a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=8000)
    parser.add_argument("--fresh", type=int, default=48_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--models", default="average,boosting,lstm,transformer,fused")
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        simulate(work / "log", users=arguments.users, seed=arguments.seed)
        simulate(work / "fresh", users=arguments.fresh, seed=arguments.seed + 1000)
        overrides = [f"training.seed={arguments.seed}", *arguments.set]
        compare_log(
            load_config(work / "log" / "config.toml", overrides),
            work / "comparison",
            tuple(arguments.models.split(",")),
            seeds=1,
            ablate=False,
            overwrite=False,
            resume=False,
            n_processes=2,
            screen=Screen(as_json=True),
        )
        document = judged(work, arguments.models.split(","), arguments.seed)
    sys.stdout.write((json.dumps(document, indent=1) if arguments.json else table(document)) + "\n")


def judged(work: Path, names: list[str], seed: int) -> Json:
    """Return the figures of the bundles on the fresh log, and the oracle's."""
    config = load_config(work / "fresh" / "config.toml")
    oracle = pq.read_table(work / "fresh" / "oracle.parquet")
    scores: dict[str, np.ndarray] = {}
    with closing(read_log(config)) as log:
        ordered = [load() for load in log.partitions]
        tables = tables_of(log, config)
        parts = [event_ids(one) for one in ordered]
        events = [one.events for one in ordered]
        place = {name: start for start, name in enumerate(np.concatenate([part.to_pylist() for part in parts]))}
        row = np.array([place[name] for name in oracle["event_id"].to_pylist()])
        time_us = np.concatenate([one.time_us for one in events])[row]
        chosen = np.flatnonzero(time_us >= np.quantile(time_us, 1.0 - _TEST_SHARE))
        for name in names:
            scorer = load_bundle(work / "comparison" / "bundles" / name).scorer
            every = [scored.score_N for one in events for scored in score_log(scorer, one, tables)]
            scores[name] = np.concatenate(every)[row[chosen]]
    scores["oracle"] = oracle["p_fraud"].to_numpy()[chosen]
    label = oracle["is_fraud"].to_numpy()[chosen].astype(np.int8)
    kind = np.array(oracle["kind"].to_pylist(), dtype=object)[chosen]
    user = pc.index_in(oracle["user_id"], oracle["user_id"].unique()).to_numpy()[chosen].astype(np.int64)
    examples = {name: Examples(score_N=one, label_N=label, user_N=user, amount_N=None) for name, one in scores.items()}
    budget = config.policy.alert_budget
    models: Json = {}
    for name, one in examples.items():
        figures = evaluate(one, alert_budget=budget, threshold=1.0, costs=None, seed=seed)
        alerted = np.zeros(len(label), dtype=np.bool_)
        alerted[np.argsort(-one.score_N, kind="stable")[: n_within_budget(budget, len(label))]] = True
        models[name] = {
            "ap": figures.ap,
            "ap_ci": figures.ap_ci,
            "recall_at_budget": figures.recall_at_budget,
            "mean_score_over_base_rate": figures.mean_score_over_base_rate,
            "decoys": {k: float(alerted[kind == k].mean()) for k in _DECOYS},
        }
    paired: Json = {}
    for name in names:
        difference = None if name == "fused" else paired_ap_difference(examples["fused"], examples[name], seed=seed)
        if difference is not None:
            paired[f"fused|{name}"] = {"ap_diff": difference.diff, "ci": [difference.lo, difference.hi]}
    return {"n": len(label), "n_positive": int(label.sum()), "models": models, "paired": paired}


def table(document: Mapping[str, Any]) -> str:
    """Return the figures as text."""
    best = document["models"]["oracle"]["ap"]
    lines = [f"{document['n_positive']:,} frauds among {document['n']:,} fresh decisions"]
    for name, one in document["models"].items():
        decoys = " ".join(f"{kind} {share:.1%}" for kind, share in one["decoys"].items())
        calibration = f"score/rate {one['mean_score_over_base_rate']:.2f}"
        lines.append(f"{name:12} {interval(one['ap'], one['ap_ci'])} {one['ap'] / best:5.0%}  {calibration}  {decoys}")
    for pair, one in document["paired"].items():
        lines.append(f"{pair:22} {one['ap_diff']:+.3f} [{one['ci'][0]:+.3f}, {one['ci'][1]:+.3f}]")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
