"""What a backtest makes of its steps: when a rule is due, what was found, with which interval, in which words."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fraud.calibration import Calibration
from fraud.config import Config, SplitConfig, parse_config
from fraud.decisions import Policy
from fraud.entities import RISK_NAMES
from fraud.errors import ConfigError
from fraud.events import FloatArray
from fraud.instants import DAY_US, instant_text, instant_us
from fraud.logs import read_log
from fraud.metrics import N_RESAMPLES, Examples, evaluate
from fraud.ranking import ranking_figures, user_weights
from fraud.scoring import Scorer
from fraud.tokens import Risk
from pipelines.backtest.figures import figures_document, share_within_budget
from pipelines.backtest.page import backtest_page
from pipelines.backtest.pictures import backtest_pictures
from pipelines.backtest.rules import is_due
from pipelines.backtest.run import steps_between
from pipelines.backtest.steps import PROMOTED, WAITED, Step, Turn, decisions_of, stamp
from pipelines.backtest.words import difference, limits, verdict

START_US = instant_us("start", "2026-03-30T00:00:00Z")  # a Monday
BUDGET = 0.2
CONFIG = parse_config(
    f'[log]\n[fields]\namount = "amount"\n[labels]\ncolumn = "fraud"\n[policy]\nalert_budget = {BUDGET}\n'
    "costs = { review = 3.0 }\n",
    source="test",
    root=Path(),
)
RULES = ("never", "weekly", "monthly")
Json = dict[str, Any]


@pytest.mark.parametrize(
    ("rule", "every_days", "due"),
    [
        ("never", 7, ""),
        ("alarm", 7, ""),  # the monitor says when
        ("weekly", 7, "30 06 13 20 27 04"),
        ("weekly", 3, "30 08 14 20 29 05"),  # the first step on or after each seventh day
        ("monthly", 7, "06 04"),
        ("monthly", 1, "01 01"),
        ("weekly", 14, "30 13 27"),
    ],
)
def test_a_rule_is_due_by_the_calendar(rule: str, every_days: int, due: str) -> None:
    every_us = every_days * DAY_US
    steps = steps_between(START_US, START_US + 38 * DAY_US, every_us)
    days = [
        instant_text(step.at_us)[8:10]
        for step in steps
        if is_due(rule, step.at_us, start_us=START_US, every_us=every_us)
    ]
    assert " ".join(days) == due


def test_the_last_step_ends_at_the_end() -> None:
    steps = steps_between(START_US, START_US + 10 * DAY_US, 7 * DAY_US)
    assert steps == (
        Step(START_US, START_US + 7 * DAY_US),
        Step(START_US + 7 * DAY_US, START_US + 10 * DAY_US),
    )
    with pytest.raises(ConfigError, match="expected a time after --from 2026-03-30T00:00:00Z"):
        steps_between(START_US, START_US, DAY_US)


@given(
    st.lists(st.tuples(st.integers(0, 6), st.integers(0, 1)), min_size=1, max_size=60),
    st.floats(0.01, 0.99),
)
def test_the_share_within_the_budget_is_that_of_the_ranking_figures(rows: list[tuple[int, int]], budget: float) -> None:
    score_N = np.array([score for score, _ in rows]) / 10
    label_N = np.array([label for _, label in rows], dtype=np.int8)
    share_N = share_within_budget(score_N, budget)
    figures = ranking_figures(score_N, label_N, budget=budget)
    assert share_N.sum() == pytest.approx(np.floor(budget * len(rows) + 1e-9))
    if label_N.any():
        assert (share_N * label_N).sum() / label_N.sum() == pytest.approx(figures.recall_R[0])


# Device d is told of on day 2, and cleared on day 20; a payment of day 12 is told of on day 25.
EVENTS = """\
event_id,user_id,type,ts,device,amount
e1,u1,pay,2026-01-01T12:00:00Z,d,10
e2,u2,pay,2026-01-11T12:00:00Z,d,20
e3,u2,pay,2026-01-12T12:00:00Z,c,30
e4,u3,look,2026-01-12T12:00:00Z,d,
e5,u3,pay,2026-01-19T12:00:00Z,d,50
"""
REPORTS = """\
event_id,fraud,known_at
e1,1,2026-01-02T00:00:00Z
e1,0,2026-01-20T00:00:00Z
e3,1,2026-01-25T00:00:00Z
"""
STEP = Step(instant_us("at", "2026-01-10T00:00:00Z"), instant_us("until", "2026-01-17T00:00:00Z"))


class KnownFrauds:
    """A model whose logit is how many frauds were known of the device in the 28 days before."""

    kind = "boosting"
    vocabulary = None

    def logits(self, enriched: Any, risk: Risk, *, wanted_N: Any = None) -> FloatArray:
        return risk["device"][:, RISK_NAMES.index("known_frauds_28d")]


def _week_of_devices(folder: Path, reports: str, *, level: str, key: str) -> pa.Table:
    """Return the examples of the step with their scores, made of a log as it stood at the end of the step."""
    (folder / "events.csv").write_text(EVENTS, encoding="utf-8")
    (folder / "labels.csv").write_text(reports, encoding="utf-8")
    text = (
        '[log]\nevents = "events.csv"\nevent_id = "event_id"\n[fields]\namount = "amount"\nentity = ["device"]\n'
        f'[labels]\npath = "labels.csv"\nkey = ["{key}"]\ncolumn = "fraud"\nlevel = "{level}"\n'
        'known_at = "known_at"\ndelay = "7d"\n[decisions]\non = ["pay"]\n'
    )
    config = parse_config(text, source="test", root=folder)
    policy = Policy(review_at=0.7, block_at=1.0, alert_budget=0.1, block_budget=0.0, costs=None)
    calibration = Calibration(kind="shift", slope=1.0, shift=0.0, n_positive=1, n_negative=1)
    model: Any = KnownFrauds()
    scorer = Scorer(config=config, model=model, calibration=calibration, policy=policy, version="known")
    by_then = replace(config, split=SplitConfig(as_of=instant_text(STEP.until_us)))
    with closing(read_log(config)) as whole, closing(read_log(by_then)) as log:
        made = decisions_of({"known": scorer}, log, config, STEP, label_table=whole.label_table)
    scored = made.by_bundle["known"]
    return made.examples.append_column("score", scored["score"]).append_column("decision", scored["decision"])


def test_a_step_is_scored_by_what_was_known_and_judged_by_what_is_known_now(tmp_path: Path) -> None:
    week = _week_of_devices(tmp_path, REPORTS, level="event", key="event_id")
    assert week["event_id"].to_pylist() == ["e2", "e3"], "decisions of the step alone"
    one, none = 1 / (1 + np.exp(-1)), 0.5
    assert week["score"].to_pylist() == pytest.approx([one, none]), "what was told of d was cleared later"
    assert week["decision"].to_pylist() == ["review", "allow"]
    assert week["fraud"].to_pylist() == [0, 1], "e3 was told of long after"
    assert week["amount"].to_pylist() == [20, 30]


def test_with_labels_of_users_each_that_was_active_is_one_example(tmp_path: Path) -> None:
    reports = "user_id,fraud,known_at\nu2,1,2026-01-25T00:00:00Z\nu3,1,2026-01-25T00:00:00Z\n"
    week = _week_of_devices(tmp_path, reports, level="user", key="user_id")
    assert week.select(["event_id", "fraud"]).to_pylist() == [{"event_id": "e3", "fraud": 1}], "u3 only looked"


class Made:
    """Steps of made-up decisions: weekly has a better champion from the second step on, monthly never another one."""

    def __init__(self, folder: Path, *, n_steps: int = 3, with_amounts: bool = True) -> None:
        """Write the files."""
        self.steps = steps_between(START_US, START_US + n_steps * 7 * DAY_US, 7 * DAY_US)
        self.paths = [folder / f"{stamp(step.at_us)}.parquet" for step in self.steps]
        self.tables: list[pa.Table] = []
        for place, path in enumerate(self.paths):
            rng = np.random.default_rng(place)
            label_N = (rng.random(400) < 0.1).astype(np.int8)
            old_N, noise_N = 0.5 * label_N + rng.random(400), rng.random(400)
            scores = dict.fromkeys(RULES, old_N) | ({"weekly": 1.5 * label_N + noise_N} if place else {})
            columns: Json = {
                "event_id": [f"e{place}-{row}" for row in range(400)],
                "user_id": [f"u{user}" for user in rng.integers(0, 80, 400)],
                "ts": pa.array(np.full(400, self.steps[place].at_us)).cast(pa.timestamp("us", "UTC")),
                "fraud": label_N,
            }
            columns |= (
                {"amount": np.where(rng.random(400) < 0.1, np.nan, 100 * rng.random(400))} if with_amounts else {}
            )
            for rule, score_N in scores.items():
                columns[f"{rule}_score"] = score_N / 3
                columns[f"{rule}_decision"] = np.where(score_N / 3 > 0.35, "review", "allow")
            turns = {rule: _turn(rule, place)._asdict() for rule in RULES}
            self.tables.append(pa.table(columns))
            pq.write_table(self.tables[-1].replace_schema_metadata({"turns": json.dumps(turns)}), path)

    def document(self, config: Config = CONFIG) -> Json:
        """Return the document of these steps, the last of which is not settled."""
        figures = figures_document(self.steps, self.paths, RULES, config)
        for step, cells in zip(self.steps, figures["steps"], strict=True):
            cells |= {"at": instant_text(step.at_us), "until": instant_text(step.until_us)}
            cells["is_settled"] = step is not self.steps[-1]
        n = {name: sum(cells[name] for cells in figures["steps"]) for name in ("n_examples", "n_frauds")}
        document: Json = {"from": instant_text(START_US), "to": instant_text(self.steps[-1].until_us), "every": "7d"}
        document |= {"model": "lstm", "gate": "ap >= champion <b>", "alert_budget": BUDGET} | n | figures
        return document | {"verdict": verdict(document), "limits": limits(document)}


def _turn(rule: str, place: int) -> Turn:
    is_new = place == 0 or (rule == "weekly" and place == 1)
    since = START_US + (7 * DAY_US if rule == "weekly" and place else 0)
    alarms = ["<script> follows login"] if rule == "monthly" and place == 2 else []
    return Turn(
        verdict=PROMOTED if is_new else WAITED,
        reason="gate_passed" if is_new else "not_due",
        text="every clause holds" if is_new else "nothing was due",
        challenger=f"bundle{place}" if is_new else None,
        gate=[],
        alarms=alarms,
        unwatched=None,
        champion="bundle1" if rule == "weekly" and place else "bundle0",
        champion_since=instant_text(since),
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(tmp_path_factory.mktemp("steps"))


@pytest.fixture(scope="module")
def document(made: Made) -> Json:
    return made.document()


def test_the_figures_of_a_step_are_those_of_evaluate(made: Made, document: Json) -> None:
    table = made.tables[1]
    examples = Examples(
        score_N=table["weekly_score"].to_numpy(),
        label_N=table["fraud"].to_numpy(),
        user_N=np.arange(len(table)),
        amount_N=table["amount"].to_numpy(),
    )
    wanted = evaluate(examples, alert_budget=BUDGET, threshold=0.35, costs=None, n_resamples=2)
    step = document["steps"][1]["rules"]["weekly"]
    assert step["recall_at_budget"] == pytest.approx(wanted.recall_at_budget)
    assert step["precision_at_budget"] == pytest.approx(wanted.precision_at_budget)
    assert step["recall"] == pytest.approx(wanted.recall_at_threshold)
    assert step["alert_rate"] == pytest.approx(wanted.alert_rate)
    assert step["ap"] == pytest.approx(wanted.ap)
    assert wanted.money_saved is not None
    assert step["money_saved"] == pytest.approx(wanted.money_saved - 3.0 * step["n_alerts"])
    assert step["money_saved"] + 3.0 * step["n_alerts"] + step["money_lost"] == pytest.approx(step["fraud_amount"])


def test_totals_count_each_step_by_its_own_budget(document: Json) -> None:
    for rule, total in document["rules"].items():
        steps = [step["rules"][rule] for step in document["steps"]]
        n_frauds = [step["n_frauds"] for step in document["steps"]]
        found = sum(step["recall_at_budget"] * n for step, n in zip(steps, n_frauds, strict=True))
        assert total["recall_at_budget"] == pytest.approx(found / sum(n_frauds))
        assert total["money_saved"] == pytest.approx(sum(step["money_saved"] for step in steps))
        assert total["recall_at_budget_ci"][0] < total["recall_at_budget"] < total["recall_at_budget_ci"][1]
    counts = {rule: [one["n_promoted"], one["n_refused"], one["n_alarms"]] for rule, one in document["rules"].items()}
    assert counts == {"never": [0, 0, 0], "weekly": [1, 0, 0], "monthly": [0, 0, 1]}


def test_a_difference_is_taken_on_the_same_resamples_of_users_over_all_steps(made: Made, document: Json) -> None:
    """The slow obvious way: draw users, count what each of their decisions of any week adds, for both rules."""
    whole = pa.concat_tables(made.tables)
    user_N = whole["user_id"].combine_chunks().dictionary_encode().indices.to_numpy()
    label_N = whole["fraud"].to_numpy()
    inside = {
        rule: np.concatenate([share_within_budget(t[f"{rule}_score"].to_numpy(), BUDGET) for t in made.tables])
        for rule in ("never", "weekly")
    }
    ranks = np.unique(user_N, return_inverse=True)[1]
    differences: list[float] = []
    for weight_UR in user_weights(ranks.max() + 1, n_resamples=N_RESAMPLES, seed=0, block=1):
        weight_N = weight_UR[ranks, 0]
        recall = {
            rule: (weight_N * of_rule * label_N).sum() / (weight_N * label_N).sum() for rule, of_rule in inside.items()
        }
        differences.append(recall["never"] - recall["weekly"])
    paired = document["paired"]["never|weekly"]["recall_at_budget"]
    assert paired["ci"] == pytest.approx(np.percentile(differences, [2.5, 97.5]))
    assert difference(document, "weekly", "never", "recall_at_budget") == pytest.approx(
        (-paired["diff"], -paired["ci"][1], -paired["ci"][0])
    )


def test_the_verdict_says_what_is_clear_and_what_never_differed(document: Json) -> None:
    never, weekly, monthly = document["verdict"]
    assert never.startswith("Never retraining finds ")
    assert "points more [+" in weekly
    assert "chance" not in weekly.split(";")[0]
    assert monthly.endswith("it never had another champion.")


def test_the_limits_are_said(document: Json) -> None:
    assert document["limits"] == [
        "Labels are still to come for 1 of 3 steps, from 2026-04-13 on: frauds that nobody has reported yet "
        "count as honest."
    ]


def test_a_champion_that_could_not_be_watched_is_a_limit(document: Json) -> None:
    steps = [
        step | {"rules": step["rules"] | {"alarm": step["rules"]["monthly"] | {"unwatched": reason}}}
        for step, reason in zip(document["steps"], (None, "its reference is short", None), strict=True)
    ]
    assert limits(document | {"steps": steps})[1:] == [
        "The rule alarm could not watch its champion before 1 of 3 steps, which counts as no alarm; first before "
        "2026-04-06: its reference is short."
    ]


def test_the_page_tells_everything_and_runs_nothing(document: Json) -> None:
    drawn = backtest_pictures(document)
    assert [one.name for one in drawn] == ["recall", "money"]
    page = backtest_page(document, drawn)
    for text in (*document["verdict"], *document["limits"], "every clause holds", "2026-04-06, weekly: promoted"):
        assert text in page
    assert "<script>" not in page
    assert "<b>" not in page.replace("<figcaption><b>", "")


def test_without_amounts_nothing_is_said_of_money(tmp_path: Path) -> None:
    document = Made(tmp_path, with_amounts=False).document()
    assert document["rules"]["weekly"]["money_saved"] is None
    assert "money_saved" not in document["paired"]["never|weekly"]
    assert [one.name for one in backtest_pictures(document)] == ["recall"]
    assert "saves" not in " ".join(document["verdict"])
    json.dumps(document, allow_nan=False)
