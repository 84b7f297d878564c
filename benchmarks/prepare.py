"""How fast a log becomes tokens: `python benchmarks/prepare.py [--rows 5000000] [--runs 5]`.

Three ways over the same Parquet log of users, times, types and amounts, each in a process of its own, in turn:

    ours     reading, validation, order, sessions, enrichment, encoding, writing the arrays
    copy     only reading the same file and writing the same arrays
    pandas   the same work, done with care in pandas: one sort, group-wise diff, cumsum and cummax, no apply

Beside them, our way alone: `full` with a category, an entity and three key types too (first seen, elapsed times), and
`one_user`, a million events of one user.

The arrays of `pandas` are compared with ours row by row (an amount within one part in 10^9 of an edge may fall on
either side, and is counted). Prints seconds (wall and CPU), ratios of medians and peak memory.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fraud.config import Config, parse_config
from fraud.contexts import sequences
from fraud.enrich import empty_carry, enrich
from fraud.events import Events
from fraud.logs import read_log
from fraud.parallel import in_order
from fraud.scoring import enrich_spec, user_chunks
from fraud.tokens import Vocabulary, count_fields, encode, fit_vocabulary, vocabulary_from_json

TYPES = ("login", "view_account", "transfer_out", "withdraw", "receive_transfer", "credit_score_check", "add_payee")
CONFIG = '[log]\nevents = "log.parquet"\n[fields]\namount = "amount"\n'
FULL = 'categorical = ["channel"]\nentity = ["payee"]\nkey_types = ["login", "add_payee", "credit_score_check"]\n'
COLUMNS = ("user_id", "ts", "type", "amount")
WAYS = ("ours", "copy", "pandas", "full", "one_user")
GAP_US = 1800 * 10**6
TENTH_US = 10**5


def main() -> None:
    """Print the table, or run one way as a child."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=5_000_000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--way", choices=WAYS)
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    if arguments.way is not None:
        run_one(arguments.way, arguments.folder)
        return
    with tempfile.TemporaryDirectory() as folder:
        for name, n_rows, mean_length in (("log", arguments.rows, 50), ("one_user", 1_000_000, 1_000_000)):
            (Path(folder) / name).mkdir()
            make_log(Path(folder) / name, n_rows, mean_length)
        figures: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
        for _ in range(arguments.runs):
            for way, runs in figures.items():
                log = Path(folder) / ("one_user" if way == "one_user" else "log")
                command = [sys.executable, __file__, "--way", way, "--folder", str(log)]
                runs.append(json.loads(subprocess.run(command, check=True, capture_output=True).stdout))
        show(figures, arguments.rows, compare(Path(folder) / "log"))


