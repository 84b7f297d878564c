"""Does padding hide a fraud? `python benchmarks/robustness.py [--users 8000] [--seed 0]`.

A bank is simulated and scorers are trained on it. Then the histories of the test period's story frauds are padded, and
the share of frauds that reach the review threshold (unchanged, fitted on validation) is compared with the plain ones:

    before    64 harmless events right before the story
    between   16 harmless events spread between the story's steps and the decision
    both      both

Harmless are types that no story holds. Each is a copy of one of the user's own earlier events, and comes at the user's
own pace: gaps drawn from the gaps within the user's sessions; what is after an inserted event happens later by as much,
the history before the story earlier. Intervals: 95 %, frauds resampled by user. About four minutes for 8,000 users.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fraud.bundle import load_bundle
from fraud.config import Config, load_config
from fraud.events import Events, IntArray
from fraud.logs import event_ids, read_log
from fraud.scoring import Scorer, Tables, score_log
from fraud.tables import tables_of
from pipelines.compare import compare_log
from pipelines.console import Screen
from pipelines.simulate import simulate

PADDINGS = {"before": (64, 0), "between": (0, 16), "both": (64, 16)}
_SESSION_GAP_US = 30 * 60 * 10**6
_N_RESAMPLES = 1000


class Case(NamedTuple):
    """One fraud: the rows of the user's first event and of the decision, and the story's rows before it."""

    first: int
    decision: int
    steps: IntArray


def main() -> None:
    """Print a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=8000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--models", default="boosting,lstm,transformer,fused")
    parser.add_argument("--jobs", type=int, default=2, help="How many fits at a time.")
    parser.add_argument("--work", type=Path, help="Keep the log and the bundles here, and take up what is there.")
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        work = arguments.work or Path(scratch)
        log = work / "log"
        if not log.exists():
            simulate(log, users=arguments.users, seed=arguments.seed)
        config = load_config(log / "config.toml", [f"training.seed={arguments.seed}", *arguments.set])
        comparison, names = work / "comparison", tuple(arguments.models.split(","))
        if not comparison.exists():
            compare_log(
                config,
                comparison,
                names,
                seeds=1,
                ablate=False,
                overwrite=False,
                resume=False,
                n_processes=arguments.jobs,
                screen=Screen(as_json=True),
            )
        figures = {
            name: recalls(
                load_bundle(comparison / "bundles" / name).scorer, config, log / "oracle.parquet", arguments.seed
            )
            for name in names
        }
    sys.stdout.write((json.dumps(figures, indent=1) if arguments.json else _table(figures)) + "\n")


def recalls(scorer: Scorer, config: Config, oracle: Path, seed: int) -> dict[str, object]:
    """Return the share of story frauds of the test period that are reviewed, plain and padded, and the differences."""
    with closing(read_log(config)) as log:
        ordered = [load() for load in log.partitions]
        assert len(ordered) == 1, "a simulated log of this size is one partition"
        events, ids = ordered[0].events, event_ids(ordered[0])
        tables = tables_of(log, config)
    told = pq.read_table(oracle)
    cases = _cases(events, ids, told)
    harmless = _harmless_types(events, ids, told)
    caught: dict[str, np.ndarray] = {"plain": _caught(scorer, tables, padded(events, cases, (0, 0), harmless, seed))}
    for name, n_events in PADDINGS.items():
        caught[name] = _caught(scorer, tables, padded(events, cases, n_events, harmless, seed))
    user_C = events.user_codes()[[case.decision for case in cases]]
    document: dict[str, object] = {"n_frauds": len(cases), "plain": float(caught["plain"].mean())}
    for name in PADDINGS:
        difference_C = caught[name].astype(float) - caught["plain"]
        document[name] = {
            "recall": float(caught[name].mean()),
            "difference": float(difference_C.mean()),
            "ci": _interval(difference_C, user_C, seed),
        }
    return document


def padded(events: Events, cases: list[Case], n_events: tuple[int, int], harmless: np.ndarray, seed: int) -> Events:
    """Return one pseudo-user for each case: its history up to the decision, with harmless events put in."""
    rng = np.random.default_rng([seed, *n_events])
    row_parts: list[IntArray] = []
    time_parts: list[IntArray] = []
    for case in cases:
        rows, times = _padded_case(events, case, n_events, harmless, rng)
        row_parts.append(rows)
        time_parts.append(times)
    rows_N = np.concatenate(row_parts)
    counts = [len(rows) for rows in row_parts]
    return Events(
        users=np.array([f"case-{c}" for c in range(len(cases))], dtype=object),
        user_starts=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        time_us=np.concatenate(time_parts),
        has_clock=events.has_clock,
        zone=events.zone,
        type=events.type.take(rows_N),
        amount=None if events.amount is None else events.amount[rows_N],
        numeric={name: column[rows_N] for name, column in events.numeric.items()},
        categorical={name: column.take(rows_N) for name, column in events.categorical.items()},
        entity={name: column.take(rows_N) for name, column in events.entity.items()},
        session=None,
        row=rows_N,
    )


