"""`fraud monitor`: a log counts as training counted it, what is planted is named, what cannot be judged is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from fraud.bundle import Bundle
from fraud.config import Config, load_config
from fraud.errors import BundleError, ConfigError, DataError
from fraud.instants import DAY_US
from fraud.judging import train
from fraud.logs import read_log
from fraud.monitoring.reference import read_reference
from fraud.monitoring.weekly import WEEK_US, Weekly, add_weekly, from_json, to_json
from fraud.tokens import Vocabulary
from pipelines.console import Screen
from pipelines.monitor.run import monitor, watch
from pipelines.monitor.watched_log import count_log
from pipelines.simulate import simulate

QUIET = Screen(as_json=True)
Edit = Callable[[pa.Table, np.ndarray], pa.Table]


class Bank:
    """A bank of 400 users over 18 weeks, and a bundle trained on the first 14."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        simulate(folder / "log", users=400, days=126, seed=5, fraud_rate=0.05)
        settings = ["model.name=boosting", "model.trees=20", "sessions.max_events=16"]
        cuts = ["split.train_until=2025-03-24T00:00:00Z", "split.valid_until=2025-04-14T00:00:00Z"]
        self.config = load_config(folder / "log" / "config.toml", [*settings, *cuts])
        with closing(read_log(self.config)) as log:
            self.bundle: Bundle = train(log, self.config, folder / "bundle")
        self.events = pq.read_table(folder / "log" / "events.parquet")
        self.from_us = read_reference(self.bundle.reference, self.vocabulary, self.config).until_us

    @property
    def vocabulary(self) -> Vocabulary:
        """Return the bundle's vocabulary."""
        return self.bundle.scorer.model.vocabulary

    def with_events(self, path: Path, edit: Edit) -> Path:
        """Return a log whose events since a week after the reference's end are edited."""
        late_N = self.events["ts"].cast(pa.int64()).to_numpy() >= self.from_us + WEEK_US
        pq.write_table(edit(self.events, late_N), path)
        return path


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> Bank:
    return Bank(tmp_path_factory.mktemp("bank"))


def replaced(events: pa.Table, name: str, column: pa.Array | pa.ChunkedArray) -> pa.Table:
    return events.set_column(events.column_names.index(name), name, column)


def in_cents(events: pa.Table, late_N: np.ndarray) -> pa.Table:
    amount_N = np.where(late_N, 100.0, 1.0) * events["amount"].to_numpy()
    return replaced(events, "amount", pa.array(amount_N, mask=np.isnan(amount_N)))


def with_new_type(events: pa.Table, late_N: np.ndarray) -> pa.Table:
    is_new_N = late_N & pc.equal(events["type"], "view_account").to_numpy()
    return replaced(events, "type", pc.if_else(pa.array(is_new_N), "<b>tour</b>", events["type"]))


def test_a_log_is_counted_as_training_counted_it(bank: Bank) -> None:
    reference = read_reference(bank.bundle.reference, bank.vocabulary, bank.config)
    with closing(read_log(bank.config)) as log:
        counted = count_log(
            bank.bundle.scorer, log, bank.config, reference, reference.inputs.starts_us_W, bank.from_us, QUIET
        )
    seen = json.loads(json.dumps(to_json(counted.inputs)))
    assert seen == bank.bundle.reference["inputs"]


def test_the_scores_of_the_reference_are_those_that_a_monitor_sees(bank: Bank) -> None:
    reference = read_reference(bank.bundle.reference, bank.vocabulary, bank.config)
    starts_us_W = reference.scores.starts_us_W
    with closing(read_log(bank.config)) as log:
        seen = count_log(bank.bundle.scorer, log, bank.config, reference, starts_us_W, bank.from_us * 2, QUIET).scores
    scored_W = reference.scores.shares["score"].n_WC[:, 0]
    whole_W = scored_W == seen.shares["score"].n_WC[:, 0]  # validation leaves out what was not settled
    assert whole_W.sum() >= 2
    for name in ("score", "alert"):
        assert np.array_equal(seen.shares[name].k_WC[whole_W], reference.scores.shares[name].k_WC[whole_W])


def test_figures_of_a_log_read_in_parts_are_those_of_the_whole(bank: Bank, tmp_path: Path) -> None:
    reference = read_reference(bank.bundle.reference, bank.vocabulary, bank.config)
    is_first_N = pc.less(bank.events["user_id"], "u000150")
    parts: list[Weekly] = []
    for name, is_here_N in (("first", is_first_N), ("second", pc.invert(is_first_N))):
        pq.write_table(bank.events.filter(is_here_N), tmp_path / f"{name}.parquet")
        with closing(read_log(bank.config, events=str(tmp_path / f"{name}.parquet"))) as log:
            parts.append(
                count_log(
                    bank.bundle.scorer, log, bank.config, reference, reference.inputs.starts_us_W, bank.from_us, QUIET
                ).inputs
            )
    whole = add_weekly(parts)
    for name, one in reference.inputs.shares.items():
        assert np.array_equal(whole.shares[name].k_WC, one.k_WC)
        assert np.array_equal(whole.shares[name].n_WC, one.n_WC)
    for name, mean in reference.inputs.means.items():
        assert whole.means[name].sum_WC == pytest.approx(mean.sum_WC, abs=0.01)
    assert {n: v.tolist() for n, v in whole.volumes.items()} == bank.bundle.reference["inputs"]["volumes"]


