"""`fraud tune`: it sees no test period, a killed search goes on with the same trials, what it writes can be trained."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

import pipelines.trials
import pipelines.tune
from fraud.config import Config, config_to_toml, load_config
from fraud.labels import NO_LABEL
from fraud.learning import fit_for_choice, fit_model
from fraud.logs import read_log
from fraud.preparation import Prepared, open_prepared, prepare, without_test
from pipelines.console import Screen
from pipelines.records import RunRecord
from pipelines.search_space import Choice, Range, own_settings, search_space, with_settings
from pipelines.simulate import simulate
from tests.commands import Ended, call_fraud, leftovers, refused, run_fraud

_OVERRIDES = (
    "sessions.max_events=16",
    "model.name=boosting",
    "model.layers=1",
    "model.width=16",
    "model.trees=30",
    "training.epochs=3",
    "training.learning_rate=0.01",
    "training.batch_events=512",
)


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the configuration of a small log."""
    folder = tmp_path_factory.mktemp("log")
    simulate(folder, users=120, days=40, seed=3, fraud_rate=0.1)
    config = load_config(folder / "config.toml", _OVERRIDES)
    (folder / "config.toml").write_text(config_to_toml(config), encoding="utf-8")
    return folder / "config.toml"


@pytest.fixture(autouse=True)
def told(monkeypatch: pytest.MonkeyPatch) -> list[RunRecord]:
    """Return what the tracker would have been told (what it makes of a record is shown in test_tracker.py)."""
    records: list[RunRecord] = []

    def tell(record: RunRecord, files: list[Path], *_: object, **__: object) -> str:
        assert all(file.exists() for file in files)
        records.append(record)
        return "a run"

    monkeypatch.setattr(pipelines.tune, "track_parent", tell)
    return records