def _padded_case(
    events: Events, case: Case, n_events: tuple[int, int], harmless: np.ndarray, rng: np.random.Generator
) -> tuple[IntArray, IntArray]:
    """Return (rows, times) of one padded history; gaps stay what they were but for the inserted events' own."""
    rows = np.arange(case.first, case.decision + 1)
    gaps = np.diff(events.time_us[rows], prepend=events.time_us[case.first])
    own_gaps = gaps[1:][gaps[1:] < _SESSION_GAP_US]
    sources = rows[np.isin(events.type.codes_N[rows], harmless)]
    if len(own_gaps) == 0 or len(sources) == 0:
        return rows, events.time_us[rows]
    n_before, n_between = n_events
    story_starts = int(case.steps[0]) - case.first
    places = np.concatenate([
        np.full(n_before, story_starts),
        np.sort(rng.integers(story_starts + 1, len(rows), n_between)),
    ]).astype(np.int64)  # fmt: skip
    padded_rows = np.insert(rows, places, rng.choice(sources, len(places)))
    padded_gaps = np.insert(gaps, places, rng.choice(own_gaps, len(places)))
    if n_before:
        # The idle time before the story belongs before the padding, and the story follows it at the user's pace.
        first, last = story_starts, story_starts + n_before
        padded_gaps[first], padded_gaps[last] = padded_gaps[last], padded_gaps[first]
    times = np.cumsum(padded_gaps)
    return padded_rows, times - times[-1] + events.time_us[case.decision]


def _cases(events: Events, ids: pa.Array, told: pa.Table) -> list[Case]:
    """Return the frauds of the last 15 % of the decisions that a story leads to."""
    told = told.append_column("row", pc.index_in(told["event_id"].combine_chunks(), value_set=ids))
    row_of = {event_id: row for row, event_id in enumerate(ids.to_pylist())}
    time_us = events.time_us[told["row"].to_numpy()]
    told = told.filter(pa.array(time_us >= np.quantile(time_us, 0.85)))
    told = told.filter(pc.and_(told["is_fraud"], pc.is_valid(told["story"])))
    user_N, cases = events.user_codes(), list[Case]()
    for decision, story in zip(told["row"].to_pylist(), told["story_event_ids"].to_pylist(), strict=True):
        steps = np.sort([row for row in (row_of[event_id] for event_id in story) if row < decision])
        if len(steps):
            cases.append(Case(int(events.user_starts[user_N[decision]]), decision, steps))
    return cases


def _harmless_types(events: Events, ids: pa.Array, told: pa.Table) -> np.ndarray:
    """Return the codes of the types that stand in no fraud's story and are no decision."""
    frauds = told.filter(told["is_fraud"])
    used = pa.concat_arrays(
        [pc.list_flatten(frauds["story_event_ids"]).combine_chunks(), told["event_id"].combine_chunks()]
    )
    rows = pc.index_in(used, value_set=ids).to_numpy()
    return np.setdiff1d(np.arange(len(events.type.values)), events.type.codes_N[rows])


def _caught(scorer: Scorer, tables: Tables, events: Events) -> np.ndarray:
    """Return bool [C]: whether each pseudo-user's last event is reviewed or blocked."""
    decision_N = np.concatenate([scored.decision_N for scored in score_log(scorer, events, tables)])
    return decision_N[events.user_starts[1:] - 1] > 0


def _interval(difference_C: np.ndarray, user_C: np.ndarray, seed: int) -> list[float]:
    _, user_C = np.unique(user_C, return_inverse=True)
    n_U, sum_U = np.bincount(user_C), np.bincount(user_C, weights=difference_C)
    drawn = np.random.default_rng(seed).integers(0, len(n_U), (_N_RESAMPLES, len(n_U)))
    return np.percentile(sum_U[drawn].sum(axis=1) / n_U[drawn].sum(axis=1), [2.5, 97.5]).tolist()


def _table(figures: Mapping[str, Mapping[str, object]]) -> str:
    lines = [f"{'scorer':12} {'plain':>6}" + "".join(f" {name:>24}" for name in PADDINGS)]
    for scorer, one in figures.items():
        cells = [f"{scorer:12} {one['plain']:6.3f}"]
        for name in PADDINGS:
            padding = one[name]
            assert isinstance(padding, dict)
            low, high = padding["ci"]
            cells.append(f"{padding['recall']:6.3f} ({low:+.3f} .. {high:+.3f})")
        lines.append(" ".join(f"{cell:>24}" if place else cell for place, cell in enumerate(cells)))
    return "\n".join(lines)


if __name__ == "__main__":
    main()
