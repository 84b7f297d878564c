"""The public names of `fraud`, as a notebook uses them: what they give is what the commands give."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest

import fraud
from fraud.config import config_to_toml
from fraud.errors import DataError
from tests.commands import call_fraud
from tests.trained import MODELS, Trained, trained_bundles


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return trained_bundles(tmp_path_factory)


# pyarrow 25 on pandas 3.1 reads a time with a zone through `Series.values`; nothing of ours can change it.
_pandas_says = pytest.mark.filterwarnings("ignore:Series.values returning an ndarray:DeprecationWarning")


@_pandas_says
@pytest.mark.parametrize("model", MODELS)
def test_a_frame_scores_as_the_file_does(trained: Trained, model: str, tmp_path: Path) -> None:
    out = tmp_path / "scores.parquet"
    assert call_fraud("score", trained.folder / model, trained.events, "-o", out, "--per-event").exit_code == 0
    expected = pq.read_table(out)
    frame = pd.read_parquet(trained.events)
    frame["channel"] = frame["channel"].astype("category")
    frame["note"] = [object()] * len(frame)  # no column of ours: what it holds is nobody's business
    bundle = fraud.load_bundle(trained.folder / model)
    assert bundle.score(frame).equals(expected)
    assert bundle.score(pa.table(pq.read_table(trained.events))).equals(expected)


@_pandas_says
def test_a_frame_that_cannot_be_read_isrefused(trained: Trained) -> None:
    frame = pd.read_parquet(trained.events)
    bundle = fraud.load_bundle(trained.folder / "boosting")
    with pytest.raises(DataError, match="no column 'user_id'"):
        bundle.score(frame.drop(columns=["user_id"]))
    frame["type"] = [b"\xff" if n % 2 else "login" for n in range(len(frame))]
    with pytest.raises(DataError, match="type"):
        bundle.score(frame)


def test_a_notebook_trains_and_scores_a_log_of_its_own(trained: Trained, tmp_path: Path) -> None:
    """Labels and parts in the log itself, a number that never has a value; none of these is needed to score."""
    table = pq.read_table(trained.events)
    labels = pq.read_table(trained.log / "labels.parquet")
    place = np.arange(len(table)) / len(table)
    log = table.append_column("fraud", pc.is_in(table["event_id"], value_set=labels["event_id"]))
    log = log.append_column("part", pa.array(np.where(place < 0.5, "train", np.where(place < 0.75, "valid", "test"))))
    log = log.append_column("empty", pa.nulls(len(log), pa.float64()))
    pacsv.write_csv(log.drop_columns(["payee", "device"]), tmp_path / "log.csv")
    (tmp_path / "config.toml").write_text(
        '[log]\nevents = "log.csv"\nevent_id = "event_id"\n[fields]\namount = "amount"\nnumeric = ["empty"]\n'
        '[labels]\ncolumn = "fraud"\n[decisions]\non = ["transfer_out", "withdraw"]\n'
        '[split]\nby = "column"\ncolumn = "part"\n[model]\nname = "boosting"\ntrees = 10\n',
        encoding="utf-8",
    )
    config = fraud.load_config(tmp_path / "config.toml")
    bundle = fraud.train(fraud.read_log(config), config, tmp_path / "bundle")
    assert bundle.metrics["test"]["auc"] > 0.6
    unlabelled = log.drop_columns(["fraud", "part", "payee", "device"])
    scores = fraud.load_bundle(tmp_path / "bundle").score(unlabelled)
    assert len(scores) == len(log)
    pq.write_table(unlabelled, tmp_path / "new.parquet")
    out = tmp_path / "scores.parquet"
    ended = call_fraud("score", tmp_path / "bundle", tmp_path / "new.parquet", "-o", out, "--per-event")
    assert ended.exit_code == 0, ended.stderr
    assert pq.read_table(out).equals(scores)


def test_the_configuration_of_a_bundle_reproduces_it(trained: Trained) -> None:
    config = trained.bundle("lstm").scorer.config
    text = (trained.folder / "lstm" / "config.toml").read_text(encoding="utf-8")
    assert config_to_toml(config) == text
    assert config.model.name == "lstm"
    assert config.training == trained.config.training