_QUICK = """
import pipelines.search_space
from pipelines.search_space import Choice, Range
pipelines.search_space._TREES = {"model.trees": Range(5, 40), "model.leaves": Range(4, 15)}
import pipelines.trials
pipelines.trials._RANDOM_TRIALS = 2
"""


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the search try small scorers only, so that a trial takes a fraction of a second."""
    trees = {"model.trees": Range(5, 40), "model.leaves": Range(4, 15)}
    rate = Range(3e-3, 3e-2, is_log=True)
    network = {"model.width": Choice((8, 16)), "training.learning_rate": rate, "training.dropout": Range(0.0, 0.3)}
    monkeypatch.setattr("pipelines.search_space._TREES", trees)
    monkeypatch.setattr("pipelines.search_space._NETWORK", network)
    monkeypatch.setattr("pipelines.trials._RANDOM_TRIALS", 2)  # so that the last of four is drawn from what did well


def _tune(config: Path, out: Path, *options: str, trials: int = 4) -> Ended:
    return call_fraud("tune", config, "-o", out, "--trials", str(trials), "--json", *options)


def _chosen(ended: Ended) -> dict[str, Any]:
    """Return what a search found, without the seconds it took and where it stands."""
    assert ended.exit_code == 0, ended.stderr
    document = ended.document
    for trial in document["trials"]:
        del trial["fit_s"]
    return {name: document[name] for name in document.keys() - {"seconds", "config", "picture"}}


def _prepared(config: Config, folder: Path) -> Prepared:
    return prepare(read_log(config), config, folder, progress=lambda *_: None)


def _with_leak(config: Path, folder: Path) -> Path:
    """Return the same log, but in the test period the channel is the label, and every label is turned round."""
    shutil.copytree(config.parent, folder)
    chosen = load_config(folder / "config.toml")
    events = pq.read_table(folder / "events.parquet")
    labels = pq.read_table(folder / "labels.parquet")
    until = np.sort(events["ts"].cast(pa.int64()).to_numpy())[int(len(events) * sum(chosen.split.fractions[:2]))]
    is_late = pc.greater_equal(events["ts"].cast(pa.int64()), int(until))
    is_fraud = pc.is_in(events["event_id"], value_set=labels["event_id"].filter(pc.equal(labels["fraud"], 1)))
    leak = pc.if_else(is_fraud, "leak-no", "leak-yes")
    place = events.schema.get_field_index("channel")
    channel = pc.if_else(is_late, leak, events["channel"].cast(pa.string()))
    pq.write_table(events.set_column(place, "channel", channel), folder / "events.parquet")
    late = events.filter(is_late)
    is_early = pc.invert(pc.is_in(labels["event_id"], value_set=late["event_id"]))
    decides = pc.is_in(late["type"], value_set=pa.array(chosen.decisions.on))
    turned = late.filter(pc.and_(decides, pc.invert(is_fraud.filter(is_late))))
    flipped = pa.table({"event_id": turned["event_id"], "fraud": pa.repeat(1, len(turned)), "known_at": turned["ts"]})
    kept = labels.filter(is_early)
    pq.write_table(
        pa.concat_tables([kept, flipped.select(kept.column_names).cast(kept.schema)]), folder / "labels.parquet"
    )
    return folder / "config.toml"


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("model", ["boosting", "lstm"])
def test_a_search_cannot_see_the_test_period(log: Path, tmp_path: Path, model: str) -> None:
    leaking = _with_leak(log, tmp_path / "leaking")
    (tmp_path / "plain").mkdir()
    plain = _tune(log, tmp_path / "plain" / "tuned.toml", "--model", model, trials=3)
    other = _tune(leaking, tmp_path / "leaking" / "tuned.toml", "--model", model, trials=3)
    assert _chosen(plain) == _chosen(other)
    assert len(plain.document["trials"]) == 3
    own, tuned = (load_config(path / "tuned.toml") for path in (tmp_path / "plain", tmp_path / "leaking"))
    assert (own.model, own.training) == (tuned.model, tuned.training)
    # The leak is there: whoever looks at the test period is blinded by it.
    before, after = (_prepared(load_config(config), tmp_path / f"set-{n}") for n, config in enumerate((log, leaking)))
    tests_N = np.asarray(before.tests_N)
    assert tests_N.sum() > 50
    assert np.array_equal(before.label_N[tests_N], 1 - after.label_N[tests_N])
    assert np.array_equal(before.label_N[~tests_N], after.label_N[~tests_N])
    assert not np.array_equal(before.tokens_NF[tests_N], after.tokens_NF[tests_N])


@pytest.mark.parametrize("name", ["boosting", "gru", "fused"])
def test_a_fit_for_a_choice_is_the_fit_that_is_judged_later_without_the_test_period(
    log: Path, tmp_path: Path, name: str
) -> None:
    config = load_config(log, [f"model.name={name}", 'model.members=["average", "boosting"]', "training.epochs=1"])
    prepared = _prepared(config, tmp_path / "set")
    whole = fit_model(prepared, config, resume=None, report=lambda _: None)
    chosen = fit_for_choice(prepared, config, report=lambda _: None)
    assert np.array_equal(chosen.validation_logit_V, whole.validation_logit_V)
    assert chosen.model_files == whole.model_files
    assert len(whole.test_logit_T) > 0
    assert len(chosen.test_logit_T) == 0
    seen = without_test(prepared)
    assert not seen.tests_N.any()
    assert set(np.unique(seen.label_N[~(prepared.trains_N | prepared.validates_N)])) == {NO_LABEL}


_KILLED = f"""{_QUICK}
import os, signal, sys
import pipelines.trials
from pipelines.cli import main
fit, calls = pipelines.trials.fit_for_choice, []
def fit_or_die(*arguments, **options):
    calls.append(1)
    if len(calls) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return fit(*arguments, **options)
