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
from fraud.errors import ConfigError
from fraud.learning import Judged
from fraud.logs import event_ids, read_log
from fraud.metrics import Examples, Metrics, evaluate, paired_ap_difference
from fraud.models import MODELS
from fraud.preparation import Prepared
from pipelines.console import Screen, interval
from pipelines.files import check_new, written_whole
from pipelines.score import score_file
from pipelines.simulate import simulate
from pipelines.tracking import track
from pipelines.train import prepared_for, publish, show_figures, train_prepared

Json = dict[str, Any]  # Any: JSON
_REPORT = "demo.json"


def run_demo(
    out: Path, names: Sequence[str], *, users: int, days: int, seed: int, overwrite: bool, screen: Screen
) -> Json:
    """Return what the comparison gives, and the paths of the bundle and the scores; everything stands below `out`."""
    for name in names:
        if name not in MODELS:
            raise ConfigError(f"--models {name!r}: no such model; known here: {', '.join(sorted(MODELS))}")
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
    work = out / ".work"
    prepared = prepared_for(config, work, screen)
    truth = Truth(config, prepared, log_folder / "oracle.parquet")
    judged, figures = _train_all(names, prepared, config, out, work, screen)
    picked = max(names, key=lambda name: judged[name].choice_ap or 0.0)
    (out / "bundles" / picked).rename(out / "bundle")
    shutil.rmtree(out / "bundles")
    shutil.rmtree(work)
    show_figures(figures, screen)
    oracle = _against_truth(judged, truth, config, screen)
    screen.say(f"validation picks {picked} (AP on the first half of its users); its bundle: {out / 'bundle'}")
    scores = _score(out, log_folder, screen)
    _show_cases(scores, log_folder, screen)
    screen.say(f"look at the runs:  mlflow ui --backend-store-uri sqlite:///{out.resolve()}/mlflow.db")
    document: Json = {
        "models": figures,
        "paired": _paired(judged),
        "oracle": oracle,
        "picked": picked,
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


def _train_all(
    names: Sequence[str], prepared: Prepared, config: Config, out: Path, work: Path, screen: Screen
) -> tuple[dict[str, Judged], dict[str, Json]]:
    judged: dict[str, Judged] = {}
    figures: dict[str, Json] = {}
    for name in names:
        one = replace(config, model=replace(config.model, name=name))
        screen.say(f"training {name} ...")
        judged[name], record = train_prepared(prepared, one, work, screen)
        bundle = publish(judged[name], prepared, one, out / "bundles" / name)
        track(record, bundle.path, one, screen)
        figures[name] = judged[name].test.to_json() | {"fit_s": record.fit_s, "choice_ap": judged[name].choice_ap}
    return judged, figures


def _against_truth(judged: Mapping[str, Judged], truth: Truth, config: Config, screen: Screen) -> Json:
    """Return the figures against the truth, the oracle's and each scorer's as a share of them, and print them."""
    best = _judge(truth.p_fraud_T, truth, next(iter(judged.values())).test_examples, config)
    rows: list[list[str]] = []
    shares: dict[str, float] = {}
    against: dict[str, Json] = {}
    for name, one in judged.items():
        figures = _judge(one.test_examples.score_N, truth, one.test_examples, config)
        shares[name] = (figures.ap or 0.0) / (best.ap or 1.0)
        against[name] = figures.to_json()
        rows.append([name, interval(figures.ap, figures.ap_ci), f"{shares[name]:.0%}"])
    rows.append(["oracle (upper bound)", interval(best.ap, best.ap_ci), "100%"])
    screen.table("The same test examples against the truth of the generator", ["scorer", "AP", "of the oracle"], rows)
    return best.to_json() | {"share_of_oracle": shares, "models": against}


def _judge(score_T: np.ndarray, truth: Truth, examples: Examples, config: Config) -> Metrics:
    return evaluate(
        replace(examples, score_N=score_T, label_N=truth.is_fraud_T),
        alert_budget=config.policy.alert_budget,
        threshold=1.0,
        costs=None,
        seed=config.training.seed,
    )


def _paired(judged: Mapping[str, Judged]) -> Json:
    names = list(judged)
    pairs = [(a, b) for place, a in enumerate(names) for b in names[place + 1 :]]
    paired: Json = {}
    for a, b in pairs:
        difference = paired_ap_difference(judged[a].test_examples, judged[b].test_examples)
        if difference is not None:
            paired[f"{a}|{b}"] = {"ap_diff": difference.diff, "ci": [difference.lo, difference.hi]}
    return paired


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