def test_figures_are_read_back_as_they_were_written(bank: Bank) -> None:
    reference = read_reference(bank.bundle.reference, bank.vocabulary, bank.config)
    assert to_json(from_json(to_json(reference.inputs), like=reference.inputs)) == to_json(reference.inputs)


def test_a_quiet_log_raises_no_alarm(bank: Bank) -> None:
    watched = watch(bank.bundle, bank.config, from_us=None, until_us=None, screen=QUIET)
    assert len(watched.starts_us_W) == 4
    assert watched.alarms == ()


def test_cents_are_named_with_the_week_they_began(bank: Bank, tmp_path: Path) -> None:
    path = bank.with_events(tmp_path / "cents.parquet", in_cents)
    watched = watch(bank.bundle, bank.config, from_us=None, until_us=None, screen=QUIET, events=str(path))
    (alarm,) = watched.alarms
    assert alarm.onset_us == bank.from_us + WEEK_US
    assert re.match(r"since 21 April 2025, amounts of .* are 100x as high: another unit\?", alarm.text)
    assert watched.standing_alarms == (alarm,)
    assert watched.new_alarms == ()
    newest = watch(
        bank.bundle,
        bank.config,
        from_us=None,
        until_us=bank.from_us + 2 * WEEK_US,
        screen=QUIET,
        events=str(path),
    )
    assert [one.onset_us for one in newest.new_alarms] == [alarm.onset_us]


