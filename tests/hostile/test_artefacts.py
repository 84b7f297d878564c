"""Every damaged bundle of the corpus is refused by a service that runs, and the one before goes on answering."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path

import numpy as np
import pytest

from fraud.bundle import Bundle
from fraud.golden import golden_events, golden_tables
from fraud.scoring import score_log
from service.follow import Follower
from service.models import BAD_BUNDLE, ModelHolder, RefusedBundle
from service.schemas import schema_of
from tests.hostile.damages import DAMAGES
from tests.trained import Trained, trained_bundles

_CORPUS = Path(__file__).resolve().parents[2].parent / "shared" / "tools" / "hostile" / "bad_inputs.jsonl"


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return trained_bundles(tmp_path_factory)


def _scores(bundle: Bundle) -> np.ndarray:
    events = golden_events(bundle.scorer.config, bundle.scorer.model.vocabulary)
    return np.concatenate([part.score_N for part in score_log(bundle.scorer, events, golden_tables(events))])


def test_every_artefact_of_the_corpus_is_one_of_these() -> None:
    if not _CORPUS.exists():
        pytest.skip("needs ../shared/tools/hostile, which is not part of the repository")
    cases = [json.loads(line) for line in _CORPUS.read_text(encoding="utf-8").splitlines()]
    artefacts = [case for case in cases if case["via"] == "artefact"]
    assert len(artefacts) == 20
    assert {case["gen"]["op"] for case in artefacts} == DAMAGES.keys()
    assert {case["expect"] for case in artefacts} == {"refuse"}


@pytest.mark.parametrize("operation", DAMAGES)
def test_a_damaged_bundle_is_refused_while_the_old_one_answers(
    trained: Trained, operation: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    damage, match = DAMAGES[operation]
    damaged = damage(trained.folder, tmp_path)
    (tmp_path / "current").symlink_to(trained.folder / "lstm")
    holder = ModelHolder(trained.folder / "lstm", state_hash=None, schema_of=schema_of)
    follower = Follower(holder, tmp_path)
    assert follower.poll() is None
    served, expected = holder.current, _scores(holder.current.bundle)
    (tmp_path / "current").unlink()
    (tmp_path / "current").symlink_to(damaged.name)
    with caplog.at_level(logging.WARNING, "service.models"):
        outcome = follower.poll()
        assert outcome is not None
        assert (outcome.accepted, outcome.code, outcome.version) == (False, BAD_BUNDLE, served.version)
        # A missing manifest is told by the system's own words.
        assert re.search(f"{match}|No such file.*manifest", outcome.reason), outcome.reason
        for _ in range(3):
            assert follower.poll() is None
    assert len(caplog.records) == 1, "logged once"
    assert holder.counts == {BAD_BUNDLE: 1}
    assert holder.current is served
    np.testing.assert_array_equal(_scores(holder.current.bundle), expected)
    assert not (tmp_path / "canary").exists(), "something in the bundle ran"


@pytest.mark.parametrize("operation", DAMAGES)
def test_a_service_does_not_start_on_a_damaged_bundle(trained: Trained, operation: str, tmp_path: Path) -> None:
    with pytest.raises(RefusedBundle, match=DAMAGES[operation][1]):
        ModelHolder(DAMAGES[operation][0](trained.folder, tmp_path), state_hash=None, schema_of=schema_of)
    assert not (tmp_path / "canary").exists(), "something in the bundle ran"
