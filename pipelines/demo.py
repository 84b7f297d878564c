"""`fraud demo`: simulate a bank, train scorers side by side, bundle the one validation picks, score, show cases."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fraud.config import Config, load_config
from fraud.judging import Judged
from fraud.lineup import lineup_of
from fraud.logs import event_ids, read_log
from fraud.metrics import Examples, Metrics, evaluate
from fraud.models import MODELS
from fraud.preparation import Prepared
from fraud.ranking import n_within_budget
from pipelines.compare import compare_prepared, show_contest, track_contest, write_contest
from pipelines.console import Screen, interval
from pipelines.files import check_new, written_whole
from pipelines.score import score_file
from pipelines.simulate import simulate
from pipelines.train import prepared_for

Json = dict[str, Any]  # Any: JSON
_REPORT = "demo.json"
_DECOYS = ("order_decoy", "timing_decoy", "honest_same")


def run_demo(
    out: Path,
    names: Sequence[str],
    *,
    users: int,
    days: int,
    seed: int,
    n_processes: int,
    overwrite: bool,
    screen: Screen,
) -> Json:
    """Return what the comparison gives, and the paths of the bundle and the scores; everything stands below `out`.

    names: scorers, or "all".
    """
    names = tuple(sorted(MODELS)) if tuple(names) == ("all",) else names
    check_new(out, overwrite=overwrite, mark=_REPORT)
    started = time.monotonic()
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    (out / _REPORT).write_text("{}\n", encoding="utf-8")  # marks the folder as the demo's own from the start
    log_folder = out / "log"
    summary = simulate(log_folder, users=users, days=days, seed=seed)
    screen.say(
        f"simulated {summary['n_events']:,} events of {summary['n_users']:,} users over {days} days: "
        f"{summary['n_fraud']:,} of {summary['n_decisions']:,} decisions are fraud"
    )
    config = load_config(
        log_folder / "config.toml", [f"training.seed={seed}", f"tracking.uri=sqlite:///{out.resolve()}/mlflow.db"]
    )
    lineup = lineup_of(names, config, seeds=1)
    work = out / ".work"
    prepared = prepared_for(config, work, screen)
    screen.say(f"training {', '.join(lineup.fitted)} ...")
    contest = compare_prepared(prepared, config, lineup, seeds=1, work=work, n_processes=n_processes, screen=screen)
    document = write_contest(contest, prepared, config, out / "comparison")
    truth = Truth(config, prepared, log_folder / "oracle.parquet")
    track_contest(contest, prepared, config, out / "comparison", screen)
    # Without a fraud among the first validation users nothing is picked; a bundle of the first scorer shows the way.
    picked = contest.comparison.picked or lineup.names[0]
    shutil.copytree(out / "comparison" / document["bundles"][picked], out / "bundle")
    shutil.rmtree(work)
    show_contest(contest.comparison, screen)
    judged = {name: by_seed[0] for name, by_seed in contest.judged.items()}
    oracle = _against_truth(judged, truth, config, screen)
    screen.say(f"the bundle of {picked}: {out / 'bundle'}")
    scores = _score(out, log_folder, screen)
    _show_cases(scores, log_folder, screen)
    screen.say(f"look at the comparison:  {out / 'comparison' / 'comparison.html'}")
    screen.say(f"look at the runs:  mlflow ui --backend-store-uri sqlite:///{out.resolve()}/mlflow.db")
    document |= {
        "oracle": oracle,
        "bundle": str(out / "bundle"),
        "scores": str(out / "scores.parquet"),
        "seconds": round(time.monotonic() - started, 1),
    }
    with written_whole(out / _REPORT) as aside:
        aside.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return document


class Truth:
    """What the generator knows of each test example of a prepared set."""

    def __init__(self, config: Config, prepared: Prepared, oracle: Path) -> None:
        log = read_log(config)
        ids = pa.concat_arrays([event_ids(load()) for load in log.partitions])
        table = pq.read_table(oracle, columns=["event_id", "p_fraud", "is_fraud", "kind"])
        tests = ids.take(pa.array(np.flatnonzero(prepared.tests_N)))
        table = table.take(pc.index_in(tests, value_set=table["event_id"].combine_chunks()))
        self.p_fraud_T = table["p_fraud"].to_numpy()
        self.is_fraud_T = table["is_fraud"].to_numpy().astype(np.int8)
        self.kind_T = np.array(table["kind"].to_pylist(), dtype=object)

    def alert_rates(self, score_T: np.ndarray, budget: float) -> dict[str, float]:
        """Return the share of each kind of decoy among the highest scores that the budget reaches."""
        alerted_T = np.zeros(len(score_T), dtype=np.bool_)
        alerted_T[np.argsort(-score_T, kind="stable")[: n_within_budget(budget, len(score_T))]] = True
        return {kind: float(alerted_T[self.kind_T == kind].mean()) for kind in _DECOYS if (self.kind_T == kind).any()}


def _against_truth(judged: Mapping[str, Judged], truth: Truth, config: Config, screen: Screen) -> Json:
    """Return the figures against the truth, the oracle's and each scorer's as a share of them, and print them."""
    best = _judge(truth.p_fraud_T, truth, next(iter(judged.values())).test_examples, config)
    rows: list[list[str]] = []
    shares: dict[str, float] = {}
    against: dict[str, Json] = {}
    scores = {name: one.test_examples.score_N for name, one in judged.items()}
    for name, score_T in {**scores, "oracle (upper bound)": truth.p_fraud_T}.items():
        figures = best
        if name in judged:
            figures = _judge(score_T, truth, judged[name].test_examples, config)
            shares[name] = (figures.ap or 0.0) / (best.ap or 1.0)
        decoys = truth.alert_rates(score_T, config.policy.alert_budget)
        if name in judged:
            against[name] = figures.to_json() | {"decoy_alert_rates": decoys}
        share = f"{shares.get(name, 1.0):.0%}"
        rows.append([name, interval(figures.ap, figures.ap_ci), share, *(_share(decoys.get(kind)) for kind in _DECOYS)])
    screen.table(
        "The same test examples against the truth of the generator; decoys: share alerted at the budget",
        ["scorer", "AP", "of the oracle", "order decoys", "timing decoys", "honest twins"],
        rows,
    )
    return best.to_json() | {"share_of_oracle": shares, "models": against}


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _judge(score_T: np.ndarray, truth: Truth, examples: Examples, config: Config) -> Metrics:
    return evaluate(
        replace(examples, score_N=score_T, label_N=truth.is_fraud_T),
        alert_budget=config.policy.alert_budget,
        threshold=1.0,
        costs=None,
        seed=config.training.seed,
    )


def _score(out: Path, log_folder: Path, screen: Screen) -> pa.Table:
    """Return the scores by event; the score file by session is written beside them."""
    config = load_config(log_folder / "config.toml")
    events = str(log_folder / "events.parquet")
    for name, per_event in (("scores.parquet", False), ("scores-per-event.parquet", True)):
        score_file(
            out / "bundle",
            events,
            out / name,
            config=config,
            per_event=per_event,
            overwrite=False,
            resume=False,
            screen=screen if not per_event else Screen(as_json=True),
        )
    return pq.read_table(out / "scores-per-event.parquet")


def _show_cases(scores: pa.Table, log_folder: Path, screen: Screen) -> None:
    """Print a victim and a mule that were caught and a decoy that was let pass, event by event, in the test period."""
    oracle = pq.read_table(log_folder / "oracle.parquet")
    place = pc.index_in(oracle["event_id"].combine_chunks(), value_set=scores["event_id"].combine_chunks())
    for name in ("ts", "score", "decision"):
        oracle = oracle.append_column(name, scores[name].take(place))
    joined = oracle.sort_by("ts").to_pylist()
    tests = joined[int(0.85 * len(joined)) :]
    alerts = ("review", "block")
    wanted = (
        ("a victim, caught", lambda c: c["story"] == "victim" and c["is_fraud"] and c["decision"] in alerts),
        ("a mule, caught", lambda c: c["story"] == "mule" and c["is_fraud"] and c["decision"] in alerts),
        (
            "an order decoy, let pass: the same events in a harmless order",
            lambda c: c["kind"] == "order_decoy" and not c["is_fraud"] and c["decision"] == "allow",
        ),
    )
    log = pq.read_table(log_folder / "events.parquet", columns=["event_id", "ts", "type", "amount"])
    for title, is_wanted in wanted:
        case = next((case for case in tests if is_wanted(case)), None)
        if case is None:
            screen.say(f"{title}: none in the test period of this simulation")
            continue
        screen.say(f"\n{title}: user {case['user_id']}, score {case['score']:.3f}, {case['decision']}")
        for line in _told(case, log):
            screen.say(f"  {line}")


def _told(case: Mapping[str, Any], log: pa.Table) -> list[str]:
    """Return one line an event of a story, with the time since the event before."""
    rows = log.filter(pc.is_in(log["event_id"], value_set=pa.array(case["story_event_ids"]))).sort_by("ts").to_pylist()
    lines: list[str] = []
    before = None
    for row in rows:
        pace = "" if before is None else f"{_words((row['ts'] - before).total_seconds())} later: "
        amount = "" if row["amount"] is None else f" of {row['amount']:,.2f}"
        lines.append(f"{pace}{row['type'].replace('_', ' ')}{amount}")
        before = row["ts"]
    return lines


def _words(seconds: float) -> str:
    for size, name in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {name}"
    return f"{seconds:.0f} s"