def test_what_is_over_is_no_alarm_on_terminal_page_or_in_json(
    bank: Bank, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def for_a_week(events: pa.Table, late_N: np.ndarray) -> pa.Table:
        return in_cents(events, late_N & (events["ts"].cast(pa.int64()).to_numpy() < bank.from_us + 2 * WEEK_US))

    path, html = bank.with_events(tmp_path / "week.parquet", for_a_week), tmp_path / "page.html"
    document = monitor(bank.folder / "bundle", str(path), config=bank.config, html=html, screen=Screen(as_json=False))
    printed = " ".join(capsys.readouterr().err.split())
    (alarm,) = document["alarms"]
    assert (document["standing"], alarm["is_standing"]) == (0, False)
    assert alarm["text"].startswith("over: from 21 April 2025 to 28 April 2025, amounts of ")
    assert "ALARM" not in printed
    assert "no alarm stands" in printed
    assert "over: from 21 April 2025 to 28 April 2025, amounts of " in printed
    assert "<p>Over: from 21 April 2025 to 28 April 2025; seen first in" in html.read_text(encoding="utf-8")


def test_a_new_type_is_named_and_a_page_and_metrics_are_written(bank: Bank, tmp_path: Path) -> None:
    path = bank.with_events(tmp_path / "new.parquet", with_new_type)
    html, prometheus = tmp_path / "page.html", tmp_path / "fraud.prom"
    document = monitor(
        bank.folder / "bundle",
        str(path),
        config=bank.config,
        html=html,
        prometheus=prometheus,
        screen=QUIET,
    )
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    assert document["standing"] == 1
    assert "events are of type `<b>tour</b>`, never seen before" in document["alarms"][0]["text"]
    page = html.read_text(encoding="utf-8")
    assert "&lt;b&gt;tour&lt;/b&gt;" in page
    assert "<b>tour" not in page
    assert not re.findall(r"(?:src|href)=\"(?!#)", page)
    sample = re.compile(r'[a-z_]+\{([a-z_]+="(?:[^"\\\n]|\\["\\n])*",?)+\} -?[0-9.e+-]+')
    lines = prometheus.read_text(encoding="utf-8").splitlines()
    assert all(line.startswith("# ") or sample.fullmatch(line) for line in lines)
    assert any(re.fullmatch(r"fraud_monitor_standing_alarms\{.*\} 1", line) for line in lines)
    with pytest.raises(ConfigError, match=r"page\.html: exists"):
        monitor(bank.folder / "bundle", str(path), config=bank.config, html=html, screen=QUIET)


def test_without_labels_nothing_is_said_of_frauds(bank: Bank) -> None:
    unlabelled = replace(bank.config, labels=None)
    watched = watch(bank.bundle, unlabelled, from_us=None, until_us=None, screen=QUIET)
    assert not [one for one in watched.judged.series if one.statistic == "performance"]
    (fraud,) = [one for one in watched.judged.series if one.statistic == "fraud"]
    assert np.isnan(fraud.observed_W).all()


def test_nothing_after_the_end_is_read(bank: Bank, tmp_path: Path) -> None:
    until_us = bank.from_us + 2 * WEEK_US
    late_N = bank.events["ts"].cast(pa.int64()).to_numpy() >= until_us
    pq.write_table(bank.events.filter(pa.array(~late_N)), tmp_path / "cut.parquet")
    whole = watch(bank.bundle, bank.config, from_us=None, until_us=until_us, screen=QUIET)
    cut = watch(
        bank.bundle, bank.config, from_us=None, until_us=until_us, screen=QUIET, events=str(tmp_path / "cut.parquet")
    )
    assert np.array_equal(whole.judged.p_W, cut.judged.p_W)


def test_what_cannot_be_judged_is_refused(bank: Bank) -> None:
    def look(bundle: Bundle, config: Config, *, from_us: int | None = None, until_us: int | None = None) -> None:
        watch(bundle, config, from_us=from_us, until_us=until_us, screen=QUIET)

    with pytest.raises(ConfigError, match="made for another"):
        look(bank.bundle, replace(bank.config, sessions=replace(bank.config.sessions, max_events=32)))
    old = replace(bank.bundle, reference={"score_percentiles": bank.bundle.reference["score_percentiles"]})
    with pytest.raises(BundleError, match="train it anew"):
        look(old, bank.config)
    torn = replace(bank.bundle, reference={**bank.bundle.reference, "inputs": {"starts_us": [1]}})
    with pytest.raises(BundleError, match="figures by week cannot be read"):
        look(torn, bank.config)
    with pytest.raises(DataError, match="no whole week between"):
        look(bank.bundle, bank.config, until_us=bank.from_us + 6 * DAY_US)


def test_a_bundle_without_a_few_weeks_of_reference_says_so(bank: Bank) -> None:
    tree = bank.bundle.reference
    none = {**tree["inputs"], "starts_us": []}
    none["shares"] = {n: {**one, "k": [], "n": []} for n, one in none["shares"].items()}
    none["means"] = {n: {**one, "n": [], "sum": [], "square": []} for n, one in none["means"].items()}
    none["volumes"] = {name: [] for name in none["volumes"]}
    short = replace(bank.bundle, reference={**tree, "inputs": none})
    with pytest.raises(ConfigError, match="0 whole weeks; expected at least 3"):
        watch(short, bank.config, from_us=None, until_us=None, screen=QUIET)


def labelled_log(folder: Path) -> pa.Table:
    """Return a small bank's log that says of every event whether its user ever reported a fraud."""
    simulate(folder / "log", users=60, days=84, seed=3, fraud_rate=0.1)
    events = pq.read_table(folder / "log" / "events.parquet").sort_by("ts")
    labels = pq.read_table(folder / "log" / "labels.parquet")
    victims = events.filter(pc.is_in(events["event_id"], value_set=labels["event_id"]))["user_id"]
    is_fraud_N = pc.is_in(events["user_id"], value_set=victims.combine_chunks()).cast(pa.int64())
    return events.append_column("position", pa.array(np.arange(len(events)))).append_column("fraud", is_fraud_N)


def trained(folder: Path, text: str) -> tuple[Bundle, Config]:
    pq.write_table(labelled_log(folder), folder / "events.parquet")
    settings = '[decisions]\non = ["transfer_out", "withdraw"]\n[model]\nname = "boosting"\ntrees = 5\n'
    (folder / "config.toml").write_text(text + settings, encoding="utf-8")
    config = load_config(folder / "config.toml")
    with closing(read_log(config)) as log:
        return train(log, config, folder / "bundle"), config


@pytest.mark.parametrize(("level", "is_scored"), [("session", True), ("user", False)])
def test_scores_are_watched_where_a_week_has_its_own(tmp_path: Path, level: str, *, is_scored: bool) -> None:
    text = '[log]\nevents = "events.parquet"\nuser = "user_id"\n[fields]\namount = "amount"\n'
    text += f'[labels]\ncolumn = "fraud"\nlevel = "{level}"\n[split]\nby = "user"\n'
    bundle, config = trained(tmp_path, text)
    from_us = read_reference(bundle.reference, bundle.scorer.model.vocabulary, config).until_us - 3 * WEEK_US
    watched = watch(bundle, config, from_us=from_us, until_us=None, screen=QUIET)
    assert bool(watched.scores.shares["score"].n_WC.sum()) == is_scored
    assert bool(bundle.reference["scores"]["starts_us"]) == is_scored
    assert watched.weeks_json()[-1]["events"] > 0


def test_a_log_without_a_clock_has_no_weeks(tmp_path: Path) -> None:
    bundle, config = trained(
        tmp_path,
        '[log]\nevents = "events.parquet"\nuser = "user_id"\ntime = "position"\nposition = "position"\n'
        '[labels]\ncolumn = "fraud"\n[split]\nby = "user"\n',
    )
    assert set(bundle.reference) == {"score_percentiles"}
    with pytest.raises(BundleError, match="has no clock"):
        watch(bundle, config, from_us=None, until_us=None, screen=QUIET)
