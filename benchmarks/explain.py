"""What explanations cost, and whether they find the planted story: `python benchmarks/explain.py [--users 8000]`.

A bank is simulated, an lstm and a boosting scorer are trained on it. Cost: CPU time per explanation of decisions with a
context of 20 events, batched, one thread. Worth: on the caught frauds of the test period, the share of the k events
that add most to the logit (k = min(3, story events before the decision), the decision left out) that belong to the
story, by story; for the lstm also by integrated gradients. About two minutes on two idle cores.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from safetensors.numpy import load_file

from fraud.bundle import Bundle, load_bundle
from fraud.config import load_config
from fraud.decisions import ALLOW
from fraud.enrich import Carry, empty_carry
from fraud.events import Events, ObjectArray
from fraud.explain import Explained, explain
from fraud.gradients import integrated_gradients, unknown_tokens
from fraud.judging import train
from fraud.logs import event_ids, read_log
from fraud.models.network import build_network, with_weights
from fraud.scoring import Scored, Tables, enrich_spec, risk_of, score_events
from fraud.splits import time_cuts
from fraud.tables import tables_of
from fraud.tokens import encode
from pipelines.simulate import simulate

N_CONTEXT = 20
N_TIMED = 200


@dataclass(frozen=True, slots=True)
class Setting:
    """A simulated log, scored by one bundle."""

    bundle: Bundle
    events: Events
    ids: ObjectArray
    before: Carry
    tables: Tables
    scored: Scored


@dataclass(frozen=True, slots=True)
class Case:
    """A caught fraud: its row, the rows of its story before it, and which story it is."""

    row: int
    story_rows: frozenset[int]
    story: str


def main() -> None:
    """Print the figures of both scorers, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--users", type=int, default=8000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        simulate(Path(folder) / "log", users=arguments.users, seed=arguments.seed)
        figures = {name: _figures(Path(folder), name, arguments.seed) for name in ("lstm", "boosting")}
    if arguments.json:
        sys.stdout.write(json.dumps(figures, indent=1) + "\n")
        return
    for name, found in figures.items():
        sys.stdout.write(f"{name}\n" + "".join(f"  {key:45s} {value}\n" for key, value in found.items()))


def _figures(folder: Path, name: str, seed: int) -> dict[str, float | str]:
    setting, cases = _setting(folder, name, seed)
    rows = np.array([case.row for case in cases], dtype=np.int64)
    started = time.process_time()
    explained = _explain(setting, rows)
    cost_ms = (time.process_time() - started) * 1e3 / len(rows)
    found: dict[str, float | str] = {
        "caught frauds with a story": len(cases),
        "CPU ms per explanation of 20 events": round(_cost_of_20_ms(setting), 2),
        f"CPU ms of these ({np.diff(explained.starts_D1).mean():.0f} events each)": round(cost_ms, 2),
        "largest difference from the scored logit": float(
            np.abs(explained.logit_D - setting.scored.logit_N[rows]).max()
        ),
        "top-k in the story, event unknown": _shares(cases, explained, explained.contribution_C),
    }
    if name == "lstm":
        gradients_C = _gradients(setting, explained, folder / name)
        is_own_C = explained.row_C == np.repeat(rows, np.diff(explained.starts_D1))
        agreement = np.corrcoef(explained.contribution_C[~is_own_C], gradients_C[~is_own_C])[0, 1]
        found["top-k in the story, integrated gradients"] = _shares(cases, explained, gradients_C)
        found["correlation of the two"] = round(float(agreement), 3)
    return found


def _setting(folder: Path, name: str, seed: int) -> tuple[Setting, list[Case]]:
    config = load_config(folder / "log" / "config.toml", [f"training.seed={seed}", f"model.name={name}"])
    with closing(read_log(config)) as log:
        train(log, config, folder / name)
        bundle = load_bundle(folder / name)
        tables = tables_of(log, config)
        ordered = log.partitions[0]()
        test_from_us = time_cuts(config.split, log.time_us).valid_until_us
    ids = event_ids(ordered).to_numpy(zero_copy_only=False)
    before = empty_carry(ordered.events.n_users, enrich_spec(config))
    scored, _ = score_events(bundle.scorer, ordered.events, before, tables)
    setting = Setting(bundle, ordered.events, ids, before, tables, scored)
    row_of = {event_id: row for row, event_id in enumerate(ids.tolist())}
    cases: list[Case] = []
    for truth in pq.read_table(folder / "log" / "oracle.parquet").to_pylist():
        row = row_of[truth["event_id"]]
        story = frozenset(row_of[event_id] for event_id in truth["story_event_ids"]) - {row}
        is_caught = scored.decision_N[row] > ALLOW and ordered.events.time_us[row] >= test_from_us
        if truth["is_fraud"] and truth["story"] is not None and story and is_caught:
            cases.append(Case(row, story, truth["story"]))
    return setting, sorted(cases, key=lambda case: case.row)


def _explain(setting: Setting, rows: np.ndarray) -> Explained:
    return explain(setting.bundle.scorer, setting.scored.enriched, setting.before, setting.tables, rows)


def _cost_of_20_ms(setting: Setting) -> float:
    """Return the least CPU time of three runs over events that are the 20th of their users, one explanation a user."""
    rows = np.flatnonzero(setting.scored.enriched.index_N == N_CONTEXT - 1)[:N_TIMED]
    user_N = setting.events.user_codes()
    last = int(user_N[rows[-1]]) + 1
    events = setting.events.take_users(0, last)
    before = empty_carry(last, enrich_spec(setting.bundle.scorer.config))
    scored, _ = score_events(setting.bundle.scorer, events, before, setting.tables)
    few = Setting(setting.bundle, events, setting.ids, before, setting.tables, scored)
    return min(_cpu_s(lambda: _explain(few, rows)) for _ in range(3)) * 1e3 / len(rows)


def _cpu_s(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def _shares(cases: list[Case], explained: Explained, adds_C: np.ndarray) -> str:
    """Return the share of the top-k events that belong to the story, of all cases and by story."""
    hits: dict[str, list[int]] = {}
    for d, case in enumerate(cases):
        context = slice(int(explained.starts_D1[d]), int(explained.starts_D1[d + 1]) - 1)
        k = min(3, len(case.story_rows))
        top = explained.row_C[context][np.argsort(-adds_C[context], kind="stable")[:k]]
        of_story = hits.setdefault(case.story, [0, 0])
        of_story[0] += len(case.story_rows & set(top.tolist()))
        of_story[1] += k
    whole = sum(hit for hit, _ in hits.values()) / sum(n for _, n in hits.values())
    return f"{whole:.3f} ({', '.join(f'{story} {hit / n:.3f}' for story, (hit, n) in sorted(hits.items()))})"


def _gradients(setting: Setting, explained: Explained, folder: Path) -> np.ndarray:
    scorer, enriched = setting.bundle.scorer, setting.scored.enriched
    vocabulary = scorer.model.vocabulary
    network = build_network(vocabulary.field_shapes, scorer.config.model, dropout=0.0, base_rate=0.5, seed=0)
    network = with_weights(network, load_file(folder / "weights.safetensors")).eval()
    tokens_NF = encode(enriched, risk_of(setting.events, setting.tables), vocabulary)
    windows = [
        tokens_NF[explained.row_C[first:last]].astype(np.int64)
        for first, last in zip(explained.starts_D1[:-1], explained.starts_D1[1:], strict=True)
    ]
    return np.concatenate([integrated_gradients(network, w, unknown_tokens(w, vocabulary)) for w in windows])


if __name__ == "__main__":
    main()