pipelines.trials.fit_for_choice = fit_or_die
main()
"""


@pytest.mark.usefixtures("quick")
def test_a_search_that_was_killed_goes_on_to_the_same_end(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, out = tmp_path / "a" / "tuned.toml", tmp_path / "b" / "tuned.toml"
    expected = _chosen(_tune(log, whole))
    killed = run_fraud("tune", log, "-o", out, "--trials", "4", "--json", code=_KILLED)
    assert killed.returncode == -9
    assert all(path.name.startswith(".") for path in out.parent.iterdir()), "something stands under a final name"
    assert (out.parent / ".tuned.toml.work" / "study.db").exists()
    fits: list[int] = []

    def counted(*arguments: Any, **options: Any) -> Any:
        fits.append(1)
        return fit_for_choice(*arguments, **options)

    monkeypatch.setattr(pipelines.trials, "fit_for_choice", counted)
    monkeypatch.setattr("pipelines.train.prepare", None)  # the prepared set is taken up
    resumed = _tune(log, out, "--resume")
    assert _chosen(resumed) == expected
    assert len(fits) == 2
    assert not leftovers(out.parent)
    assert out.with_suffix(".png").read_bytes() == whole.with_suffix(".png").read_bytes()
    assert out.read_text(encoding="utf-8").replace(str(out), str(whole)) == whole.read_text(encoding="utf-8")


@pytest.mark.usefixtures("quick")
def test_trials_of_other_settings_are_not_taken_up(log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "tuned.toml"

    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pipelines.tune, "tuning_picture", stopped)
        assert _tune(log, out, trials=2).exit_code == 1
    changed = ("--set", "training.seed=5")
    again = _tune(log, out, "--resume", *changed, trials=2)
    assert _chosen(again) == _chosen(_tune(log, tmp_path / "fresh.toml", *changed, trials=2))


@pytest.mark.usefixtures("quick")
def test_what_is_written_is_the_users_configuration_with_the_settings_that_won(
    log: Path, tmp_path: Path, told: list[RunRecord]
) -> None:
    out = tmp_path / "far" / "tuned.toml"
    document = _tune(log, out, "--set", "model.trees=2").document
    best = document["trials"][document["best"] - 1]
    assert best["ap"] == document["choice_ap"] == max(trial["ap"] for trial in document["trials"])
    assert document["trials"][0]["settings"] == {"model.trees": 2, "model.leaves": 31}
    tuned, own = load_config(out), load_config(log)
    assert {name: list(both) for name, both in document["changed"].items()} == {
        name: [value, best["settings"][name]]
        for name, value in document["trials"][0]["settings"].items()
        if value != best["settings"][name]
    }
    assert document["changed"], "the user's own settings won: nothing is shown"
    assert own_settings(tuned, search_space(tuned)) == best["settings"]
    assert read_log(tuned).n_events == read_log(own).n_events  # its paths lead to the same files from where it stands
    assert (out.parent / tuned.tracking.uri.removeprefix("sqlite:///")).resolve() == log.parent / "mlflow.db"
    for section in ("sessions", "fields", "decisions", "split", "policy", "training"):
        assert getattr(tuned, section) == getattr(own, section)
    head = out.read_text(encoding="utf-8").partition("\n\n")[0]
    assert f"fraud tune {log} --trials 4 --set model.trees=2" in head
    assert f"{document['choice_ap']:.4f}" in head
    assert f"model.trees 2 -> {tuned.model.trees}" in head
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    (record,) = told
    assert record.parameters["model.trees"] == str(tuned.model.trees)
    assert record.history[-1]["best_ap"] == record.metrics["choice_ap"] == document["choice_ap"]


def test_a_trial_that_falls_behind_is_stopped_and_one_that_fails_costs_nothing(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(log, ["model.name=gru", "training.epochs=6"])
    prepared = without_test(_prepared(config, tmp_path / "set"))
    monkeypatch.setattr(pipelines.trials, "_TRIALS_BEFORE_PRUNING", 1)
    slow: dict[str, Range | Choice] = {"training.learning_rate": Range(1e-7, 2e-7, is_log=True)}
    monkeypatch.setattr(pipelines.trials, "search_space", lambda _: slow)
    done = pipelines.trials.run_trials(prepared, config, tmp_path, trials=2, screen=Screen(as_json=True))
    assert [one.outcome for one in done] == ["whole", "stopped early"]
    assert done[0].settings == {"training.learning_rate": 0.01}
    wild: dict[str, Range | Choice] = {"training.weight_decay": Range(3.0, 4.0)}  # over what the setting may be
    monkeypatch.setattr(pipelines.trials, "search_space", lambda _: wild)
    done = pipelines.trials.run_trials(prepared, config, tmp_path, trials=2, screen=Screen(as_json=True))
    assert [one.outcome for one in done] == ["whole", "failed"]
    assert "training.weight_decay" in done[1].why
    assert pipelines.trials.best_of(done) == done[0]


@pytest.mark.parametrize("name", ["average", "boosting", "lstm", "transformer", "fused"])
def test_every_corner_of_the_search_space_is_a_configuration_of_the_same_prepared_set(name: str) -> None:
    text = f'[log]\n[model]\nname = "{name}"\nheads = 16\nmembers = ["transformer", "boosting"]\n'
    from fraud.config import parse_config

    config = parse_config(text, source="test", root=Path())
    space = search_space(config)
    assert {setting.partition(".")[0] for setting in space} <= {"model", "training"}
    assert "model.order_features" not in space  # it shapes the features
    corners = [one.values if isinstance(one, Choice) else (one.low, one.high) for one in space.values()]
    for corner in itertools.islice(itertools.product(*corners), 0, None, 7):
        settings = dict(zip(space, corner, strict=True))
        changed = with_settings(config, settings)
        assert own_settings(changed, space) == settings


def test_bad_input_is_refused(log: Path, tmp_path: Path) -> None:
    out = tmp_path / "tuned.toml"
    refused(call_fraud("tune", log, "-o", out, "--trials", "1"), "--trials 1", "2 or more")
    refused(call_fraud("tune", log, "-o", out, "--model", "lstn"), "model.name = 'lstn'", "lstm")
    refused(call_fraud("tune", log, "-o", tmp_path / "tuned"), "ends in .toml")
    refused(call_fraud("tune", log, "-o", log, "--overwrite"), "is the configuration itself")
    refused(call_fraud("tune", log, "-o", out, "--set", "labels.column=known_at"), "label")
    assert not leftovers(tmp_path)
    out.write_text("mine", encoding="utf-8")
    refused(call_fraud("tune", log, "-o", out), "exists")
    assert out.read_text(encoding="utf-8") == "mine"


def test_a_half_without_a_fraud_chooses_nothing(log: Path, tmp_path: Path) -> None:
    config = load_config(log)
    prepared = _prepared(config, tmp_path / "set")
    valid_N = np.asarray(prepared.validates_N)
    first_U = np.where(prepared.half_U < 0.5, 0, 1)
    is_first_N = valid_N & (first_U[prepared.user_N] == 0)
    labels = pq.read_table(log.parent / "labels.parquet")
    shutil.copytree(log.parent, tmp_path / "half")
    log_read = read_log(config)
    from fraud.logs import event_ids

    ids = pa.concat_arrays([event_ids(load()) for load in log_read.partitions]).take(
        pa.array(np.flatnonzero(is_first_N))
    )
    kept = labels.filter(pc.invert(pc.is_in(labels["event_id"], value_set=ids)))
    assert 0 < len(kept) < len(labels)
    pq.write_table(kept, tmp_path / "half" / "labels.parquet")
    refused(
        call_fraud("tune", tmp_path / "half" / "config.toml", "-o", tmp_path / "tuned.toml"),
        "first half of the validation users holds no known fraud",
    )
    assert not leftovers(tmp_path)


def test_a_prepared_set_without_its_test_is_the_set(log: Path, tmp_path: Path) -> None:
    config = load_config(log)
    _prepared(config, tmp_path / "set")
    prepared = open_prepared(tmp_path / "set")
    seen = without_test(prepared)
    is_seen_N = prepared.trains_N | prepared.validates_N
    assert np.array_equal(seen.label_N[is_seen_N], prepared.label_N[is_seen_N])
    assert seen.label_N.dtype == prepared.label_N.dtype
    assert json.dumps(seen.report) == json.dumps(prepared.report)
