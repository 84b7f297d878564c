"""A bundle as an MLflow model: it gives the scores of `fraud score --per-event`, row for row, and holds no code."""

from __future__ import annotations

import json
import shutil
import sqlite3
from pathlib import Path
from urllib.parse import unquote, urlparse

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest

from fraud.config import parse_config
from fraud.errors import DataError
from fraud.logs import from_table
from pipelines.pyfunc import BundleModel, as_table, input_example
from tests.commands import call_fraud, contents, run_fraud
from tests.made_events import made_events
from tests.trained import Trained, trained_bundles

# pyarrow 25 on pandas 3.1 reads a time with a zone through `Series.values`; nothing of ours can change it.
pytestmark = pytest.mark.filterwarnings("ignore:Series.values returning an ndarray:DeprecationWarning")

COLUMNS = ["event_id", "user_id", "session_id", "ts", "type", "score", "decision"]


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return trained_bundles(tmp_path_factory)


@pytest.fixture(scope="module")
def scores(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """Return what `fraud score --per-event` gives for the log."""
    out = tmp_path_factory.mktemp("scores") / "scores.parquet"
    assert call_fraud("score", trained.folder / "lstm", trained.events, "-o", out, "--per-event").exit_code == 0
    return pd.read_parquet(out)


@pytest.fixture(scope="module")
def model(trained: Trained) -> BundleModel:
    return BundleModel(trained.bundle("lstm"))


def _in_order_of(frame: pd.DataFrame, scores: pd.DataFrame) -> pd.DataFrame:
    """Return the scores of the frame's rows by their event_id, nulls where an event has none."""
    return scores.set_index("event_id", drop=False).reindex(frame["event_id"]).set_axis(frame.index)


def _same(found: pd.DataFrame, expected: pd.DataFrame) -> None:
    assert list(found.columns) == COLUMNS
    pd.testing.assert_frame_equal(found, expected, check_exact=True)


def test_each_row_has_the_score_of_the_score_file_in_the_order_it_came(
    trained: Trained, model: BundleModel, scores: pd.DataFrame
) -> None:
    shuffled = pd.read_parquet(trained.events).sample(frac=1, random_state=4)
    found = model.predict(shuffled)
    assert found["score"].notna().all()
    _same(found, _in_order_of(shuffled, scores))
    _same(found.sort_index(), _in_order_of(shuffled.sort_index(), scores))


def test_text_as_read_from_csv_scores_as_the_csv_does(trained: Trained, model: BundleModel, tmp_path: Path) -> None:
    some = pq.read_table(trained.events).slice(0, 400)
    pacsv.write_csv(some, tmp_path / "log.csv")
    text = pd.read_csv(tmp_path / "log.csv", dtype=str)
    text.loc[3, "ts"], text.loc[5, "amount"], text.loc[9, "user_id"], text.loc[11, "amount"] = "noon", "-4", None, "1,5"
    text.to_csv(tmp_path / "log.csv", index=False)
    out = tmp_path / "scores.parquet"
    ended = call_fraud("score", trained.folder / "lstm", tmp_path / "log.csv", "-o", out, "--per-event", "--json")
    assert ended.document["quarantined"] == 4
    found = model.predict(text)
    _same(found, _in_order_of(text, pd.read_parquet(out)))
    assert list(np.flatnonzero(found["score"].isna())) == [3, 5, 9, 11]
    assert found.loc[[3, 5, 9, 11]].isna().all(axis=None)


def test_a_column_of_mixed_kinds_costs_the_bad_rows_only(trained: Trained, model: BundleModel) -> None:
    frame = pd.read_parquet(trained.events).head(300)
    expected = model.predict(frame)
    mixed = frame.astype({"ts": object, "amount": object, "channel": object})
    mixed.at[1, "ts"] = frame.at[1, "ts"].isoformat()  # the same instant, as text
    mixed.at[2, "channel"] = 7.5
    mixed.at[4, "amount"] = {"value": 3}
    mixed.at[6, "ts"] = ["no", "time"]
    found = model.predict(mixed)
    assert list(np.flatnonzero(found["score"].isna())) == [2, 4, 6]
    gone = frame.drop(index=[2, 4, 6])
    _same(found.drop(index=[2, 4, 6]), model.predict(gone))
    assert found["score"].iloc[1] == expected["score"].iloc[1]


def test_a_text_column_without_a_value_may_come_as_numbers(trained: Trained, model: BundleModel) -> None:
    """MLflow hands a column of nothing but nulls over as NaN: one login has no payee."""
    frame = pd.read_parquet(trained.events).head(3).assign(payee=None)
    assert model.predict(frame)["score"].notna().all()
    _same(model.predict(frame.assign(payee=np.nan)), model.predict(frame))


def test_a_repeated_event_has_its_answer_and_a_contradicted_one_none(trained: Trained, model: BundleModel) -> None:
    frame = pd.read_parquet(trained.events).head(200)
    again = pd.concat([frame, frame.iloc[[5, 17]], frame.iloc[[30]].assign(type="login_failed")], ignore_index=True)
    found = model.predict(again)
    assert found.iloc[200:202].reset_index(drop=True).equals(found.iloc[[5, 17]].reset_index(drop=True))
    assert list(np.flatnonzero(found["score"].isna())) == [30, 202]
    whole = model.predict(frame.drop(index=30))
    _same(found.iloc[:200].drop(index=30), whole)


def test_a_frame_that_is_no_log_is_refused(trained: Trained, model: BundleModel) -> None:
    frame = pd.read_parquet(trained.events).head(20)
    with pytest.raises(DataError, match="no column 'user_id'"):
        model.predict(frame.drop(columns=["user_id"]))
    with pytest.raises(DataError, match="'type' stands twice"):
        model.predict(pd.concat([frame, frame[["type"]]], axis=1))
    empty = model.predict(frame.head(0))
    assert (list(empty.columns), len(empty)) == (COLUMNS, 0)


_PREDICT = """
import json, os, sys
for name in ("torch", "sklearn", "onnx", "optuna", "typer", "matplotlib"):
    sys.modules[name] = None  # as where only fraud[batch] and MLflow are installed
import mlflow
import pandas as pd
store, run_id, events, out = sys.argv[1:]
mlflow.set_tracking_uri(store)
model = mlflow.pyfunc.load_model(f"runs:/{run_id}/model")
frame = pd.read_parquet(events)
model.predict(frame).to_parquet(out)
example = model.predict(model.input_example)
version = mlflow.register_model(f"runs:/{run_id}/model", "fraud")
again = mlflow.pyfunc.load_model(f"models:/fraud/{version.version}").predict(frame)
print(json.dumps([int(example.score.isna().sum()), len(example), again.equals(pd.read_parquet(out))]))
"""


@pytest.fixture(scope="module")
def stored(trained: Trained) -> Path:
    """Return the folder of the lstm's model in the artefact store."""
    run_id = trained.document("lstm")["tracked"]
    with sqlite3.connect(f"file:{trained.log / 'mlflow.db'}?mode=ro", uri=True) as store:
        found = store.execute(
            "select artifact_location from logged_models where source_run_id = ?", [run_id]
        ).fetchall()
    ((location,),) = found
    return Path(unquote(urlparse(location).path))


def test_a_process_without_torch_and_without_pickles_loads_what_was_tracked(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    frame = pd.read_parquet(trained.events).sample(frac=1, random_state=2).reset_index(drop=True)
    frame.loc[7, "user_id"] = None
    frame.to_parquet(tmp_path / "events.parquet")
    shutil.copy(trained.log / "mlflow.db", tmp_path)  # a registration of this test alone
    store, run_id = f"sqlite:///{tmp_path}/mlflow.db", trained.document("lstm")["tracked"]
    done = run_fraud(store, run_id, tmp_path / "events.parquet", tmp_path / "out.parquet", code=_PREDICT)
    assert done.returncode == 0, done.stderr
    n_null, n_example, is_same = json.loads(done.stdout.splitlines()[-1])
    assert (n_null, is_same) == (0, True)
    assert n_example > 3
    out = tmp_path / "scores.parquet"
    ended = call_fraud("score", trained.folder / "lstm", tmp_path / "events.parquet", "-o", out, "--per-event")
    assert ended.exit_code == 0
    found, scores = pd.read_parquet(tmp_path / "out.parquet"), pd.read_parquet(out)
    assert found.loc[7].isna().all()
    assert len(scores) == len(found) - 1
    _same(found, _in_order_of(frame, scores))


def test_what_is_stored_is_the_bundle_once_and_neither_code_nor_pickle(trained: Trained, stored: Path) -> None:
    files = contents(stored)
    beside = {name for name in files if not name.startswith("bundle/")} - {"registered_model_meta"}  # MLflow's own note
    assert beside == {"MLmodel", "input_example.json", "python_env.yaml", "requirements.txt"}
    assert contents(stored / "bundle") == contents(trained.folder / "lstm")
    run = {name for name in contents(trained.log / "mlartifacts") if trained.document("lstm")["tracked"] in name}
    assert {Path(name).name for name in run} == {"config.toml"}
    described = files["MLmodel"].decode()
    assert "loader_module: pipelines.pyfunc" in described
    assert not [word for word in ("python_model", "cloudpickle", "pickle", "code:") if word in described]
    assert not [name for name in files if name.endswith((".pkl", ".pickle", ".joblib", ".pt", ".py"))]
    requirements = files["requirements.txt"].decode().split()
    assert "fraud" not in {line.partition("==")[0] for line in requirements}  # whoever owns that name elsewhere
    assert any(line.startswith("onnxruntime==") for line in requirements)
    assert "golden-0" in files["input_example.json"].decode()
    assert "u00" not in files["input_example.json"].decode(), "a user's own id"


@pytest.mark.parametrize(
    ("settings", "changes"),
    [
        ([], {}),
        (["log.time_unit=s"], {}),
        (['log.type=["kind", "how"]', "log.order=nth", "log.event_id=id"], {"type": ["a|b", "c|d"]}),
        (["log.time=position", "log.position=pos", "split.by=user"], {}),
        (["log.session=visit", "labels.column=fraud"], {"session": True}),
    ],
)  # fmt: skip
def test_the_example_of_any_configuration_is_a_log_of_it(settings: list[str], changes: dict[str, object]) -> None:
    from dataclasses import replace

    from fraud.events import text_from_objects
    from fraud.tables import scoring_config

    text = '[log]\nevents = "x"\n[fields]\namount = "amount"\ncategorical = ["channel"]\nentity = ["payee"]\n'
    config = parse_config(text, source="test", root=Path(), overrides=settings)
    config = scoring_config(config, labels=None)
    events = made_events(3, n_users=3, max_count=9, own_sessions=bool(changes.get("session")))
    if "type" in changes:
        kinds = np.array([changes["type"][n % 2] for n in range(len(events))], dtype=object)  # type: ignore[index]
        events = replace(events, type=text_from_objects(kinds))
    example = input_example(events, config)
    frame = pd.DataFrame(example["data"], columns=example["columns"])
    log = from_table(as_table(frame, config), config)
    assert (log.n_events, len(log.quarantine), len(frame)) == (len(frame), 0, min(8, len(events)))
    assert json.loads(json.dumps(example)) == example
    assert log.partitions[0]().events.type.to_objects().tolist() == events.type.to_objects()[: len(frame)].tolist()


def test_arrow_and_frames_give_the_same(trained: Trained, model: BundleModel) -> None:
    from fraud.tables import score_rows

    table = pq.read_table(trained.events).slice(0, 500)
    assert score_rows(model.bundle.scorer, table).equals(
        pa.Table.from_pandas(model.predict(table.to_pandas()), schema=score_rows(model.bundle.scorer, table).schema)
    )
