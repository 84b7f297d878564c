"""`fraud models diff` as it is used, on trained bundles."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fraud.config import Config, config_to_toml, load_config
from fraud.decisions import DECISIONS
from fraud.judging import train
from fraud.logs import read_log
from pipelines.diff.side_by_side import N_BEFORE, Period, side_by_side
from tests.commands import Ended, call_fraud, refused
from tests.registered import NAME, registered
from tests.trained import Trained, trained_bundles

Json = dict[str, Any]  # Any: JSON


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return trained_bundles(tmp_path_factory)


def _diff(trained: Trained, a: str | Path, b: str | Path, *options: str | Path) -> Ended:
    given = () if "--config" in options else ("--config", trained.config_file)
    return call_fraud("models", "diff", trained.folder / a, trained.folder / b, *given, *options)


@pytest.fixture(scope="module")
def found(trained: Trained) -> Json:
    """Return what changes if the lstm takes the place of boosting."""
    done = _diff(trained, "boosting", "lstm", "--json")
    assert done.exit_code == 0, done.stderr
    return done.document


def _scored(trained: Trained, model: str, folder: Path) -> pa.Table:
    out = folder / f"{model}.parquet"
    done = call_fraud(
        "score", trained.folder / model, trained.events, "-o", out, "--per-event", "--config", trained.config_file
    )
    assert done.exit_code == 0, done.stderr
    table = pq.read_table(out)
    return table.filter(pa.compute.is_valid(table["decision"])).sort_by("event_id")


def test_it_tells_what_scoring_with_each_bundle_gives(trained: Trained, found: Json, tmp_path: Path) -> None:
    a, b = (_scored(trained, model, tmp_path) for model in ("boosting", "lstm"))
    assert a["event_id"].equals(b["event_id"])
    until = trained.bundle("lstm").metrics["periods"]["valid_until"]
    assert found["since"] == until
    since = np.datetime64(until.removesuffix("Z"))
    is_in = a["ts"].to_numpy() >= since
    pairs = list(zip(a["decision"].filter(is_in).to_pylist(), b["decision"].filter(is_in).to_pylist(), strict=True))
    assert found["decision_events"] == len(pairs)
    assert found["matrix"] == {x: {y: pairs.count((x, y)) for y in DECISIONS} for x in DECISIONS}
    changed = [one != other for one, other in pairs]
    assert found["changed"] == sum(changed) > 0
    users = a["user_id"].filter(is_in).filter(changed)
    assert found["changed_users"] == len(users.unique())
    assert {user["user_id"] for user in found["stricter_users"] + found["milder_users"]} == set(users.to_pylist())
    of_event = {row["event_id"]: row["score"] for row in b.to_pylist()}
    for user in found["stricter_users"]:
        assert user["event"]["score_b"] == pytest.approx(of_event[user["event"]["event_id"]], abs=1e-6)


def test_what_it_is_worth_is_what_evaluate_says(trained: Trained, found: Json) -> None:
    for side, model in (("a", "boosting"), ("b", "lstm")):
        told = call_fraud("evaluate", trained.folder / model, trained.config_file, "--json").document
        assert found["outcome"]["ap"][side] == pytest.approx(told["ap"], abs=1e-6)
        assert found["outcome"]["money_saved"][side] == pytest.approx(told["money_saved"])
        assert found["outcome"]["frauds"] == told["n_positive"]
        assert found["alert_rate"][side] == pytest.approx(told["alert_rate"])
    low, high = found["outcome"]["money_saved"]["ci"]
    assert low <= found["outcome"]["money_saved"]["diff"] <= high


def test_what_is_said_of_an_event_stands_in_the_log(trained: Trained) -> None:
    config, scorer = trained.config, trained.bundle("boosting").scorer
    with closing(read_log(config)) as log:
        found = side_by_side(scorer, scorer, log, config, Period(0, 2**62), progress=lambda done, whole: None)
    past: dict[str, list[str]] = {}
    of_event: dict[str, Json] = {}
    for row in pq.read_table(trained.events).sort_by([("ts", "ascending"), ("event_id", "ascending")]).to_pylist():
        types = past.setdefault(row["user_id"], [])
        of_event[row["event_id"]] = row | {"before": types[::-1][:N_BEFORE]}
        types.append(row["type"])
    facts, sides = found.facts, found.sides
    before_DB = facts.before_B.to_objects().reshape(-1, N_BEFORE)
    types, channels = facts.type.to_objects(), facts.categorical["channel"].to_objects()
    assert len(facts.event_id) == sum(row["type"] in config.decisions.on for row in of_event.values())
    assert sides.amount_D is not None
    for place, event_id in enumerate(facts.event_id.to_pylist()):
        row = of_event[event_id]
        assert found.users[sides.user_D[place]] == row["user_id"]
        assert (types[place], channels[place], sides.amount_D[place]) == (row["type"], row["channel"], row["amount"])
        assert [name for name in before_DB[place] if name is not None] == row["before"]
        assert facts.hour_D[place] == row["ts"].hour


def test_an_alias_and_a_version_name_bundles_of_the_registry(trained: Trained, found: Json, tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    bundles = {model: trained.folder / model for model in ("boosting", "lstm")}
    made = registered(uri, bundles, tmp_path)
    made.registry.promote(made.versions["boosting"], expected_champion=None, reason="a test")
    options = ("--config", trained.config_file, "--tracking-uri", uri, "--name", NAME, "--json")
    done = call_fraud("models", "diff", "champion", made.versions["lstm"].number, *options)
    assert done.exit_code == 0, done.stderr
    assert done.document | {"seconds": 0} == found | {"seconds": 0}
    refused(call_fraud("models", "diff", "champion", "17", *options), "17")


def test_the_same_bundle_changes_nothing(trained: Trained, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    done = _diff(trained, "lstm", "lstm", "--html", page)
    assert done.exit_code == 0, done.stderr
    assert "Nothing changes: A and B decide all" in done.stdout
    assert "┃" not in done.stdout
    assert "Nothing changes" in page.read_text(encoding="utf-8")


def test_the_terminal_shows_who_and_where(trained: Trained, found: Json) -> None:
    done = _diff(trained, "boosting", "lstm")
    assert done.exit_code == 0, done.stderr
    shown = " ".join(done.stdout.split())
    for text in (*found["words"], found["a"]["version"], found["stricter_users"][0]["event"]["event_id"]):
        assert text in shown


def test_two_periods_add_up_to_the_whole(trained: Trained, found: Json) -> None:
    times = pq.read_table(trained.events)["ts"].to_pylist()
    middle = f"{max(times):%Y-%m-%dT00:00:00Z}"
    first = _diff(trained, "boosting", "lstm", "--until", middle, "--json").document
    last = _diff(trained, "boosting", "lstm", "--since", middle, "--json").document
    assert first["until"] == last["since"] == middle
    assert 0 < first["decision_events"] < found["decision_events"]
    for count in ("decision_events", "stricter", "milder"):
        assert first[count] + last[count] == found[count]


def test_a_period_that_was_learned_from_is_said_to_be_one(trained: Trained, found: Json) -> None:
    assert not found["limits"]
    early = _diff(trained, "boosting", "lstm", "--since", "2020-01-01T00:00:00Z", "--json")
    assert early.document["decision_events"] > found["decision_events"]
    assert any("learned from events until" in limit for limit in early.document["limits"])


def test_a_page_that_exists_is_not_replaced(trained: Trained, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text("mine", encoding="utf-8")
    refused(_diff(trained, "boosting", "lstm", "--html", page), "--overwrite")
    assert page.read_text(encoding="utf-8") == "mine"
    assert _diff(trained, "boosting", "lstm", "--html", page, "--overwrite").exit_code == 0
    shown = page.read_text(encoding="utf-8")
    assert shown.startswith("<!doctype html>")
    assert "<script" not in shown
    assert "currentColor" in shown


def test_what_cannot_be_compared_is_refused(trained: Trained) -> None:
    refused(_diff(trained, "lstm", "plain"), "B (", "[log] or [fields]", "plain/config.toml")
    refused(_diff(trained, "lstm", "gru", "--since", "2026-03-01"), "--since", "with a zone")
    refused(_diff(trained, "lstm", "gru", "--until", "1999-01-01T00:00:00Z"), "--until", "after the start")
    empty = trained.log / "empty.csv"
    empty.write_text("user_id,ts,type,event_id,amount,channel,payee,device\n", encoding="utf-8")
    refused(_diff(trained, "lstm", "gru", "--set", "log.events=empty.csv"), "the log holds no row")
    refused(_diff(trained, "lstm", "gru", "--since", "2190-01-01T00:00:00Z"), "--since", "the log ends at")


def test_bundles_with_other_sessions_and_contexts_are_compared_on_one_log(trained: Trained, tmp_path: Path) -> None:
    other = load_config(trained.config_file, ("model.name=boosting", "sessions.max_events=8", 'sessions.gap="5m"'))
    with closing(read_log(other)) as log:
        train(log, other, tmp_path / "other")
    done = _diff(trained, "boosting", tmp_path / "other", "--json")
    assert done.exit_code == 0, done.stderr
    told = call_fraud("evaluate", tmp_path / "other", _written(other, trained.log / "other.toml"), "--json").document
    assert done.document["outcome"]["ap"]["b"] == pytest.approx(told["ap"], abs=1e-6)


def _written(config: Config, path: Path) -> Path:
    path.write_text(config_to_toml(config), encoding="utf-8")
    return path


def test_a_rule_alone_changes_what_it_decides(trained: Trained, tmp_path: Path) -> None:
    text = trained.config_file.read_text(encoding="utf-8")
    rule = '\n[[policy.rules]]\nname = "large"\ndecision = "block"\nwhere = { amount = { at_least = 400 } }\n'
    config = trained.log / "with_rule.toml"
    config.write_text(text + rule, encoding="utf-8")
    assert call_fraud("policy", "apply", trained.folder / "lstm", config, "-o", tmp_path / "ruled").exit_code == 0
    told = _diff(trained, "lstm", tmp_path / "ruled", "--json").document
    assert told["milder"] == 0
    assert told["stricter"] == told["moved"]["newly_blocked"]["n"] > 0
    assert told["outcome"]["ap"]["diff"] == 0
    by_rule = [one for one in told["segments"] if one["field"] == "decided by" and one["name"] == "a rule in B alone"]
    assert not by_rule or by_rule[0]["stricter"] == told["stricter"]
    assert all(user["event"]["score_a"] == user["event"]["score_b"] for user in told["stricter_users"])


def test_without_labels_it_tells_what_changes_and_not_what_it_is_worth(trained: Trained) -> None:
    config = _written(replace(trained.config, labels=None), trained.log / "unlabelled.toml")
    done = _diff(trained, "lstm", "gru", "--config", config, "--json")
    assert done.exit_code == 0, done.stderr
    assert done.document["outcome"] is None
    assert any("Without [labels]" in limit for limit in done.document["limits"])
