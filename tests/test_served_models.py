"""The model that answers is one whole bundle at any moment: swapped, followed, refused, shadowed, and freed."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fraud.bundle import Bundle
from fraud.config import parse_config, stored_state_hash
from fraud.errors import ConfigError
from fraud.golden import golden_events, golden_tables
from fraud.judging import train
from fraud.logs import read_log
from fraud.scoring import score_log
from service.follow import Follower
from service.models import (
    ACCEPTED,
    BAD_BUNDLE,
    NEEDS_WARM,
    NO_CLOCK,
    NOT_CAUSAL,
    ModelHolder,
    RefusedBundle,
    bundle_directory,
    percentile,
)
from service.schemas import Schema, schema_of
from tests.tampered import copied, tampered, with_manifest
from tests.trained import Trained, trained_bundles


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return trained_bundles(tmp_path_factory)


def _holder(directory: Path, state_hash: str | None = None) -> ModelHolder:
    return ModelHolder(directory, state_hash=state_hash, schema_of=schema_of)


def _shifted(bundle: Path, folder: Path, shift: float) -> Path:
    """Return a copy whose every score is another: the calibration is not part of the golden logits."""
    calibration = json.loads((bundle / "calibration.json").read_text(encoding="utf-8"))
    text = json.dumps(calibration | {"shift": calibration["shift"] + shift})
    return tampered(bundle, folder, {"calibration.json": text.encode()})


def _scores(bundle: Bundle) -> np.ndarray:
    events = golden_events(bundle.scorer.config, bundle.scorer.model.vocabulary)
    return np.concatenate([part.score_N for part in score_log(bundle.scorer, events, golden_tables(events))])


# A swap


def test_what_is_served_names_the_bundle_it_is(trained: Trained) -> None:
    served = _holder(trained.folder / "lstm").current
    assert (served.name, served.version, len(served.sha256)) == ("lstm", served.bundle.version, 64)
    assert served.sha256.startswith(served.version)
    assert isinstance(served.schema, Schema)
    assert len(served.policy_version) == 12


def test_every_answer_under_swaps_is_of_exactly_one_bundle(trained: Trained, tmp_path: Path) -> None:
    folders = [_shifted(trained.folder / "boosting", tmp_path / str(n), 0.1 * n) for n in range(3)]
    folders.append(trained.folder / "lstm")
    holder = _holder(folders[0])
    loaded = [holder.load(folder) for folder in folders]
    expected = {served.version: _scores(served.bundle) for served in loaded}
    assert len(expected) == len(folders)
    wrong: list[str] = []
    answered: set[str] = set()
    ends = threading.Event()

    def answer() -> None:
        while not ends.is_set():
            served = holder.current
            answered.add(served.version)
            if not np.array_equal(_scores(served.bundle), expected[served.version]):
                wrong.append(served.version)

    readers = [threading.Thread(target=answer) for _ in range(4)]
    for reader in readers:
        reader.start()
    for n in range(24):
        outcome = holder.try_swap(folders[n % len(folders)])
        assert outcome.accepted
        assert outcome.version == holder.current.version
    ends.set()
    for reader in readers:
        reader.join()
    assert not wrong
    assert answered <= set(expected)
    assert len(answered) > 1
    assert holder.counts == {ACCEPTED: 24}


def test_a_bundle_for_another_state_needs_warm(trained: Trained) -> None:
    holder = _holder(trained.folder / "lstm")
    before = holder.current
    outcome = holder.try_swap(trained.plain)
    assert (outcome.accepted, outcome.code, outcome.version) == (False, NEEDS_WARM, before.version)
    assert "fraud warm" in outcome.reason
    assert holder.current is before
    with pytest.raises(RefusedBundle, match="fraud warm") as refused:
        _holder(trained.plain, state_hash=stored_state_hash(before.bundle.scorer.config))
    assert refused.value.code == NEEDS_WARM


def test_the_first_bundle_decides_what_a_new_store_holds(trained: Trained) -> None:
    holder = _holder(trained.plain)
    assert holder.state_hash == stored_state_hash(holder.current.bundle.scorer.config)
    assert holder.try_swap(trained.folder / "lstm").code == NEEDS_WARM


def test_a_bundle_without_a_clock_is_refused(trained: Trained, tmp_path: Path) -> None:
    """A request tells times; a log whose events are only numbered is scored in batch."""
    table = pq.read_table(trained.events).slice(0, 4000)
    place_N = np.arange(len(table))
    table = table.append_column("pos", pa.array(place_N)).append_column("fraud", pa.array(place_N % 7 == 0))
    pq.write_table(table, tmp_path / "events.parquet")
    sections = {
        "log": 'time = "position"\nposition = "pos"',
        "labels": 'column = "fraud"',
        "split": 'by = "user"',
        "model": 'name = "boosting"\ntrees = 3',
    }
    text = "".join(f"[{name}]\n{lines}\n" for name, lines in sections.items())
    config = parse_config(text, source="config.toml", root=tmp_path)
    with closing(read_log(config)) as log:
        train(log, config, tmp_path / "bundle")
    with pytest.raises(RefusedBundle, match="positions") as refused:
        _holder(tmp_path / "bundle")
    assert refused.value.code == NO_CLOCK


def test_a_bundle_that_waits_for_later_events_is_refused(trained: Trained, tmp_path: Path) -> None:
    lstm = trained.folder / "lstm"
    text = (lstm / "config.toml").read_text(encoding="utf-8")
    text = text.replace('name = "lstm"', 'name = "transformer"').replace("causal = true", "causal = false")
    holder = _holder(lstm)
    outcome = holder.try_swap(tampered(lstm, tmp_path, {"config.toml": text.encode()}))
    assert outcome.code == NOT_CAUSAL


@pytest.mark.parametrize(
    "percentiles",
    [None, [], [0.1] * 100, [0.1] * 102, [0.2, 0.1, *[0.3] * 99], ["x"] * 101, [10**400] * 101, {"0": 1}],
    ids=["none", "empty", "short", "long", "falling", "text", "huge", "object"],
)
def test_a_reference_without_percentiles_is_refused(trained: Trained, percentiles: object, tmp_path: Path) -> None:
    boosting = trained.folder / "boosting"
    reference = json.loads((boosting / "reference.json").read_text(encoding="utf-8"))
    text = json.dumps(reference | {"score_percentiles": percentiles})
    holder = _holder(boosting)
    outcome = holder.try_swap(tampered(boosting, tmp_path, {"reference.json": text.encode()}))
    assert outcome.code == BAD_BUNDLE
    assert holder.current.version != outcome.reason


def test_the_same_refusal_is_counted_each_time_and_logged_once(
    trained: Trained, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broken = copied(trained.folder / "boosting", tmp_path)
    (broken / "policy.toml").write_text("x")
    holder = _holder(trained.folder / "boosting")
    with caplog.at_level(logging.INFO, "service.models"):
        for _ in range(5):
            assert not holder.try_swap(broken).accepted
        assert holder.try_swap(trained.folder / "lstm").accepted
        assert not holder.try_swap(broken).accepted
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 2, "once before and once after a swap that was accepted"
    assert "policy.toml" in warnings[0].getMessage()
    assert holder.counts == {BAD_BUNDLE: 6, ACCEPTED: 1}


# The percentile

_PERCENTILES = st.lists(
    st.floats(0, 1, allow_subnormal=False) | st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=101, max_size=101
)


@given(_PERCENTILES, st.lists(st.floats(0, 1), min_size=2, max_size=50))
def test_the_percentile_never_falls_and_stays_within_0_and_100(percentiles: list[float], scores: list[float]) -> None:
    knots = sorted(percentiles)
    risks = [percentile(knots, score) for score in sorted([*scores, *percentiles])]
    assert risks == sorted(risks)
    assert risks[0] >= 0.0
    assert risks[-1] <= 100.0


@given(_PERCENTILES)
def test_the_percentile_is_exact_at_the_ends_and_at_each_number(percentiles: list[float]) -> None:
    knots = sorted(percentiles)
    assert percentile(knots, knots[-1]) == 100.0
    assert percentile(knots, np.nextafter(knots[0], -1)) == 0.0
    assert percentile(knots, 2.0) == 100.0
    for score in knots:
        last_of_run = max(place for place, knot in enumerate(knots) if knot == score)
        assert percentile(knots, score) == last_of_run


@given(st.lists(st.integers(1, 10**6), min_size=101, max_size=101), st.floats(0, 1))
def test_between_two_numbers_the_percentile_is_that_of_numpy(steps: list[int], place: float) -> None:
    knots = (np.cumsum(steps) / (sum(steps) + 1)).tolist()
    score = knots[0] + place * (knots[-1] - knots[0])
    assert percentile(knots, score) == pytest.approx(np.interp(score, knots, np.arange(101)), abs=1e-6)


# Following a link


def _link(folder: Path, target: str) -> None:
    """Move the link as `fraud publish` does: a new one, renamed over it."""
    aside = folder / ".next"
    aside.symlink_to(target)
    aside.rename(folder / "current")


@pytest.fixture
def published(trained: Trained, tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    folder.mkdir()
    for name in ("boosting", "lstm"):
        shutil.copytree(trained.folder / name, folder / name)
    _link(folder, "boosting")
    return folder


def test_a_bundle_is_found_by_its_path_or_by_the_link(published: Path, tmp_path: Path) -> None:
    assert bundle_directory(published / "lstm") == published / "lstm"
    assert bundle_directory(published) == published / "boosting"
    assert bundle_directory(published / "current") == published / "boosting"
    (tmp_path / "current").symlink_to("current")
    for folder in (tmp_path, tmp_path / "gone", published / "lstm" / "manifest.json"):
        with pytest.raises(ConfigError, match="link 'current'"):
            bundle_directory(folder)


def test_the_model_follows_the_link_there_and_back(published: Path) -> None:
    holder = _holder(bundle_directory(published))
    follower = Follower(holder, published)
    assert follower.poll() is None, "the bundle that answers is not loaded again"
    for name in ("lstm", "boosting", "lstm"):
        _link(published, name)
        outcome = follower.poll()
        assert outcome is not None
        assert outcome.accepted
        assert holder.current.name == name
        assert follower.poll() is None
    assert holder.counts == {ACCEPTED: 3}


def test_a_half_written_version_is_refused_and_taken_when_it_is_whole(published: Path, trained: Trained) -> None:
    """Whoever writes it in place, file after file, the manifest first, the network last."""
    holder = _holder(bundle_directory(published))
    follower = Follower(holder, published)
    source, target = trained.folder / "fused", published / "v3"
    target.mkdir()
    _link(published, "v3")
    files = [path for path in sorted(source.rglob("*")) if path.is_file()]
    files.sort(key=lambda path: path.name != "manifest.json")
    for path in files:
        outcome = follower.poll()
        assert outcome is None or not outcome.accepted
        assert follower.poll() is None, "what has not changed is not tried again"
        assert holder.current.name == "boosting"
        (target / path.relative_to(source)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target / path.relative_to(source))
    outcome = follower.poll()
    assert outcome is not None
    assert outcome.accepted, outcome.reason
    assert holder.current.name == "fused"
    assert holder.counts[BAD_BUNDLE] <= len(files) + 1


@pytest.mark.parametrize("loss", ["no link", "link to nothing", "a folder", "manifest is a pipe"])
def test_a_link_that_leads_nowhere_leaves_the_old_one_answering(published: Path, loss: str) -> None:
    holder = _holder(bundle_directory(published))
    follower = Follower(holder, published)
    (published / "current").unlink()
    if loss == "link to nothing":
        _link(published, "gone")
    elif loss == "a folder":
        (published / "current").mkdir()
    elif loss == "manifest is a pipe":
        (published / "lstm" / "manifest.json").unlink()
        os.mkfifo(published / "lstm" / "manifest.json")
        _link(published, "lstm")
    outcome = follower.poll()
    assert outcome is not None
    assert outcome.code == BAD_BUNDLE
    assert follower.poll() is None
    assert holder.current.name == "boosting"
    if loss == "a folder":
        (published / "current").rmdir()
    _link(published, "boosting")
    assert follower.poll() is None, "it never went"


def test_the_thread_follows_by_itself_and_stops(published: Path) -> None:
    holder = _holder(bundle_directory(published))
    follower = Follower(holder, published, every_s=0.02)
    follower.start()
    _link(published, "lstm")
    arrived = threading.Event()
    for _ in range(500):
        if holder.current.name == "lstm" or arrived.wait(0.02):
            break
    assert holder.current.name == "lstm"
    interval_s = sys.getswitchinterval()
    follower.stop()
    _link(published, "boosting")
    assert not arrived.wait(0.1)
    assert holder.current.name == "lstm"
    assert sys.getswitchinterval() == interval_s


_SWAPS = """
import sys, threading
from pathlib import Path
import psutil
from service.follow import Follower
from service.memory import give_back_memory
from service.models import ModelHolder
from service.schemas import schema_of
from tests.test_served_models import _scores

first, second = map(Path, sys.argv[1:3])
mib = lambda: psutil.Process().memory_info().rss / 2**20
holder = ModelHolder(first, state_hash=None, schema_of=schema_of)
ends = threading.Event()
def answer():
    while not ends.wait(0.01):
        served = holder.current
        _scores(served.bundle)
        del served
reader = threading.Thread(target=answer)
reader.start()
def swap(n):
    for k in range(n):
        assert holder.try_swap((second, first)[k % 2]).accepted
        give_back_memory()
swap(20)
before = mib()
extra = holder.load(first)
give_back_memory()
one_model = mib() - before
del extra
give_back_memory()
before = mib()
swap(200)
after = mib()
ends.set()
reader.join()
print(before, after, one_model)
"""


def test_200_swaps_under_load_leave_the_memory_within_one_model(trained: Trained, tmp_path: Path) -> None:
    other = with_manifest(copied(trained.folder / "lstm", tmp_path), name="other")
    command = [sys.executable, "-c", _SWAPS, trained.folder / "lstm", other]
    environment = {**os.environ, "MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "262144"}  # as `fraud serve` sets
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=Path(__file__).parents[1], check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    before, after, one_model = map(float, done.stdout.split())
    assert after - before < max(one_model, 4.0), done.stdout
