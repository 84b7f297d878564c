"""A backtest lives what the single commands would have done week by week, and knows nothing of what came later."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from fraud.bundle import Bundle
from fraud.config import Config, config_to_toml, load_config
from fraud.errors import ConfigError, DataError, FraudError
from fraud.instants import DAY_US, instant_text, instant_us
from pipelines.backtest import steps as backtest_steps
from pipelines.backtest.rules import Watch, newest_alarms
from pipelines.backtest.run import backtest
from pipelines.backtest.steps import STEPS, Turn, stamp
from pipelines.challenge import make_challenger
from pipelines.console import Screen
from pipelines.monitor.run import ShortReference
from pipelines.registry import open_registry
from pipelines.simulate import simulate
from pipelines.tracking import tracking_uri
from tests.commands import call_fraud, contents

WEEK_US = 7 * DAY_US
START_US = instant_us("start", "2025-03-10T00:00:00Z")
N_WEEKS = 4
END_US = START_US + N_WEEKS * WEEK_US
# The gate is wide and the models are small, so that some challengers pass and some do not.
_SMALL = (
    "model.name=boosting",
    "model.trees=20",
    "sessions.max_events=16",
    "retrain.positives=25",
    'retrain.promote_if="ap >= champion - 0.15"',
    "policy.alert_budget=0.04",
)


@dataclass(frozen=True, slots=True)
class Lived:
    """A log, and the backtest of two rules on it."""

    config: Config
    config_file: Path
    out: Path
    document: dict[str, Any]


@pytest.fixture(scope="module")
def lived(tmp_path_factory: pytest.TempPathFactory) -> Lived:
    folder = tmp_path_factory.mktemp("lived")
    simulate(folder / "log", users=300, days=100, seed=11, fraud_rate=0.05)
    _take_back(folder / "log" / "labels.parquet")
    config = load_config(folder / "log" / "config.toml", _SMALL)
    config_file = folder / "log" / "small.toml"
    config_file.write_text(config_to_toml(config), encoding="utf-8")
    return Lived(config, config_file, folder / "out", _backtest(config, folder / "out", rules=("never", "weekly")))


def _take_back(path: Path) -> None:
    """Correct every third fraud that was known at the start, in the third week."""
    labels = pq.read_table(path)
    early = labels.filter(_is_before(labels["known_at"], START_US))
    taken_back = early.take(list(range(0, len(early), 3)))
    corrections = pa.table(
        {
            "event_id": taken_back["event_id"],
            "fraud": pa.repeat(0, len(taken_back)),
            "known_at": pa.repeat(START_US + 16 * DAY_US, len(taken_back)).cast(labels.schema.field("known_at").type),
        }
    )
    pq.write_table(pa.concat_tables([labels, corrections.cast(labels.schema)]), path)


def _backtest(
    config: Config,
    out: Path,
    *,
    rules: tuple[str, ...],
    start_us: int = START_US,
    n_weeks: int = N_WEEKS,
    resume: bool = False,
    watch: Watch | None = None,
) -> dict[str, Any]:
    return backtest(
        config,
        out,
        start_us=start_us,
        end_us=start_us + n_weeks * WEEK_US,
        every_us=WEEK_US,
        rules=rules,
        overwrite=False,
        resume=resume,
        screen=Screen(as_json=True),
        watch=watch or _silence,
    )


def _silence(champion: Bundle, config: Config, until_us: int, screen: Screen) -> tuple[str, ...]:
    return ()


def _weeks() -> list[int]:
    return [START_US + place * WEEK_US for place in range(N_WEEKS)]


def _until(path: Path, column: str, until_us: int, into: Path) -> Path:
    """Return a copy of a file as it stood at a time."""
    table = pq.read_table(path)
    pq.write_table(table.filter(_is_before(table[column], until_us)), into)
    return into


def _is_before(times: pa.ChunkedArray, time_us: int) -> pa.ChunkedArray:
    return pc.less(times.cast(pa.timestamp("us", "UTC")).cast(pa.int64()), time_us)


def test_a_backtest_equals_a_loop_of_the_single_commands(lived: Lived, tmp_path: Path) -> None:
    """retrain as of each Monday; at the end of the week `score` of the files as they stood then, by the champion."""
    log = lived.config_file.parent
    registry = open_registry(tracking_uri(lived.config), lived.config.tracking.model_name)
    seen: set[str] = set()
    for at_us, step in zip(_weeks(), lived.document["steps"], strict=True):
        as_of = f'split.as_of="{instant_text(at_us)}"'
        ended = call_fraud("retrain", lived.config_file, "--set", as_of, "--json")
        assert ended.exit_code in (0, 3), ended.stderr
        turn = step["rules"]["weekly"]
        said = ended.document
        assert (turn["verdict"], turn["reason"]) == (said["verdict"], said["reason"])
        assert turn["challenger"] == (said["challenger"] or {}).get("bundle")
        assert turn["gate"] == said["gate"]
        seen.add(said["verdict"])
        champion = registry.champion()
        assert champion is not None
        assert turn["champion"] == champion.bundle
        until_us = at_us + WEEK_US
        events = _until(log / "events.parquet", "ts", until_us, tmp_path / f"events-{at_us}.parquet")
        labels = _until(log / "labels.parquet", "known_at", until_us, tmp_path / f"labels-{at_us}.parquet")
        scores = tmp_path / f"scores-{at_us}.parquet"
        bundle = registry.fetch(champion, tmp_path / "bundles")
        options = ("--per-event", "--config", lived.config_file, "--set", f'labels.path="{labels}"')
        assert call_fraud("score", bundle, events, "-o", scores, *options).exit_code == 0
        week = pq.read_table(scores).filter(pc.field("ts") >= pa.scalar(at_us).cast(pa.timestamp("us", "UTC")))
        week = week.filter(pc.is_valid(week["decision"]))
        decided = pq.read_table(lived.out / STEPS / f"{stamp(at_us)}.parquet")
        both = decided.join(week, "event_id")
        assert len(both) == len(decided) == len(week) > 0
        assert both["weekly_decision"].to_pylist() == both["decision"].to_pylist()
        assert both["weekly_score"].to_pylist() == pytest.approx(both["score"].to_pylist(), abs=1e-6)
    assert seen == {"promoted", "refused"}, "other settings would show more"


def test_what_came_later_changes_nothing_of_what_was_lived(lived: Lived, tmp_path: Path) -> None:
    """On files that end soon after two weeks, these are lived as on files that go on; only fewer frauds are known."""
    log, ends_us = lived.config_file.parent, START_US + 2 * WEEK_US + DAY_US
    _until(log / "events.parquet", "ts", ends_us, tmp_path / "events.parquet")
    _until(log / "labels.parquet", "known_at", ends_us, tmp_path / "labels.parquet")
    shorter = replace(lived.config, root=tmp_path)
    document = _backtest(shorter, tmp_path / "out", rules=("never", "weekly"), n_weeks=2)
    for at_us, short, long in zip(_weeks()[:2], document["steps"], lived.document["steps"][:2], strict=True):
        for rule in ("never", "weekly"):
            assert {name: short["rules"][rule][name] for name in Turn._fields} == {
                name: long["rules"][rule][name] for name in Turn._fields
            }
        made, wanted = (pq.read_table(out / STEPS / f"{stamp(at_us)}.parquet") for out in (tmp_path / "out", lived.out))
        assert made.drop_columns("fraud").equals(wanted.drop_columns("fraud"))
    assert document["n_frauds"] < sum(step["n_frauds"] for step in lived.document["steps"][:2])
    assert not any(step["is_settled"] for step in document["steps"])
    assert "still to come for 2 of 2 steps" in document["limits"][0]


def test_the_rule_alarm_retrains_when_the_monitor_says_so(lived: Lived, tmp_path: Path) -> None:
    heard: list[tuple[str, str | None]] = []

    def watch(champion: Bundle, config: Config, until_us: int, screen: Screen) -> tuple[str, ...]:
        assert config.split.as_of == instant_text(until_us)
        heard.append((champion.version, config.split.as_of))
        return ("amounts are 100 times as high",) if len(heard) == 2 else ()

    document = _backtest(lived.config, tmp_path / "out", rules=("alarm",), watch=watch)
    turns = [step["rules"]["alarm"] for step in document["steps"]]
    assert [turn["verdict"] for turn in turns] == ["promoted", "waited", turns[2]["verdict"], "waited"]
    assert [turn["alarms"] for turn in turns] == [[], [], ["amounts are 100 times as high"], []]
    assert turns[2]["challenger"] == lived.document["steps"][2]["rules"]["weekly"]["challenger"]
    assert [champion for champion, _ in heard] == [turn["champion"] for turn in turns[:3]]
    assert "amounts are 100 times as high" in (tmp_path / "out" / "backtest.html").read_text(encoding="utf-8")


def test_a_first_model_that_the_rule_alarm_cannot_watch_is_refused_before_any_step(
    lived: Lived, tmp_path: Path
) -> None:
    """The log begins less than three weeks before the end of the first model's validation."""
    log, start_us = lived.config_file.parent, START_US - 3 * WEEK_US
    events = pq.read_table(log / "events.parquet")
    is_early = _is_before(events["ts"], instant_us("since", "2025-01-10T00:00:00Z"))
    pq.write_table(events.filter(pc.invert(is_early)), tmp_path / "events.parquet")
    shutil.copy(log / "labels.parquet", tmp_path)
    config = replace(lived.config, root=tmp_path, retrain=replace(lived.config.retrain, positives=10))
    out = tmp_path / "out"
    says = "the rule alarm cannot watch the first model: bundle .* has 2 whole weeks; .* a later --from, or --rules"
    with pytest.raises(ConfigError, match=says):
        _backtest(config, out, rules=("never", "alarm"), start_us=start_us, n_weeks=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["events.parquet", "labels.parquet"]
    document = _backtest(config, out, rules=("never",), start_us=start_us, n_weeks=1)
    assert document["steps"][0]["rules"]["never"]["verdict"] == "promoted"


def test_a_later_champion_that_cannot_be_watched_raises_no_alarm_and_is_told(lived: Lived, tmp_path: Path) -> None:
    def watch(champion: Bundle, config: Config, until_us: int, screen: Screen) -> tuple[str, ...]:
        if until_us == START_US + WEEK_US:
            raise ShortReference("its reference has 2 whole weeks")
        return ()

    document = _backtest(lived.config, tmp_path / "out", rules=("alarm",), n_weeks=3, watch=watch)
    turns = [step["rules"]["alarm"] for step in document["steps"]]
    assert [turn["verdict"] for turn in turns] == ["promoted", "waited", "waited"]
    assert [turn["unwatched"] for turn in turns] == [None, "its reference has 2 whole weeks", None]
    (limit,) = [limit for limit in document["limits"] if "could not watch" in limit]
    assert "before 1 of 3 steps" in limit
    assert limit in (tmp_path / "out" / "backtest.html").read_text(encoding="utf-8")


def test_an_empty_log_is_refused_in_words(lived: Lived, tmp_path: Path) -> None:
    log = lived.config_file.parent
    pq.write_table(pq.read_table(log / "events.parquet").slice(0, 0), tmp_path / "events.parquet")
    shutil.copy(log / "labels.parquet", tmp_path)
    with pytest.raises(DataError, match=r"events\.parquet: the log holds no event; expected"):
        _backtest(replace(lived.config, root=tmp_path), tmp_path / "out", rules=("never",))


def test_a_full_disk_costs_one_step(lived: Lived, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was lived before stays, nothing stands under the final name, and --resume ends with the same bytes."""
    out = tmp_path / "out"
    written: list[Path] = []
    write = pq.write_table

    def fills(table: pa.Table, where: Path, **options: str) -> None:
        written.append(where)
        if len(written) == 3:
            raise OSError(28, "No space left on device", str(where))
        write(table, where, **options)

    with monkeypatch.context() as patch:
        patch.setattr(pq, "write_table", fills)
        with pytest.raises(OSError, match="No space left"):
            _backtest(lived.config, out, rules=("never", "weekly"))
    assert [path.name for path in tmp_path.iterdir()] == [".out.work"]
    with pytest.raises(ConfigError, match="--rules differ from those of the unfinished run"):
        _backtest(lived.config, out, rules=("never", "monthly"), resume=True)
    made: list[str | None] = []

    def make(config: Config, *others: Any) -> Any:
        made.append(config.split.as_of)
        return make_challenger(config, *others)

    monkeypatch.setattr(backtest_steps, "make_challenger", make)
    _backtest(lived.config, out, rules=("never", "weekly"), resume=True)
    assert made == [instant_text(_weeks()[3])], "the third challenger stood there already"
    assert contents(out) == contents(lived.out)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_monitor_is_asked_about_the_week_before(lived: Lived, tmp_path: Path) -> None:
    """For a week all amounts come in cents, after the first champion was made."""
    log = lived.config_file.parent
    events = pq.read_table(log / "events.parquet")
    is_faulty = pc.and_not(_is_before(events["ts"], START_US + WEEK_US), _is_before(events["ts"], START_US))
    cents = pc.if_else(is_faulty, pc.multiply(events["amount"], 100.0), events["amount"])
    place = events.column_names.index("amount")
    pq.write_table(events.set_column(place, "amount", cents), tmp_path / "events.parquet")
    shutil.copy(log / "labels.parquet", tmp_path)
    config = replace(lived.config, root=tmp_path)
    document = _backtest(config, tmp_path / "out", rules=("alarm",), n_weeks=2, watch=newest_alarms)
    first, second = (step["rules"]["alarm"] for step in document["steps"])
    assert (first["alarms"], first["verdict"]) == ([], "promoted")
    assert "amount" in " ".join(second["alarms"])
    assert second["verdict"] in ("promoted", "refused")
    assert document["rules"]["alarm"]["n_alarms"] == 1


def test_a_source_of_labels_that_is_held_back_refuses_as_retrain_does(lived: Lived, tmp_path: Path) -> None:
    """In the first week the one source reports 300 honest events, and nobody is there to look at them."""
    log = lived.config_file.parent
    labels = pq.read_table(log / "labels.parquet")
    honest = pq.read_table(log / "events.parquet")["event_id"].slice(0, 300)
    known_at = pa.array([START_US + DAY_US] * 300).cast(labels.schema.field("known_at").type)
    flood = pa.table({"event_id": honest, "fraud": [1] * 300, "known_at": known_at}, schema=labels.schema)
    sent = pa.concat_tables([labels, flood])
    pq.write_table(sent.append_column("source", pa.repeat("app", len(sent))), tmp_path / "labels.parquet")
    shutil.copy(log / "events.parquet", tmp_path)
    assert lived.config.labels is not None
    config = replace(lived.config, root=tmp_path, labels=replace(lived.config.labels, source="source"))
    document = _backtest(config, tmp_path / "out", rules=("weekly",), n_weeks=2)
    first, second = (step["rules"]["weekly"] for step in document["steps"])
    assert (second["verdict"], second["reason"]) == ("refused", "labels_held_back")
    assert second["text"].startswith("source app sent 3")
    assert second["champion"] == first["champion"]
    assert any("nobody was there to accept it: weekly" in limit for limit in document["limits"])


def test_labels_in_the_log_give_the_same_weeks(lived: Lived, tmp_path: Path) -> None:
    """The reports as columns of the log: null where nobody reported, which counts as honest once the delay is over."""
    log = lived.config_file.parent
    reports = pq.read_table(log / "labels.parquet").filter(pc.field("fraud") == 1)  # a column holds no corrections
    events = pq.read_table(log / "events.parquet").join(reports, "event_id")
    events = events.set_column(events.column_names.index("fraud"), "fraud", pc.fill_null(events["fraud"], 0))
    pq.write_table(events, tmp_path / "events.parquet")
    assert lived.config.labels is not None
    labels = replace(lived.config.labels, path=None, key=())
    config = replace(lived.config, root=tmp_path, labels=labels)
    document = _backtest(config, tmp_path / "out", rules=("never", "weekly"), n_weeks=2)
    for made, wanted in zip(document["steps"], lived.document["steps"][:2], strict=True):
        assert (made["n_examples"], made["n_frauds"]) == (wanted["n_examples"], wanted["n_frauds"])
        for rule, one in made["rules"].items():
            assert [one[name] for name in ("verdict", "reason", "gate")] == [
                wanted["rules"][rule][name] for name in ("verdict", "reason", "gate")
            ]
            assert one["recall_at_budget"] == pytest.approx(wanted["rules"][rule]["recall_at_budget"])
            assert one["money_saved"] == pytest.approx(wanted["rules"][rule]["money_saved"])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"start_us": END_US}, "expected a time after --from"),
        ({"end_us": END_US + 40 * WEEK_US}, "the log ends at"),
        ({"every_us": 0}, "expected a duration above 0"),
        ({"rules": ("never", "daily")}, "expected some of never, weekly, monthly, alarm"),
        ({"rules": ("never", "never")}, "each once"),
        ({"start_us": START_US - 8 * WEEK_US}, "--from is too early for a first model"),
    ],
)
def test_what_cannot_be_lived_is_refused(lived: Lived, tmp_path: Path, options: dict[str, Any], says: str) -> None:
    asked: dict[str, Any] = {"start_us": START_US, "end_us": END_US, "every_us": WEEK_US, "rules": ("never",)}
    with pytest.raises(FraudError, match=says):
        backtest(
            lived.config,
            tmp_path / "out",
            **(asked | options),
            overwrite=False,
            resume=False,
            screen=Screen(as_json=True),
        )
    assert not list(tmp_path.iterdir())


def test_a_backtest_that_exists_is_kept(lived: Lived) -> None:
    before = contents(lived.out)
    with pytest.raises(ConfigError, match="exists; --overwrite replaces it"):
        _backtest(lived.config, lived.out, rules=("never",))
    with pytest.raises(ConfigError, match="no unfinished run is there to resume"):
        _backtest(lived.config, lived.out, rules=("never",), resume=True)
    assert contents(lived.out) == before
