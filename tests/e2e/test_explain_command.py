"""`fraud explain` and `fraud score --explain` as they are used, on trained bundles."""

from __future__ import annotations

import re
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from tests.commands import call_fraud, contents, leftovers, refused
from tests.trained import MODELS, Trained, trained_bundles


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return trained_bundles(tmp_path_factory)


@pytest.fixture(scope="module")
def scores(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the scores of the log by the lstm, one row an event, with reasons."""
    out = tmp_path_factory.mktemp("scores") / "events.parquet"
    done = call_fraud("score", trained.folder / "lstm", trained.events, "-o", out, "--per-event", "--explain")
    assert done.exit_code == 0, done.stderr
    return out


def _alerted(scores: Path) -> dict[str, str]:
    """Return the last row of an alert: its user, event, score and reasons."""
    table = pq.read_table(scores)
    return [row for row in table.to_pylist() if row["decision"] in ("review", "block")][-1]


def test_every_alert_has_its_reasons_and_no_other_event_has_any(scores: Path) -> None:
    table = pq.read_table(scores)
    assert table.column_names[-2:] == ["decision", "reasons"]
    rows = table.to_pylist()
    alerts = [row for row in rows if row["decision"] in ("review", "block")]
    assert alerts
    assert all(row["reasons"] is None for row in rows if row["decision"] not in ("review", "block"))
    assert all(row["reasons"] is not None and row["reasons"].count("; ") <= 2 for row in alerts)
    assert any(re.search(r"\d+ (s|min|h|days) before the (transfer out|withdraw)", row["reasons"]) for row in alerts)


def test_the_other_columns_are_those_without_explain(trained: Trained, scores: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain.parquet"
    assert call_fraud("score", trained.folder / "lstm", trained.events, "-o", plain, "--per-event").exit_code == 0
    assert pq.read_table(scores).drop_columns("reasons").equals(pq.read_table(plain))


@pytest.mark.parametrize("model", MODELS)
def test_a_session_has_the_reasons_of_its_worst_decision(trained: Trained, tmp_path: Path, model: str) -> None:
    by_event, by_session = tmp_path / "events.parquet", tmp_path / "sessions.parquet"
    for out, kind in ((by_event, ["--per-event"]), (by_session, [])):
        done = call_fraud("score", trained.folder / model, trained.events, "-o", out, "--explain", *kind)
        assert done.exit_code == 0, done.stderr
    worst: dict[str, tuple[int, float, str]] = {}
    for row in pq.read_table(by_event).to_pylist():
        if row["decision"] in ("review", "block"):
            severity = (int(row["decision"] == "block"), row["score"], row["reasons"])
            held = worst.get(row["session_id"])
            worst[row["session_id"]] = severity if held is None or severity[:2] > held[:2] else held
    assert worst
    for row in pq.read_table(by_session).to_pylist():
        expected = worst.get(row["session_id"])
        assert row["reasons"] == (None if expected is None else expected[2])


def test_an_interrupted_run_goes_on_and_gives_the_same_bytes(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("score", trained.folder / "boosting", trained.events, "--explain")
    whole, cut = tmp_path / "whole.parquet", tmp_path / "cut.parquet"
    assert call_fraud(*command, "-o", whole).exit_code == 0

    def stop(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr("pipelines.score._join", stop)
        assert call_fraud(*command, "-o", cut).exit_code == 1
    assert not cut.exists()
    assert leftovers(tmp_path)
    # A run without reasons must not take up parts that hold them.
    plain = call_fraud("score", trained.folder / "boosting", trained.events, "-o", cut, "--resume")
    assert plain.exit_code == 0, plain.stderr
    assert "reasons" not in pq.read_schema(cut).names
    assert call_fraud(*command, "-o", cut, "--overwrite").exit_code == 0
    assert contents(cut) == contents(whole)


def test_explain_tells_what_score_decided(trained: Trained, scores: Path, tmp_path: Path) -> None:
    alert = _alerted(scores)
    page = tmp_path / "page.html"
    command = ("explain", trained.folder / "lstm", trained.events, "--user", alert["user_id"], "--html", page)
    done = call_fraud(*command, "--json")
    assert done.exit_code == 0, done.stderr
    document = done.document
    assert document["shown"] in [decision["event_id"] for decision in document["explained"]]
    (told,) = [decision for decision in document["explained"] if decision["event_id"] == alert["event_id"]]
    assert told["score"] == pytest.approx(alert["score"], abs=1e-6)
    assert told["decision"] == alert["decision"]
    assert "; ".join(reason["text"] for reason in told["reasons"]) == alert["reasons"]
    assert told["context"][-1]["event_id"] == alert["event_id"]
    strongest = max(event["contribution"] for event in told["context"])
    assert told["reasons"][0]["contribution"] == strongest
    text = page.read_text(encoding="utf-8")
    assert "<script" not in text
    assert "http" not in text.replace("http-equiv", "")
    assert all(reason["text"] in text for reason in told["reasons"])


def test_the_table_shows_the_last_alert(trained: Trained, scores: Path) -> None:
    alert = _alerted(scores)
    done = call_fraud("explain", trained.folder / "lstm", trained.events, "--user", alert["user_id"])
    assert done.exit_code == 0, done.stderr
    for text in (alert["event_id"], "score so far", alert["reasons"].split("; ")[0]):
        assert text in done.stdout


def test_any_event_can_be_asked_for(trained: Trained, scores: Path) -> None:
    first = pq.read_table(scores).slice(0, 1).to_pylist()[0]
    command = ("explain", trained.folder / "boosting", trained.events, "--user", first["user_id"])
    done = call_fraud(*command, "--event", first["event_id"], "--json")
    assert done.exit_code == 0, done.stderr
    assert [len(decision["context"]) for decision in done.document["explained"]] == [1]


def test_who_is_not_in_the_log_is_refused(trained: Trained, scores: Path) -> None:
    command = ("explain", trained.folder / "lstm", trained.events, "--user")
    refused(call_fraud(*command, "nobody"), "--user 'nobody'", "300 users")
    user = _alerted(scores)["user_id"]
    refused(call_fraud(*command, user, "--event", "e-1"), "--event 'e-1'", f"user '{user}'")
    refused(call_fraud(*command, user, "--set", "model.name=gru"), "--config")


def test_a_user_without_decisions_is_told_so(trained: Trained, scores: Path) -> None:
    table = pq.read_table(scores)
    decided = set(table.filter(pc.is_valid(table["decision"]))["user_id"].to_pylist())
    idle = sorted(set(table["user_id"].to_pylist()) - decided)
    assert idle
    refused(
        call_fraud("explain", trained.folder / "lstm", trained.events, "--user", idle[0]),
        "none of", "transfer_out, withdraw", "--event ID",
    )  # fmt: skip


def test_hostile_names_are_shown_as_they_are_and_escaped(trained: Trained, tmp_path: Path) -> None:
    hostile = '[bold]<script>alert("1")</script>&=1+1'
    table = pq.read_table(trained.events).slice(0, 4)
    columns = {name: table[name].to_pylist() for name in table.column_names}
    columns["user_id"] = [hostile] * 4
    columns["type"] = [hostile, hostile, hostile, "transfer_out"]
    columns["ts"] = table["ts"].slice(0, 1).to_pylist() * 4
    events, page = tmp_path / "hostile.parquet", tmp_path / "page.html"
    pq.write_table(type(table).from_pydict(columns, schema=table.schema), events)
    done = call_fraud("explain", trained.folder / "lstm", events, "--user", hostile, "--html", page)
    assert done.exit_code == 0, done.stderr
    assert hostile in done.stdout.splitlines()[0]
    text = page.read_text(encoding="utf-8")
    assert "<script" not in text
    assert "&lt;script&gt;" in text


def test_a_page_that_exists_is_not_replaced(trained: Trained, scores: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text("mine", encoding="utf-8")
    user = _alerted(scores)["user_id"]
    command = ("explain", trained.folder / "lstm", trained.events, "--user", user, "--html", page)
    refused(call_fraud(*command), "--overwrite")
    assert page.read_text(encoding="utf-8") == "mine"
    assert call_fraud(*command, "--overwrite").exit_code == 0
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