def make_log(folder: Path, n_rows: int, mean_length: int) -> None:
    """Write a log in time order and the vocabularies that the encoders are given."""
    rng = np.random.default_rng(0)
    users = np.array([f"customer-{u:07d}" for u in range(n_rows // mean_length)])
    time_us = np.sort(rng.integers(1_700_000_000_000_000, 1_707_776_000_000_000, n_rows))
    amount = np.where(rng.random(n_rows) < 0.5, np.nan, np.round(rng.lognormal(4, 1.2, n_rows), 2))
    table = pa.table(
        {
            "user_id": pa.array(users).take(pa.array(rng.integers(0, len(users), n_rows))),
            "ts": pa.array(time_us).cast(pa.timestamp("us", tz="UTC")),
            "type": pa.array(TYPES).take(pa.array(rng.integers(0, len(TYPES), n_rows))),
            "amount": pa.array(amount, from_pandas=True),
            "channel": pa.array(("app", "web")).take(pa.array(rng.integers(0, 2, n_rows))),
            "payee": pa.array([f"payee-{p}" for p in range(n_rows // 20)]).take(
                pa.array(rng.integers(0, n_rows // 20, n_rows))
            ),
        }
    )
    pq.write_table(table, folder / "log.parquet")
    part = folder / "part"
    part.mkdir()
    pq.write_table(table.slice(0, 200_000), part / "log.parquet")
    for name, config in (("vocabulary", _config(part)), ("full", _config(part, FULL))):
        events = read_log(config).partitions[0]().events
        enriched, _ = enrich(events, empty_carry(events.n_users, enrich_spec(config)), enrich_spec(config))
        counts = count_fields(enriched, {}, np.ones(len(events), dtype=np.bool_))
        (folder / f"{name}.json").write_text(fit_vocabulary(enriched, {}, counts).to_json(), encoding="utf-8")


def run_one(way: str, folder: Path) -> None:
    """Do the work one way and print its seconds and peak memory."""
    name = "full.json" if way == "full" else "vocabulary.json"
    vocabulary = vocabulary_from_json((folder / name).read_text(encoding="utf-8"))
    work = {"ours": ours, "one_user": ours, "full": full, "copy": copy, "pandas": with_pandas}[way]
    if way == "pandas":
        import pandas as pd  # noqa: F401 (loaded before the clock starts, as numpy and pyarrow are)
    wall, cpu = time.perf_counter(), time.process_time()
    work(folder, vocabulary)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    figures = {
        "wall_s": time.perf_counter() - wall,
        "cpu_s": time.process_time() - cpu,
        "peak_mb": usage.ru_maxrss / 1024,
    }
    sys.stdout.write(json.dumps(figures))


def ours(folder: Path, vocabulary: Vocabulary) -> None:
    """Write tokens and sequence starts by the functions that `fraud prepare` and `fraud score` call."""
    _encode_log(folder, _config(folder), vocabulary, "ours")


def full(folder: Path, vocabulary: Vocabulary) -> None:
    """Write the same of a log with more fields."""
    _encode_log(folder, _config(folder, FULL), vocabulary, "full")


def _encode_log(folder: Path, config: Config, vocabulary: Vocabulary, name: str) -> None:
    log = read_log(config)
    with (folder / f"{name}.tokens").open("wb") as tokens_file, (folder / f"{name}.starts").open("wb") as starts_file:

        def encoded(events: Events) -> tuple[np.ndarray, np.ndarray]:
            enriched, _ = enrich(events, empty_carry(events.n_users, enrich_spec(config)), enrich_spec(config))
            return encode(enriched, {}, vocabulary), sequences(enriched, "user").starts_S1[1:]

        for load in log.partitions:
            for tokens_NF, starts_S in in_order(encoded, user_chunks(load().events)):
                tokens_NF.tofile(tokens_file)
                starts_S.tofile(starts_file)


def copy(folder: Path, vocabulary: Vocabulary) -> None:
    """Read the log and write as many bytes as `ours` does."""
    table = pq.read_table(folder / "log.parquet", columns=list(COLUMNS))
    np.zeros((table.num_rows, len(vocabulary.fields)), dtype=np.int16).tofile(folder / "copy.tokens")
    np.zeros(max(table.num_rows // 50, 1), dtype=np.int64).tofile(folder / "copy.starts")


def with_pandas(folder: Path, vocabulary: Vocabulary) -> None:
    """Write the same arrays from a DataFrame."""
    import pandas as pd

    edges = {field.name: np.array(field.values) for field in vocabulary.fields if field.kind == "quantile"}
    frame = pd.read_parquet(folder / "log.parquet", columns=list(COLUMNS))
    frame["user_id"] = frame["user_id"].astype("category")
    frame = frame.sort_values(["user_id", "ts"], kind="stable", ignore_index=True)
    users = frame.groupby("user_id", observed=True, sort=False)
    time_us = frame["ts"].astype("int64").to_numpy()
    gap_us = users["ts"].diff().dt.total_seconds().mul(1e6).round().fillna(-1).astype("int64").to_numpy()
    opens = (gap_us < 0) | (gap_us > GAP_US)
    session = opens.cumsum()
    since_us = time_us - time_us[np.flatnonzero(opens)][session - 1]
    log = np.log1p(frame["amount"])
    grouped = log.groupby(frame["user_id"], observed=True, sort=False)
    known = log.notna().astype("int64")
    count = known.groupby(frame["user_id"], observed=True, sort=False).cumsum() - known
    total = log.fillna(0.0).groupby(frame["user_id"], observed=True, sort=False).cumsum() - log.fillna(0.0)
    highest = grouped.cummax().groupby(frame["user_id"], observed=True, sort=False).ffill()
    highest = highest.groupby(frame["user_id"], observed=True, sort=False).shift()
    square = (log.fillna(0.0) ** 2).groupby(frame["user_id"], observed=True, sort=False).cumsum() - log.fillna(0.0) ** 2
    mean = total / count.where(count > 0)
    spread = np.sqrt((square / count.where(count > 1) - mean**2).clip(lower=0.0))
    id_of = {value: 3 + place for place, value in enumerate(vocabulary.types)}
    columns = {
        "type": frame["type"].map(id_of).fillna(1),
        "amount": _buckets(log, edges["amount"]),
        "amount_over_mean": _buckets(log - mean, edges["amount_over_mean"]),
        "amount_over_max": _buckets(log - highest, edges["amount_over_max"]),
        "amount_deviation": _buckets((log - mean) / spread.clip(lower=0.05), edges["amount_deviation"]),
        "session_start": opens + 3,
        "gap": _octaves(gap_us),
        "since_session": _octaves(since_us),
        "hour": frame["ts"].dt.hour + 3,
    }
    tokens = np.stack([np.asarray(columns[field.name], dtype=np.int16) for field in vocabulary.fields], axis=1)
    tokens.tofile(folder / "pandas.tokens")
    users.size().cumsum().to_numpy().astype(np.int64).tofile(folder / "pandas.starts")


def compare(folder: Path) -> dict[str, int]:
    """Return how many cells and sequence starts differ between ours and pandas."""
    mine, theirs = (np.fromfile(folder / f"{way}.tokens", dtype=np.int16) for way in ("ours", "pandas"))
    lengths = [np.diff(np.fromfile(folder / f"{way}.starts", dtype=np.int64)) for way in ("ours", "pandas")]
    # Ours starts anew in each chunk of users; a negative difference is where one begins.
    same = int((lengths[0][lengths[0] >= 0] > 0).sum())
    return {"cells": len(mine), "cells_that_differ": int((mine != theirs).sum()), "users_compared": same}


def show(figures: dict[str, list[dict[str, float]]], n_rows: int, differing: dict[str, int]) -> None:
    """Print the medians, their ratios, and how the outputs compare."""
    medians = {
        way: {name: statistics.median(run[name] for run in runs) for name in runs[0]} for way, runs in figures.items()
    }
    for way, one in medians.items():
        sys.stdout.write(f"{way:8} {one['wall_s']:7.2f} s wall {one['cpu_s']:7.2f} s CPU {one['peak_mb']:8.0f} MB\n")
    for other, goal in (("copy", "at most 2"), ("pandas", "at most 0.1")):
        ratios = [medians["ours"][name] / medians[other][name] for name in ("wall_s", "cpu_s")]
        sys.stdout.write(f"ours / {other}: {ratios[0]:.2f} wall, {ratios[1]:.2f} CPU (goal: {goal})\n")
    sys.stdout.write(f"{n_rows:,} rows, {len(figures['ours'])} runs each; {differing}\n")


def _config(folder: Path, fields: str = "") -> Config:
    return parse_config(CONFIG + fields, source="benchmark", root=folder)


def _buckets(values: object, edges: np.ndarray) -> np.ndarray:
    column = np.asarray(values, dtype=np.float64)
    return np.where(np.isnan(column), 2, np.searchsorted(edges, column, side="right") + 3)


def _octaves(time_us: np.ndarray) -> np.ndarray:
    tenths = 1 + np.maximum(time_us, 0) / TENTH_US
    octave = np.floor(np.log2(tenths))
    upper_half = tenths >= 1.5 * 2**octave
    return np.where(time_us < 0, 2, 3 + 2 * octave + upper_half)


if __name__ == "__main__":
    main()
